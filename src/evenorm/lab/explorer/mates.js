// Batch-mates: one sample's output while the rest of its batch changes.

import { fixed } from "explorer/numbers";
import { Plot, interval } from "explorer/plot";
import { unravel } from "explorer/scene";

const MOST_VALUES = 12;
// Pixels that the name of a value takes.
const NAME = 46;

/** Draw the sample's values; returns how far its output moves, in the draws and by the shift. */
export function draw(place, scene) {
  const { draws, moved, mine, sample } = scene.batchmates();
  const first = mine * sample;
  const many = Math.min(sample, MOST_VALUES, Math.max(1, Math.floor((place.clientWidth || 480) / NAME)));
  const shown = Array.from({ length: many }, (_, k) => first + Math.floor((k * sample) / many));
  const outputs = draws.map((batch) => scene.normalized(batch).y);
  const shifted = scene.normalized(moved).y;
  const whole = Array.from({ length: sample }, (_, k) => first + k);
  const furthest = (several) =>
    Math.max(...whole.map((element) => Math.max(...several.map((y) => Math.abs(y[element] - scene.y[element])))));
  const values = shown.flatMap((element) => [...outputs.map((y) => y[element]), shifted[element], scene.y[element]]);
  const far = { drawn: furthest(outputs), shifted: furthest([shifted]) };
  const plot = new Plot(place, {
    ...{
      x: [-0.6, shown.length - 0.4],
      y: interval(values),
      xLabel: `element ${scene.axes.slice(1).join(" ")}`,
      yLabel: "y",
      height: 250,
    },
    text: `Outputs of sample ${mine} with ${draws.length} sets of batch-mates; the largest change is ${fixed(far.drawn)}.`,
    xTicks: shown.map((element, k) => ({ value: k, text: unravel(element, scene.shape).slice(1).join(" ") })),
  });
  shown.forEach((element, k) => {
    const x = plot.at.x(k);
    outputs.forEach((y) => plot.add("circle", { class: "drawn", cx: x, cy: plot.at.y(y[element]), r: 3.4 }));
    if (scene.state.shift)
      plot.add("line", {
        class: "moved",
        x1: x - 9,
        x2: x + 9,
        y1: plot.at.y(shifted[element]),
        y2: plot.at.y(shifted[element]),
      });
    plot.add("circle", { class: "here", cx: x, cy: plot.at.y(scene.y[element]), r: 4 });
  });
  return far;
}
