// The steps: the formula with the numbers of one group put in, and its elements as the rows of a table.

import { html } from "explorer/markup";
import { fixed, general, letters, plural } from "explorer/numbers";
import { unravel } from "explorer/scene";

// Rows of the table; the sums are of all elements.
const MOST_ROWS = 12;

// Formulas are MathML; a chain of equalities may break before each sign.
const formula = (parts) => {
  const holder = document.createElement("template");
  const equal = '<mo form="infix">=</mo>';
  holder.innerHTML = parts.map((part, k) => `<math displaystyle="true">${k ? equal : ""}${part}</math>`).join(" ");
  return holder.content;
};
const name = (letter) => `<mi>${letter}</mi>`;
const indexed = (letter, index) => `<msub><mi>${letter}</mi><mi>${index}</mi></msub>`;
const squared = (base) => `<msup>${base}<mn>2</mn></msup>`;
const over = (top, bottom) => `<mfrac><mrow>${top}</mrow><mrow>${bottom}</mrow></mfrac>`;
const root = (variance, eps) => over("<mn>1</mn>", `<msqrt>${variance}<mo>+</mo>${eps}</msqrt>`);
const times = (...factors) => factors.join("<mo>·</mo>");
const result = (value) => `<mn class="result">${fixed(value)}</mn>`;
const number = (value) => {
  const text = `<mn>${fixed(value)}</mn>`;
  return value < 0 ? `<mrow><mo>(</mo>${text}<mo>)</mo></mrow>` : text;
};
const whole = (value) => `<mn>${value}</mn>`;

const [X, MU, R] = ["x", "μ", "r"].map(name);
const HAT = "<mover><mi>x</mi><mo>^</mo></mover>";
const VARIANCE = squared(name("σ"));
const DIFFERENCE = `${X}<mo>−</mo>${MU}`;
const DEVIATION = `<mrow><mo>(</mo>${DIFFERENCE}<mo>)</mo></mrow>`;
const sumOf = (term) => `<mo>∑</mo>${term}`;

/** What the steps speak of: the elements that share with the chosen one, and its numbers. */
function numbers(scene) {
  const { chosen, shared, x, xHat, y, made, parameters, layout, statistics } = scene;
  const row = shared.of[chosen];
  const elements = [...shared.of.keys()].filter((element) => shared.of[element] === row);
  const [mean, variance] = [statistics.mean[row], statistics.variance[row]];
  const gamma = (element) => (parameters.weight ? parameters.weight[layout.parameters.of[element]] : 1);
  const beta = (element) => (parameters.bias ? parameters.bias[layout.parameters.of[element]] : 0);
  const lines = elements.map((element) => ({
    element,
    ...{ x: x[element], deviation: x[element] - mean, square: (x[element] - mean) ** 2 },
    ...{ xHat: xHat[element], gamma: gamma(element), beta: beta(element), y: y[element] },
  }));
  const total = (name) => lines.reduce((sum, line) => sum + line[name], 0);
  return {
    ...{ row, lines, mean, variance, count: elements.length, sum: total("x"), squares: total("square") },
    ...{ rstd: 1 / Math.sqrt(variance + made.eps), mine: lines.find((line) => line.element === chosen) },
  };
}

/** One step: its title, its formula, the column of the table that it makes, and a remark. */
const step = (title, parts, column, remark = null) => ({ title, parts, column, remark });

/** The statistics of this batch, a step each. */
function fromBatch({ made, training }, { sum, count, mean, squares, variance }) {
  const unbiased = fixed(squares / Math.max(count - 1, 1));
  const stored = training
    ? `For the running average the variance is divided by ${count} − 1 instead: ${unbiased}.`
    : null;
  const term = squared(made.centered ? DEVIATION : X);
  const parts = [VARIANCE, over(sumOf(term), name("m")), over(number(squares), whole(count)), result(variance)];
  if (!made.centered) {
    return [
      step("No mean", [MU, whole(0)], "x", "Nothing is subtracted."),
      step("Mean square", parts, "square", stored),
    ];
  }
  return [
    step("Sum", [sumOf(X), result(sum)], "x"),
    step("Mean", [MU, over(sumOf(X), name("m")), over(number(sum), whole(count)), result(mean)], "x"),
    step("Deviations", [DIFFERENCE], "deviation"),
    step("Variance", parts, "square", stored),
  ];
}

/** The statistics that are remembered. */
function fromHistory({ made, history }, { mean, variance }) {
  const said = `After ${plural(history.updates, "update")}; this batch has no say.`;
  return [
    step("Running mean", [MU, result(mean)], "x", said),
    step(made.centered ? "Running variance" : "Running mean square", [VARIANCE, result(variance)], "x"),
    step("Deviations", [DIFFERENCE], "deviation"),
  ];
}

function steps(scene, found) {
  const { made, parameters, evaluating, layout, chosen } = scene;
  const { variance, rstd, mine } = found;
  const eps = `<mn>${general(made.eps)}</mn>`;
  const top = made.centered ? DEVIATION : X;
  const all = [
    ...(evaluating ? fromHistory(scene, found) : fromBatch(scene, found)),
    step("Reciprocal root", [R, root(VARIANCE, name("ε")), root(number(variance), eps), result(rstd)], "deviation"),
    step("Normalize", [HAT, times(top, R), times(number(mine.deviation), number(rstd)), result(mine.xHat)], "hat"),
  ];
  if (parameters.weight) {
    const [gamma, beta] = ["γ", "β"].map((letter) => indexed(letter, layout.parameters.of[chosen]));
    const shift = (value) => (parameters.bias ? `<mo>+</mo>${value}` : "");
    const said = times(gamma, HAT) + shift(beta);
    const filled = times(number(mine.gamma), number(mine.xHat)) + shift(number(mine.beta));
    all.push(step(parameters.bias ? "Scale and shift" : "Scale", [name("y"), said, filled, result(mine.y)], "y"));
  }
  return all;
}

function table(scene, { lines, count, sum, squares, mine }) {
  // The chosen element stays in sight.
  const at = lines.indexOf(mine);
  const start = Math.max(0, Math.min(at - Math.floor(MOST_ROWS / 2), count - MOST_ROWS));
  const shown = count <= MOST_ROWS ? lines : lines.slice(start, start + MOST_ROWS);
  const { centered } = scene.made;
  const columns = [
    ["x", "x", (line) => line.x, centered ? sum : null],
    ["deviation", "x − μ", (line) => line.deviation, null],
    ["square", centered ? "(x − μ)²" : "x²", (line) => line.square, squares],
    ["hat", "x̂", (line) => line.xHat, null],
    ["y", "y", (line) => line.y, null],
  ].filter(([name]) => (centered || name !== "deviation") && !(scene.evaluating && name === "square"));
  const totals = html(
    "tr",
    {},
    html("th", { scope: "row" }, `∑ of ${count}`),
    columns.map(([name, , , total]) => html("td", { class: name }, total === null ? "" : fixed(total, 2))),
  );
  const rows = shown.map((line) =>
    html(
      "tr",
      { class: line === mine ? "chosen" : null },
      html("th", { scope: "row" }, unravel(line.element, scene.shape).join(" ")),
      columns.map(([name, , value]) => html("td", { class: name }, fixed(value(line), 2))),
    ),
  );
  return html(
    "table",
    { class: "numbers" },
    html(
      "caption",
      {},
      `Group ${letters(scene.shared.of[mine.element])}, m = ${count}${count > shown.length ? `; ${shown.length} of them shown` : ""}`,
    ),
    html(
      "thead",
      {},
      html(
        "tr",
        {},
        html("th", { scope: "col" }, scene.axes.join(" ")),
        columns.map(([name, head]) => html("th", { scope: "col", class: name }, head)),
      ),
    ),
    html("tbody", {}, rows),
    scene.evaluating ? null : html("tfoot", {}, totals),
  );
}

/** Put the steps and the table into their places. */
export function draw(place, scene) {
  const found = numbers(scene);
  const numbersTable = table(scene, found);
  const active = (name) => (numbersTable.dataset.active = name);
  const list = steps(scene, found).map(({ title, parts, column, remark }) =>
    html(
      "li",
      { onpointerenter: () => active(column), onpointerleave: () => active("") },
      html("h3", {}, title),
      formula(parts),
      remark ? html("p", { class: "quiet" }, remark) : null,
    ),
  );
  const lone = found.count === 1 && !scene.evaluating && scene.made.centered;
  place.replaceChildren(
    lone
      ? html(
          "p",
          { class: "notice" },
          "One value has no spread: its variance is 0 and x̂ is 0. In training torch refuses such a batch.",
        )
      : "",
    html("div", { class: "steps" }, html("ol", {}, list), numbersTable),
  );
}
