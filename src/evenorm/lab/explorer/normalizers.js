// The normalizers to choose from, each a pattern × centered or not × an affine × a history.

import { general } from "explorer/numbers";
import { Pattern, PatternError } from "explorer/pattern";

const IMAGES = [4, 6, 2, 3];
const image = (rank) => `${Math.max(rank - 2, 1)}d`;

export const NORMALIZERS = {
  batch: {
    name: "BatchNorm",
    pattern: "[n] c [...]",
    affine: "c",
    history: "c",
    eps: 1e-5,
    shape: IMAGES,
    about: "Each channel over all samples and positions. Ioffe & Szegedy, 2015.",
    code: ({ shape }, options) => `BatchNorm${image(shape.length)}(${[shape[1], ...options]})`,
  },
  ghost: {
    name: "Ghost\u200bBatchNorm",
    pattern: "(k [n=2]) c [...]",
    affine: "c",
    history: "c",
    eps: 1e-5,
    shape: IMAGES,
    chunked: true,
    about: "Each channel over a few samples at a time, the ghost batch. Hoffer, Hubara & Soudry, 2017.",
    code: ({ shape, chunk }, options) =>
      `GhostBatchNorm${image(shape.length)}(${[shape[1], `virtual_batch_size=${chunk.size}`, ...options]})`,
  },
  layer: {
    name: "LayerNorm",
    pattern: "... [d]",
    affine: "d",
    history: "",
    eps: 1e-5,
    shape: [4, 3, 6],
    about: "Each token of each sample over its features. Ba, Kiros & Hinton, 2016.",
    code: ({ shape }, options) => `LayerNorm(${[shape.at(-1), ...options]})`,
  },
  rms: {
    name: "RMSNorm",
    pattern: "... [d]",
    uncentered: true,
    affine: "d",
    history: "",
    biasless: true,
    eps: 2 ** -23,
    shape: [4, 3, 6],
    about:
      "Each token over its features, divided by its root mean square; no mean is subtracted. Zhang & Sennrich, 2019.",
    code: ({ shape }, options) => `RMSNorm(${[shape.at(-1), ...options]})`,
  },
  instance: {
    name: "InstanceNorm",
    pattern: "n c [...]",
    affine: "c",
    history: "c",
    eps: 1e-5,
    shape: IMAGES,
    about: "Each channel of each sample over its positions. Ulyanov, Vedaldi & Lempitsky, 2016.",
    code: ({ shape }, options) =>
      `InstanceNorm${image(shape.length)}(${[shape[1], "affine=True", "track_running_stats=True", ...options]})`,
  },
  group: {
    name: "GroupNorm",
    pattern: "n (g=2 [c]) [...]",
    affine: "g c",
    history: "",
    eps: 1e-5,
    shape: IMAGES,
    about: "Each group of channels of each sample, over channels and positions. Wu & He, 2018.",
    code: ({ shape, pattern }, options) => {
      const { names, shape: split } = pattern.bind(shape);
      return `GroupNorm(${[split[names.indexOf("g")], shape[1], ...options]})`;
    },
  },
  layer2d: {
    name: "LayerNorm2d",
    pattern: "n [c] h w",
    affine: "c",
    history: "",
    eps: 1e-6,
    shape: IMAGES,
    about: "Each pixel of each sample over its channels, channels first. Liu et al., 2022 (ConvNeXt).",
    code: ({ shape }, options) => `LayerNorm2d(${[shape[1], ...options]})`,
  },
  rms2d: {
    name: "RMSNorm2d",
    pattern: "n [c] h w",
    uncentered: true,
    affine: "c",
    history: "",
    biasless: true,
    eps: 2 ** -23,
    shape: IMAGES,
    about: "Each pixel over its channels, divided by its root mean square.",
    code: ({ shape }, options) => `RMSNorm2d(${[shape[1], ...options]})`,
  },
  qk: {
    name: "QK-norm per head",
    pattern: "b t h [d]",
    uncentered: true,
    affine: "d",
    history: "",
    biasless: true,
    eps: 1e-5,
    shape: [2, 3, 2, 4],
    about: "Queries or keys, each head of each token over its features. Henry et al., 2020.",
    code: ({ shape }, options) =>
      `Norm(${['"b t h [d]"', `d=${shape.at(-1)}`, "bias=False", "centered=False", ...options]})`,
  },
  free: {
    name: "A pattern of your own",
    pattern: "[n] c [...]",
    affine: "c",
    history: "",
    eps: 1e-5,
    shape: IMAGES,
    about: "Any axes between the brackets.",
    code: freely,
  },
};

const names = (text) => text.split(/\s+/).filter(Boolean);
const unsized = (text) =>
  text
    .replaceAll(/\s*=\s*\d+/g, "")
    .replaceAll(/\s+/g, " ")
    .trim();

/** The normalizer whose sentence this is, sizes aside; `free` where it is none of the table's. */
export function recognized({ pattern, centered, affine, history }) {
  const found = Object.entries(NORMALIZERS).find(
    ([key, one]) =>
      key !== "free" &&
      unsized(one.pattern) === unsized(pattern) &&
      !one.uncentered === centered &&
      names(one.affine).join() === names(affine).join() &&
      names(one.history).join() === names(history).join(),
  );
  return found ? found[0] : "free";
}

/** Affine and history for another pattern: without the axes that it has no more, or keeps no more. */
export function adopting({ affine, history }, text) {
  try {
    const { names: known, factors } = Pattern.parse(text);
    const kept = factors.filter((factor) => !factor.reduced).map((factor) => factor.name);
    const among = (axes, some) =>
      names(axes)
        .filter((name) => some.includes(name))
        .join(" ");
    return { affine: among(affine, known), history: among(history, kept) };
  } catch {
    return {};
  }
}

/** The sentence that a state says, parsed: pattern, affine and history as lists of axes. Throws PatternError. */
export function normalizer(state) {
  const pattern = Pattern.parse(state.pattern);
  const { chunked, biasless } = NORMALIZERS[state.norm];
  const made = {
    pattern,
    centered: state.centered,
    affine: names(state.affine),
    history: names(state.history),
    eps: state.eps,
    biasless: Boolean(biasless),
    chunk: (chunked && pattern.axes[0].find(({ reduced, size }) => reduced && size)) || null,
  };
  const kept = pattern.factors.filter((factor) => !factor.reduced).map((factor) => factor.name);
  for (const name of made.history) {
    if (!kept.includes(name)) {
      const keeps = kept.join(", ") || "nothing";
      throw new PatternError(
        `the history lies on '${name}', which the pattern does not keep; it keeps ${keeps}`,
        pattern.text,
      );
    }
  }
  for (const name of made.affine) {
    if (!pattern.names.includes(name) || name === "...") {
      const has = pattern.names.join(", ");
      throw new PatternError(`the affine lies on '${name}', which the pattern lacks; it has ${has}`, pattern.text);
    }
  }
  return made;
}

/** The sentence in words, as evenorm prints a recipe. */
export function sentence({ pattern, centered, affine, history, eps }, momentum) {
  const average =
    momentum === null ? "the average of all batches" : `a running average (momentum ${general(momentum)})`;
  return [
    pattern.text,
    centered ? "centered" : "not centered",
    history.length ? `this batch in training, ${average} in evaluation` : "this batch",
    affine.length ? `weight on ${affine.join(" ")}` : "no affine",
    `eps ${general(eps)}`,
  ];
}

/** What to write in Python for it. */
export function code(state, made) {
  const { norm, shape, eps, momentum } = state;
  const own = NORMALIZERS[norm];
  const options = [];
  if (Math.abs(eps - own.eps) > 1e-12) options.push(`eps=${general(eps)}`);
  if (made.history.length && momentum !== 0.1) {
    options.push(`momentum=${momentum === null ? "None" : general(momentum)}`);
  }
  // InstanceNorm takes no (N, C), where a statistic has one value; GhostBatchNorm fixes the samples, not the chunks.
  const nameless = (norm === "instance" && shape.length === 2) || (norm === "ghost" && !made.chunk);
  const write = nameless ? freely : own.code;
  return `evenorm.${write({ ...made, shape, momentum }, options).replaceAll(",", ", ")}`;
}

function freely({ pattern, shape, affine, history, momentum, centered }, options) {
  const binding = pattern.bind(shape);
  const sized = pattern.mapped(({ name, size }) =>
    affine.includes(name) || history.includes(name) ? { size: binding.shape[binding.names.indexOf(name)] } : { size },
  );
  const average = momentum === null ? "evenorm.Cumulative()" : `evenorm.Running(${general(momentum)})`;
  const parts = [`"${sized.text}"`, affine.length ? `affine="${affine.join(" ")}"` : "affine=None"];
  if (!centered) parts.push("centered=False");
  if (history.length) parts.push(`statistics=${average}`, `history="${history.join(" ")}"`);
  return `Norm(${[...parts, ...options.filter((option) => !option.startsWith("momentum"))]})`;
}
