// The steps: the formula with the numbers of one group put in, and its elements as the rows of a table.

import { html } from "explorer/markup";
import { fixed, general, letters, plural } from "explorer/numbers";
import { unravel } from "explorer/scene";

// Rows of the table; the sums are of all elements.
const MOST_ROWS = 12;

const m = (text) => {
  const holder = document.createElement("template");
  holder.innerHTML = `<math displaystyle="true">${text}</math>`;
  return holder.content.firstChild;
};
const sub = (name, index) => `<msub><mi>${name}</mi><mi>${index}</mi></msub>`;
const SIGMA2 = "<msup><mi>σ</mi><mn>2</mn></msup>";
const SUM = "<mo>∑</mo>";
const DEVIATION = "<mrow><mo>(</mo><mi>x</mi><mo>−</mo><mi>μ</mi><mo>)</mo></mrow>";
const over = (top, bottom) => `<mfrac><mrow>${top}</mrow><mrow>${bottom}</mrow></mfrac>`;
const n = (value, digits) => {
  const text = `<mn>${fixed(value, digits)}</mn>`;
  return value < 0 ? `<mrow><mo>(</mo>${text}<mo>)</mo></mrow>` : text;
};
const result = (value) => `<mn class="result">${fixed(value)}</mn>`;

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

/** The statistics of this batch, a step each. */
function fromBatch({ made, training }, { sum, count, mean, squares, variance }) {
  const kept = training
    ? `For the running average the variance is divided by ${count} − 1 instead: ${fixed(squares / Math.max(count - 1, 1))}.`
    : null;
  const spread = made.centered ? over(`${SUM}<msup>${DEVIATION}<mn>2</mn></msup>`, "<mi>m</mi>") : over(`${SUM}<msup><mi>x</mi><mn>2</mn></msup>`, "<mi>m</mi>");
  const square = [made.centered ? "Variance" : "Mean square", `${SIGMA2}<mo>=</mo>${spread}<mo>=</mo>${over(n(squares), `<mn>${count}</mn>`)}<mo>=</mo>${result(variance)}`, "square", kept];
  if (!made.centered) return [["No mean", `<mi>μ</mi><mo>=</mo><mn>0</mn>`, "x", "Nothing is subtracted."], square];
  return [
    ["Sum", `${SUM}<mi>x</mi><mo>=</mo>${result(sum)}`, "x"],
    ["Mean", `<mi>μ</mi><mo>=</mo>${over(`${SUM}<mi>x</mi>`, "<mi>m</mi>")}<mo>=</mo>${over(n(sum), `<mn>${count}</mn>`)}<mo>=</mo>${result(mean)}`, "x"],
    ["Deviations", `<mi>x</mi><mo>−</mo><mi>μ</mi>`, "deviation"],
    square,
  ];
}

/** The statistics that are remembered. */
function fromHistory({ history }, { mean, variance }) {
  const said = `After ${plural(history.updates, "update")}; this batch has no say.`;
  return [
    ["Running mean", `<mi>μ</mi><mo>=</mo>${result(mean)}`, "x", said],
    ["Running variance", `${SIGMA2}<mo>=</mo>${result(variance)}`, "x"],
    ["Deviations", `<mi>x</mi><mo>−</mo><mi>μ</mi>`, "deviation"],
  ];
}

function steps(scene, found) {
  const { made, parameters, evaluating, layout, chosen } = scene;
  const { variance, rstd, mine } = found;
  const hat = `<mover><mi>x</mi><mo>^</mo></mover>`;
  const index = layout.parameters.size > 1 ? layout.parameters.of[chosen] : "";
  const all = [
    ...(evaluating ? fromHistory(scene, found) : fromBatch(scene, found)),
    ["Reciprocal root", `<mi>r</mi><mo>=</mo>${over("<mn>1</mn>", `<msqrt>${SIGMA2}<mo>+</mo><mi>ε</mi></msqrt>`)}<mo>=</mo>${over("<mn>1</mn>", `<msqrt>${n(variance)}<mo>+</mo><mn>${general(made.eps)}</mn></msqrt>`)}<mo>=</mo>${result(rstd)}`, "deviation"],
    ["Normalize", `${hat}<mo>=</mo>${made.centered ? DEVIATION : "<mi>x</mi>"}<mo>·</mo><mi>r</mi><mo>=</mo>${n(mine.deviation)}<mo>·</mo>${n(rstd)}<mo>=</mo>${result(mine.xHat)}`, "hat"],
  ];
  if (parameters.weight) {
    const shift = parameters.bias ? `<mo>+</mo>${sub("β", index)}` : "";
    const shifted = parameters.bias ? `<mo>+</mo>${n(mine.beta)}` : "";
    all.push([parameters.bias ? "Scale and shift" : "Scale", `<mi>y</mi><mo>=</mo>${sub("γ", index)}<mo>·</mo>${hat}${shift}<mo>=</mo>${n(mine.gamma)}<mo>·</mo>${n(mine.xHat)}${shifted}<mo>=</mo>${result(mine.y)}`, "y"]);
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
  const totals = html("tr", {}, html("th", { scope: "row" }, `∑ of ${count}`), columns.map(([name, , , total]) => html("td", { class: name }, total === null ? "" : fixed(total, 2))));
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
    html("caption", {}, `Group ${letters(scene.shared.of[mine.element])}, m = ${count}${count > shown.length ? `; ${shown.length} of them shown` : ""}`),
    html("thead", {}, html("tr", {}, html("th", { scope: "col" }, scene.axes.join(" ")), columns.map(([name, head]) => html("th", { scope: "col", class: name }, head)))),
    html("tbody", {}, rows),
    scene.evaluating ? null : html("tfoot", {}, totals),
  );
}

/** Put the steps and the table into their places. */
export function draw(place, scene) {
  const found = numbers(scene);
  const numbersTable = table(scene, found);
  const active = (name) => (numbersTable.dataset.active = name);
  const list = steps(scene, found).map(([title, formula, column, remark]) =>
    html(
      "li",
      { onpointerenter: () => active(column), onpointerleave: () => active("") },
      html("h3", {}, title),
      m(formula),
      remark ? html("p", { class: "quiet" }, remark) : null,
    ),
  );
  const lone = found.count === 1 && !scene.evaluating && scene.made.centered;
  place.replaceChildren(
    lone ? html("p", { class: "notice" }, "One value has no spread: its variance is 0 and x̂ is 0. In training torch refuses such a batch.") : "",
    html("div", { class: "steps" }, html("ol", {}, list), numbersTable),
  );
}
