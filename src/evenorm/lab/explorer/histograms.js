// Before and after: how the values are spread, all of them and those of one group.

import { letters, fixed } from "explorer/numbers";
import { Plot, interval, ticks } from "explorer/plot";

const BINS = 28;

function binned(values, [low, high]) {
  const counts = new Float64Array(BINS);
  for (const value of values) {
    counts[Math.min(BINS - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * BINS)))] += 1;
  }
  return counts;
}

function spread(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { mean, deviation: Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length) };
}

function histogram(place, values, mine, name, letter) {
  const x = interval([...values]);
  const [all, group] = [binned(values, x), binned(mine, x)];
  const { mean, deviation } = spread(mine);
  const text = `Histogram of ${name}. All values: mean ${fixed(spread(values).mean)}, standard deviation ${fixed(spread(values).deviation)}. Group ${letter}: mean ${fixed(mean)}, standard deviation ${fixed(deviation)}.`;
  const y = [0, Math.max(...all) * 1.12];
  const yTicks = ticks(y, 5).filter(({ value }) => Number.isInteger(value));
  const plot = new Plot(place, { x, y, xLabel: name, yLabel: "values", text, height: 210, yTicks });
  const width = (plot.area.right - plot.area.left) / BINS;
  const bars = (counts, kind) =>
    counts.forEach((count, k) => {
      if (!count) return;
      const top = plot.at.y(count);
      plot.add("rect", {
        class: kind,
        x: plot.area.left + k * width + 0.75,
        y: top,
        width: width - 1.5,
        height: plot.area.bottom - top,
      });
    });
  bars(all, "all");
  bars(group, "mine");
  plot.upright(mean, { class: "mean" });
  plot.line(
    [
      [mean - deviation, y[1] * 0.97],
      [mean + deviation, y[1] * 0.97],
    ],
    { class: "mean" },
  );
  place.nextElementSibling.textContent = `Group ${letter}: mean ${fixed(mean)}, standard deviation ${fixed(deviation)}. All: ${fixed(spread(values).mean)}, ${fixed(spread(values).deviation)}.`;
}

/** Draw both histograms. */
export function draw(before, after, scene) {
  const { x, y, shared, chosen } = scene;
  const mine = (values) => [...values].filter((_, i) => shared.of[i] === shared.of[chosen]);
  const letter = letters(shared.of[chosen]);
  histogram(before, [...x], mine(x), "x", letter);
  histogram(after, [...y], mine(y), "y", letter);
}
