// The history: a running mean and a running unbiased variance, as torch keeps them.

import { unbiased } from "explorer/formula";

/** Before the first batch: mean 0, variance 1. */
export function begin(size) {
  return { mean: new Float64Array(size), variance: new Float64Array(size).fill(1), updates: 0 };
}

/** Values of statistics as values of the history: for each entry the average over its rows, weighted by their counts. */
export function averaged(values, counts, { rows, entries }) {
  const entryOf = new Int32Array(rows.size);
  rows.of.forEach((row, i) => (entryOf[row] = entries.of[i]));
  const sums = new Float64Array(entries.size);
  const weights = new Float64Array(entries.size);
  values.forEach((value, row) => {
    sums[entryOf[row]] += value * counts[row];
    weights[entryOf[row]] += counts[row];
  });
  return sums.map((sum, entry) => sum / weights[entry]);
}

/** What a batch brings: its mean and its unbiased variance, each averaged over what the history does not keep. */
export function brought(moments, layout) {
  return {
    mean: averaged(moments.mean, moments.counts, layout),
    variance: averaged(unbiased(moments), moments.counts, layout),
  };
}

/** history ← (1 − momentum)·history + momentum·new; without a momentum, the average of all batches seen. */
export function blend(history, seen, momentum) {
  const weight = momentum ?? 1 / (history.updates + 1);
  const mix = (kept, fresh) => kept.map((value, i) => value + weight * (fresh[i] - value));
  return {
    mean: mix(history.mean, seen.mean),
    variance: mix(history.variance, seen.variance),
    updates: history.updates + 1,
  };
}
