// The history: a running mean and a running unbiased variance, as torch keeps them.

import { unbiased } from "explorer/formula";

/** Before the first batch: mean 0, variance 1. */
export function begin(size) {
  return { mean: new Float64Array(size), variance: new Float64Array(size).fill(1), updates: 0 };
}

/** Mean and unbiased variance for each entry of the history: each averaged over the rows that fall on it. */
export function averaged(moments, layout) {
  const { rows, entries } = layout;
  const entryOf = new Int32Array(rows.size);
  rows.of.forEach((row, i) => (entryOf[row] = entries.of[i]));
  const weights = new Float64Array(entries.size);
  moments.counts.forEach((count, row) => (weights[entryOf[row]] += count));
  const average = (values) => {
    const sums = new Float64Array(entries.size);
    values.forEach((value, row) => (sums[entryOf[row]] += (value * moments.counts[row]) / weights[entryOf[row]]));
    return sums;
  };
  return { mean: average(moments.mean), variance: average(unbiased(moments)) };
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
