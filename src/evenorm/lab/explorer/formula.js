// The formula, longhand in float64, as kernels/reference.py has it:
//   μ = 1/m Σ x        σ² = 1/m Σ (x − μ)²        x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β

/** Mean and M2 = Σ (x − μ)² of each row, in two passes. Not centered, the mean is 0 and M2 = Σ x². */
export function moments(x, rows, counts, centered) {
  const mean = new Float64Array(rows.size);
  // The second pass removes the rounding of the first.
  for (let pass = 0; centered && pass < 2; pass++) {
    const sums = new Float64Array(rows.size);
    x.forEach((value, i) => (sums[rows.of[i]] += value - mean[rows.of[i]]));
    sums.forEach((sum, row) => (mean[row] += sum / counts[row]));
  }
  const m2 = new Float64Array(rows.size);
  x.forEach((value, i) => (m2[rows.of[i]] += (value - mean[rows.of[i]]) ** 2));
  return { mean, m2, counts };
}

/** The biased variance, which normalizes. */
export function biased({ m2, counts }) {
  return m2.map((sum, row) => sum / counts[row]);
}

/** The unbiased variance, which is stored. */
export function unbiased({ m2, counts }) {
  return m2.map((sum, row) => sum / Math.max(counts[row] - 1, 1));
}

/** x̂ and y from given statistics; weight or bias null where there is none. */
export function apply(x, shared, { mean, variance }, parameters, weight, bias, eps) {
  const xHat = new Float64Array(x.length);
  const y = new Float64Array(x.length);
  x.forEach((value, i) => {
    const row = shared.of[i];
    xHat[i] = (value - mean[row]) / Math.sqrt(variance[row] + eps);
    const gamma = weight ? weight[parameters.of[i]] : 1;
    y[i] = gamma * xHat[i] + (bias ? bias[parameters.of[i]] : 0);
  });
  return { xHat, y };
}

/** A whole training step: statistics of this batch, and what comes out. */
export function forward(x, layout, { centered, weight, bias, eps }) {
  const found = moments(x, layout.rows, layout.counts, centered);
  const statistics = { mean: found.mean, variance: biased(found) };
  return { moments: found, statistics, ...apply(x, layout.rows, statistics, layout.parameters, weight, bias, eps) };
}
