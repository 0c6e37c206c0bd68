// The running average chases the data: what each batch brings, and what the layer remembers.

import { fixed } from "explorer/numbers";
import { Plot, interval } from "explorer/plot";
import { STEPS } from "explorer/state";

/** The curves of one entry of the history: what batches bring, what is remembered, where the data truly are. */
function curves(scene, entry) {
  const { training, state, made, source } = scene;
  const { steps, last } = training;
  const histories = [...steps.map((step) => step.history), last];
  // The truth is known where the history lies on the data's own channels.
  const known = made.history.join() === made.affine.join() && made.centered;
  const truth = (value) => (known ? steps.map((_, step) => [step, value(step)]) : []);
  return {
    now: state.updates,
    mean: {
      seen: steps.map(({ seen }, step) => [step, seen.mean[entry]]),
      biased: [],
      kept: histories.map(({ mean }, step) => [step, mean[entry]]),
      truth: truth((step) => source.mean(entry, step)),
    },
    variance: {
      seen: steps.map(({ seen }, step) => [step, seen.variance[entry]]),
      biased: steps.map((step, k) => [k, step.biased[entry]]),
      kept: histories.map(({ variance }, step) => [step, variance[entry]]),
      truth: truth(() => source.variance(entry)),
    },
  };
}

function traced(place, { seen, biased, kept, truth }, now, yLabel, text) {
  const values = [...seen, ...biased, ...kept, ...truth].map(([, value]) => value);
  const plot = new Plot(place, {
    x: [-1, STEPS + 1],
    y: interval(values),
    xLabel: "updates",
    yLabel,
    text,
    height: 230,
  });
  plot.upright(now, { class: "now" });
  if (truth.length) plot.line(truth, { class: "truth" });
  const faint = (step) => (step < now ? "" : " later");
  for (const [step, value] of biased) {
    plot.line([[step, value]], { class: `biased${faint(step)}`, d: cross(plot.at.x(step), plot.at.y(value)) });
  }
  for (const [step, value] of seen) {
    plot.add("circle", { class: `seen${faint(step)}`, cx: plot.at.x(step), cy: plot.at.y(value), r: 2.6 });
  }
  plot.line(kept.slice(now), { class: "kept later" });
  plot.line(kept.slice(0, now + 1), { class: "kept" });
  plot.add("circle", { class: "here", cx: plot.at.x(now), cy: plot.at.y(kept[now][1]), r: 4.5 });
}

const cross = (x, y) => `M${x - 2.4} ${y - 2.4}l4.8 4.8m0 -4.8l-4.8 4.8`;

/** Draw mean and variance of the entry that the chosen element meets. */
export function draw(mean, variance, scene) {
  const entry = scene.layout.entries.of[scene.chosen];
  const found = curves(scene, entry);
  const now = scene.history;
  traced(
    mean,
    found.mean,
    found.now,
    "mean",
    `Running mean over ${STEPS} updates; after ${found.now} it is ${fixed(now.mean[entry])}.`,
  );
  traced(
    variance,
    found.variance,
    found.now,
    "variance",
    `Running variance over ${STEPS} updates; after ${found.now} it is ${fixed(now.variance[entry])}.`,
  );
}

/** What a momentum means, in words. */
export function meaning(momentum) {
  if (momentum === null)
    return "Every batch seen so far has the same weight: the average never forgets, and follows a change ever more slowly.";
  if (momentum === 0) return "Nothing new is taken in: mean 0 and variance 1 stay for ever.";
  if (momentum === 1) return "Nothing is kept: the last batch alone is remembered.";
  const half = Math.log(0.5) / Math.log(1 - momentum);
  const updates = Math.ceil(Math.log(0.01) / Math.log(1 - momentum));
  return `Half of what is remembered is forgotten after ${fixed(half, 1)} updates; of the initial 0 and 1, 1% is left after ${updates}.`;
}
