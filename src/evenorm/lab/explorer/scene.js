// The scene: all that follows from a state, computed at once. The views only draw it.

import { apply, biased, forward, moments } from "explorer/formula";
import { averaged, begin, blend, brought } from "explorer/history";
import { counted, layout } from "explorer/layout";
import { normalizer } from "explorer/normalizers";
import { normals } from "explorer/random";
import { MOST_AXES, MOST_ELEMENTS, STEPS } from "explorer/state";

// The first numbers of the random keys, one for each use.
const [NOISE, OFFSETS, SCALES, MATES] = [1, 2, 3, 4];

/** How far the data's mean has moved at a step, in units of its spread. */
function moved(motion, step) {
  if (motion === "jump") return step < STEPS / 2 ? 0 : 3;
  return motion === "drift" ? (3 * step) / STEPS : 0;
}

/** Where the data come from: each channel has a mean and a spread of its own. */
class Source {
  constructor(state, lying) {
    this.state = state;
    this.channels = lying.parameters;
    const { seed, differ } = state;
    this.offsets = normals(this.channels.size, OFFSETS, seed).map((z) => differ * z);
    this.scales = normals(this.channels.size, SCALES, seed).map((z) => Math.exp(0.35 * differ * z));
  }

  /** Mean of each channel at a step. */
  mean(channel, step) {
    const { mean, spread, motion } = this.state;
    return mean + spread * (this.offsets[channel] + moved(motion, step));
  }

  /** Variance of each channel. */
  variance(channel) {
    return (this.state.spread * this.scales[channel]) ** 2;
  }

  /** A tensor at a step, with the noise of some key. */
  draw(step, ...key) {
    const noise = normals(this.channels.of.length, ...key, this.state.seed);
    return noise.map((z, i) => {
      const channel = this.channels.of[i];
      return this.mean(channel, step) + this.state.spread * this.scales[channel] * z;
    });
  }
}

/** A parameter of the size that is needed: what was given, and the usual value for the rest. */
function sized(given, size, usual) {
  return Float64Array.from({ length: size }, (_, i) => given?.[i] ?? usual);
}

/** The history through all steps: before each, what the batch brought, and at the end. */
function trained(state, made, lying, source) {
  let history = begin(lying.entries.size);
  const steps = [];
  for (let step = 0; step < STEPS; step++) {
    const found = moments(source.draw(step, NOISE, step + 1), lying.rows, lying.counts, made.centered);
    const seen = brought(found, lying);
    steps.push({ history, seen, biased: averaged(biased(found), found.counts, lying) });
    history = blend(history, seen, state.momentum);
  }
  return { steps, last: history };
}

/** Everything that a state's views show. Throws PatternError, or RangeError for a shape out of bounds. */
export function compute(state) {
  const made = normalizer(state);
  const { shape } = state;
  const total = shape.reduce((product, size) => product * size, 1);
  if (shape.length > MOST_AXES || total > MOST_ELEMENTS) {
    throw new RangeError(
      `This page draws at most ${MOST_AXES} axes and ${MOST_ELEMENTS} elements; this would be ${total}.`,
    );
  }
  const lying = layout(made, shape);
  const source = new Source(state, lying);
  const x = source.draw(state.updates, NOISE, 0);
  const remembers = made.history.length > 0;
  const training = remembers ? trained(state, made, lying, source) : null;
  const history = training && (training.steps[state.updates]?.history ?? training.last);
  const evaluating = remembers && state.mode === "eval";
  const parameters = {
    weight: made.affine.length ? sized(state.weight, lying.parameters.size, 1) : null,
    bias: made.affine.length && !made.biasless ? sized(state.bias, lying.parameters.size, 0) : null,
  };
  // In evaluation everything that meets one entry of the history shares its mean and variance.
  const shared = evaluating ? lying.entries : lying.rows;
  const normalized = (values) =>
    evaluating
      ? {
          statistics: history,
          ...apply(values, shared, history, lying.parameters, parameters.weight, parameters.bias, made.eps),
        }
      : forward(values, lying, { centered: made.centered, eps: made.eps, ...parameters });
  return {
    ...{ state, made, shape, total, layout: lying, shared, counts: counted(shared), parameters },
    ...{ x, ...normalized(x), evaluating, training, history, source, normalized },
    axes: axes(made.pattern, shape),
    parts: parts(made, shape),
    chosen: chosen(state.at, shape),
    batchmates: () => batchmates(state, x, source),
  };
}

/** The flat index of the chosen element; an index past the end of a shrunken axis is its last. */
function chosen(at, shape) {
  return shape.reduce((flat, size, axis) => flat * size + Math.min(at[axis] ?? 0, size - 1), 0);
}

/** Tensors in which the chosen element's sample is as it was and all others are drawn anew; and one with them moved. */
function batchmates(state, x, source) {
  const sample = x.length / state.shape[0];
  const mine = Math.min(state.at[0] ?? 0, state.shape[0] - 1);
  const joined = (others) => others.map((value, i) => (Math.floor(i / sample) === mine ? x[i] : value));
  const draws = Array.from({ length: 24 }, (_, k) => joined(source.draw(state.updates, MATES, state.mates, k)));
  return { mine, sample, draws, moved: joined(x.map((value) => value + state.shift * state.spread)) };
}

const POSITIONS = { 1: ["l"], 2: ["h", "w"], 3: ["d", "h", "w"] };

/** A name for each axis of the tensor, in the pattern's words; a split axis has both of its names. */
export function axes(pattern, shape) {
  const rank = shape.length;
  const length = rank - pattern.axes.length + 1;
  const first = pattern.axes.findIndex((factors) => factors[0].name === "...");
  const usual = first === 2 && first === pattern.axes.length - 1 ? (POSITIONS[length] ?? []) : [];
  const taken = new Set(pattern.names);
  const fits = usual.length && !usual.some((name) => taken.has(name));
  const free = [..."ijkpqr"].filter((name) => !taken.has(name));
  const spelled = fits ? usual : free;
  return pattern.axes.flatMap((factors, position) =>
    position === first ? spelled.slice(0, length) : [factors.map((factor) => factor.name).join("·")],
  );
}

/** The parts of the tensor's axes {name, size, axis}; the chunks of a ghost batch are parts only where none is short. */
function parts({ pattern, chunk }, shape) {
  const names = axes(pattern, shape);
  const whole = shape.map((size, axis) => ({ name: names[axis], size, axis }));
  if (chunk && shape[0] % chunk.size) return whole;
  return pattern
    .bind(shape)
    .parts.map(({ name, size, axis }) => ({ name: name.startsWith("...") ? names[axis] : name, size, axis }));
}

/** The indices of an element along each axis. */
export function unravel(flat, shape) {
  const indices = [];
  for (const size of [...shape].reverse()) {
    indices.unshift(flat % size);
    flat = Math.floor(flat / size);
  }
  return indices;
}
