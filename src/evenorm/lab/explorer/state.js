// The state: what a person has chosen. It lives in the page's address, so that a view can be shared.

import { NORMALIZERS } from "explorer/normalizers";
import { Pattern } from "explorer/pattern";

export const LEAST_EPS = 1e-12;
export const STEPS = 60;
export const MOST_AXES = 5;
export const LONGEST_AXIS = 16;
export const MOST_ELEMENTS = 768;

const text = { read: (value) => value, write: (value) => value };
const flag = {
  read: (value) => (/^[01]$/.test(value) ? value === "1" : undefined),
  write: (value) => (value ? "1" : "0"),
};
const number = (low, high) => ({
  read: (value) => {
    const found = value.trim() === "" ? NaN : Number(value);
    return found >= low && found <= high ? found : undefined;
  },
  write: (value) => `${Number(value.toPrecision(8))}`,
});
const whole = (low, high) => ({
  read: (value) => (/^\d+$/.test(value) && Number(value) >= low && Number(value) <= high ? Number(value) : undefined),
  write: String,
});
const choice = (...options) => ({ read: (value) => (options.includes(value) ? value : undefined), write: String });
const list = (each) => ({
  read: (value) => {
    const parts = value.split(",").map(each.read);
    return parts.includes(undefined) ? undefined : parts;
  },
  write: (value) => value.map(each.write).join(","),
});
const optional = (each) => ({
  read: (value) => (value === "none" ? null : each.read(value)),
  write: (value) => (value === null ? "none" : each.write(value)),
});

/** How each part of the state is written in the address; what is not written is the normalizer's own. */
const FIELDS = {
  norm: choice(...Object.keys(NORMALIZERS)),
  pattern: text,
  centered: flag,
  affine: text,
  history: text,
  shape: list(whole(1, LONGEST_AXIS)),
  eps: number(0, 100),
  momentum: optional(number(0, 1)),
  mode: choice("train", "eval"),
  weight: optional(list(number(-1e6, 1e6))),
  bias: optional(list(number(-1e6, 1e6))),
  seed: whole(1, 9999),
  mean: number(-1000, 1000),
  spread: number(0, 1000),
  differ: number(0, 10),
  motion: choice("steady", "jump", "drift"),
  updates: whole(0, STEPS),
  mates: whole(1, 9999),
  shift: number(-1000, 1000),
  at: list(whole(0, LONGEST_AXIS - 1)),
  show: choice("group", "x", "y"),
};

/** The state in which a normalizer is first met. */
export function initial(norm) {
  const { pattern, uncentered, affine, history, shape, eps } = NORMALIZERS[norm];
  return {
    ...{ norm, pattern, centered: !uncentered, affine, history, shape, eps },
    ...{ momentum: 0.1, mode: "train", weight: null, bias: null },
    ...{ seed: 1, mean: 1, spread: 1, differ: 1, motion: "jump", updates: 20 },
    ...{ mates: 1, shift: 0, at: shape.map((size, axis) => (axis === 1 ? Math.min(1, size - 1) : 0)), show: "group" },
  };
}

/** The address's fragment for a state: only what differs from the normalizer's own. */
export function toFragment(state) {
  const own = initial(state.norm);
  const query = new URLSearchParams({ norm: state.norm });
  for (const [name, field] of Object.entries(FIELDS)) {
    const [mine, usual] = [state[name], own[name]].map((value) => field.write(value));
    if (mine !== usual) query.set(name, mine);
  }
  return query.toString();
}

/** The state that a fragment says; what it does not say or says wrongly is as at first. */
export function fromFragment(fragment) {
  const query = new URLSearchParams(fragment);
  const state = initial(FIELDS.norm.read(query.get("norm") ?? "") ?? "batch");
  for (const [name, field] of Object.entries(FIELDS)) {
    const said = query.get(name);
    const value = said === null ? undefined : field.read(said);
    if (value !== undefined) state[name] = value;
  }
  return state;
}

function fits(norm, shape) {
  const { pattern, chunked } = NORMALIZERS[norm];
  try {
    return chunked || Pattern.parse(pattern).bind(shape).count > 0;
  } catch {
    return false;
  }
}

/** The state after another normalizer was chosen: the tensor stays where it fits. */
export function choosing(state, norm) {
  const own = initial(norm);
  const same = state.shape.length === own.shape.length && fits(norm, state.shape);
  const free = norm === "free";
  const said = free
    ? { pattern: state.pattern, centered: state.centered, affine: state.affine, history: state.history }
    : {};
  return {
    ...state,
    ...{ norm, pattern: own.pattern, centered: own.centered, affine: own.affine, history: own.history, eps: own.eps },
    ...(same || free ? {} : { shape: own.shape, at: own.at }),
    ...said,
    weight: null,
    bias: null,
  };
}
