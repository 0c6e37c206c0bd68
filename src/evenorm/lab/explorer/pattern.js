// The pattern: which elements of a tensor share one mean and one variance. Says what pattern.py says, to the letter.

const ELLIPSIS = "...";
const TOKEN = /\s*(\.\.\.|[A-Za-z_][\p{L}\p{N}_]*(?:\s*=\s*[0-9]+)?|[[\]()])/uy;

/** A pattern that cannot be read, or that does not fit a shape; `at` is where the caret goes. */
export class PatternError extends Error {
  constructor(fault, text, at = null) {
    super(fault);
    this.text = text;
    this.at = at === null ? null : [...text.slice(0, at)].length;
  }
}

/** A value as Python prints it: 'n', "'", (4, 6). */
export function printed(value) {
  if (Array.isArray(value)) return `(${value.join(", ")}${value.length === 1 ? "," : ""})`;
  return value.includes("'") && !value.includes('"') ? `"${value}"` : `'${value.replaceAll("'", "\\'")}'`;
}

const product = (sizes) => sizes.reduce((total, size) => total * size, 1);

function factorText({ name, reduced, size }) {
  const text = size === null ? name : `${name}=${size}`;
  return reduced ? `[${text}]` : text;
}

function axisText(factors) {
  const inside = factors.map(factorText).join(" ");
  return factors.length === 1 ? inside : `(${inside})`;
}

/** A parsed pattern: axes, each a list of factors {name, reduced, size}. */
export class Pattern {
  constructor(axes) {
    this.axes = axes;
    this.text = axes.map(axisText).join(" ").replaceAll("] [", " ");
  }

  static parse(text) {
    return new Pattern(parse(text));
  }

  get factors() {
    return this.axes.flat();
  }

  get names() {
    return this.factors.map((factor) => factor.name);
  }

  get hasEllipsis() {
    return this.names.includes(ELLIPSIS);
  }

  /** The same pattern with every factor replaced. */
  mapped(change) {
    return new Pattern(this.axes.map((factors) => factors.map((factor) => ({ ...factor, ...change(factor) }))));
  }

  /** The same pattern with sizes fixed by name. */
  withSizes(sizes) {
    return this.mapped(({ name, size }) => ({ size: sizes[name] ?? size }));
  }

  /** The pattern that keeps the named axes alone; a split that nobody asks about is no split. */
  keeping(names) {
    const kept = this.mapped(({ name }) => ({ reduced: !names.includes(name) }));
    return new Pattern(
      kept.axes.map((factors) =>
        factors.length > 1 && factors.every((factor) => factor.reduced)
          ? [{ name: factors.map((factor) => factor.name).join("_"), reduced: true, size: null }]
          : factors,
      ),
    );
  }

  /** Lay the pattern on a shape: every factor gets a size, the ellipsis is spelled out. */
  bind(shape) {
    const spare = shape.length - this.axes.length;
    const open = this.hasEllipsis;
    if ((spare < 0 && !(spare === -1 && open)) || (spare > 0 && !open)) {
      const wanted = open ? `at least ${this.axes.length - 1}` : `${this.axes.length}`;
      throw this.fault(`the pattern describes ${wanted} axes, got ${shape.length}: shape ${printed(shape)}`);
    }
    const parts = [];
    for (const factors of this.axes) {
      const axis = parts.length ? parts.at(-1).axis + 1 : 0;
      if (factors[0].name === ELLIPSIS) {
        for (let k = 0; k <= spare; k++) {
          parts.push({ name: `${ELLIPSIS}${k}`, size: shape[axis + k], axis: axis + k, reduced: factors[0].reduced });
        }
      } else {
        const sizes = this.split(factors, shape[axis], shape);
        factors.forEach(({ name, reduced }, k) => parts.push({ name, size: sizes[k], axis, reduced }));
      }
    }
    return new Binding(parts);
  }

  split(factors, size, shape) {
    const unknown = factors.filter((factor) => factor.size === null);
    const known = product(factors.filter((factor) => factor.size !== null).map((factor) => factor.size));
    if (unknown.length > 1) {
      const names = unknown.map((factor) => printed(factor.name)).join(" and ");
      throw this.fault(`the sizes of ${names} are both open; fix one of them`, unknown[0].name);
    }
    if (!unknown.length && known !== size) {
      throw this.fault(`expected an axis of ${known}, got ${size} in shape ${printed(shape)}`, factors[0].name);
    }
    if (unknown.length && size % known) {
      throw this.fault(`${known} does not divide the axis of ${size} in shape ${printed(shape)}`, factors[0].name);
    }
    return factors.map((factor) => factor.size ?? size / known);
  }

  fault(message, name = null) {
    const found =
      name === null ? null : new RegExp(`(?<![\\p{L}\\p{N}_.])${name}(?![\\p{L}\\p{N}_.])`, "u").exec(this.text);
    return new PatternError(message, this.text, found ? found.index : null);
  }
}

/** A pattern laid on a shape: its parts {name, size, axis, reduced} in order. */
export class Binding {
  constructor(parts) {
    this.parts = parts;
    this.names = parts.map((part) => part.name);
    this.shape = parts.map((part) => part.size);
    this.axes = parts.map((part) => part.axis);
    this.reduced = parts.flatMap((part, i) => (part.reduced ? [i] : []));
    this.kept = parts.flatMap((part, i) => (part.reduced ? [] : [i]));
  }

  /** Values per statistic. */
  get count() {
    return product(this.reduced.map((i) => this.shape[i]));
  }
}

function parse(text) {
  if (!text.trim()) throw new PatternError("the pattern is empty; write for example '[n] c [...]'", text);
  const axes = [];
  const opened = {};
  const seen = new Set();
  let split = null;
  let position = 0;
  while (text.slice(position).trim()) {
    TOKEN.lastIndex = position;
    const match = TOKEN.exec(text);
    if (!match) {
      const at = text.length - text.slice(position).trimStart().length;
      const found = printed(String.fromCodePoint(text.codePointAt(at)));
      throw new PatternError(`unexpected ${found}; a pattern has names, '...', '[ ]', '( )' and 'name=8'`, text, at);
    }
    const token = match[1];
    position = TOKEN.lastIndex;
    const at = position - token.length;
    const fail = (message, where = at) => {
      throw new PatternError(message, text, where);
    };
    if (token === "[" || token === "(") {
      if (token in opened || (token === "(" && "[" in opened)) {
        fail(`'${token}' inside ${"[" in opened ? "'['" : "'('"}; close that one first`);
      }
      opened[token] = at;
      if (token === "(") split = [];
    } else if (token === "]" || token === ")") {
      const opening = { "]": "[", ")": "(" }[token];
      if (!(opening in opened) || (token === ")" && "[" in opened)) {
        fail(`'${token}' closes nothing; ${"[" in opened ? "close [ before it" : "remove it"}`);
      }
      if (text.slice(0, at).trimEnd().at(-1) === opening) {
        fail(`'${opening}${token}' holds no axis; name one`, opened[opening]);
      }
      delete opened[opening];
      if (token === ")") {
        axes.push(split);
        split = null;
      }
    } else {
      const [name, size = ""] = token.split("=").map((part) => part.trim());
      if (seen.has(name)) fail(`'${name}' appears twice; every axis needs its own name`);
      if (name === ELLIPSIS && split) fail("'...' cannot be part of a split axis; move it out of the parentheses");
      if (size && Number(size) < 1) fail(`the size of '${name}' must be positive, got ${size}`);
      seen.add(name);
      const factor = { name, reduced: "[" in opened, size: size ? Number(size) : null };
      if (split) split.push(factor);
      else axes.push([factor]);
    }
  }
  const unclosed = Object.values(opened);
  if (unclosed.length) {
    const at = Math.min(...unclosed);
    throw new PatternError(`'${text[at]}' is never closed`, text, at);
  }
  if (!axes.flat().some((factor) => factor.reduced)) {
    const advice = "put the axes that share statistics in brackets: '[n] c [...]'";
    throw new PatternError(`nothing is reduced; ${advice}`, text);
  }
  return axes;
}
