// The page: a state, the scene that follows from it, and the views that draw the scene.

import * as batchmates from "explorer/mates";
import * as blocks from "explorer/block";
import * as cells from "explorer/cells";
import * as controls from "explorer/controls";
import * as histograms from "explorer/histograms";
import * as running from "explorer/running";
import * as steps from "explorer/steps";
import { $, html } from "explorer/markup";
import { fixed, letters, plural } from "explorer/numbers";
import { NORMALIZERS, code, sentence } from "explorer/normalizers";
import { PatternError } from "explorer/pattern";
import { compute, unravel } from "explorer/scene";
import { STEPS, choosing, fromFragment, initial, toFragment } from "explorer/state";
import { theming } from "explorer/theme";

let state = fromFragment(location.hash.slice(1));
let scene = null;
let pointed = null;

/** Change the state, and show what follows; what cannot be computed is said, and the last scene stays. */
function act(changes) {
  state = { ...state, ...changes };
  const found = attempt(state);
  if (found) {
    scene = found;
    remember();
  }
  draw();
  return found !== null;
}

let waiting = null;

/** Put the state into the address; browsers refuse to do so many times a second. */
function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", `#${toFragment(state)}`), 150);
}

function attempt(wanted) {
  const said = { pattern: "", shape: "" };
  try {
    return compute(wanted);
  } catch (fault) {
    if (fault instanceof PatternError) {
      said.pattern = `${fault.message}\n    ${fault.text}${fault.at === null ? "" : `\n    ${" ".repeat(fault.at)}^`}`;
    } else if (fault instanceof RangeError) said.shape = fault.message;
    else throw fault;
    return null;
  } finally {
    $("#fault").textContent = said.pattern;
    $("#shape-fault").textContent = said.shape;
    $("#pattern").setAttribute("aria-invalid", said.pattern !== "");
    $("#stale").hidden = said.pattern + said.shape === "";
  }
}

/** Choose an element, and go to its cell if the cells had the focus. */
function choose(element) {
  const focused = $("#cells").contains(document.activeElement);
  act({ at: unravel(element, scene.shape) });
  if (focused) $(`#cells td[data-element="${element}"]`).focus();
}

/** Show the group of an element that is pointed at; of the chosen one when none is. */
function point(element) {
  pointed = element;
  light();
}

function light() {
  const { shared, chosen } = scene;
  const shown = pointed ?? chosen;
  const sharing = (element) => shared.of[element] === shared.of[shown];
  blocks.highlight($("#block svg"), sharing, shown);
  cells.highlight($("#cells"), sharing, shown, chosen);
  const row = shared.of[shown];
  const others = scene.counts[row] - 1;
  const [mean, variance] = [scene.statistics.mean[row], scene.statistics.variance[row]].map((value) => fixed(value));
  const statistics = scene.made.centered ? `mean ${mean} and variance ${variance}` : `mean square ${variance}`;
  const source = `${scene.evaluating ? "the running " : ""}${statistics}`;
  $("#group").replaceChildren(
    html("strong", {}, cells.called(scene, shown)),
    others
      ? ` is in group ${letters(row)}. With ${plural(others, "other element")} it shares ${source}.`
      : ` is alone in group ${letters(row)}: ${source}.`,
  );
}

function drawBlock() {
  const { shape, axes } = scene;
  const { depth, across, down } = blocks.placed(shape);
  const flat = shape.length === 1;
  const names = { depth: flat ? "" : axes[0], across: flat ? axes[0] : axes[1], down: axes.slice(2).join("·") };
  const width = Math.min($("#block").clientWidth || 360, 420) - 80;
  const size = Math.min(34, width / (across + 0.5 * depth), 280 / (down + 0.38 * depth));
  const picture = blocks.block(shape, { size, names });
  const element = (event) => (event.target.dataset.element ? Number(event.target.dataset.element) : null);
  picture.addEventListener("pointerover", (event) => point(element(event)));
  picture.addEventListener("pointerleave", () => point(null));
  picture.addEventListener("click", (event) => element(event) !== null && choose(element(event)));
  picture.setAttribute("role", "img");
  picture.setAttribute(
    "aria-label",
    `The tensor of shape ${shape.join(" × ")} as a block; the tables below hold every element.`,
  );
  $("#block").replaceChildren(picture);
}

function drawGroups() {
  const { shared, counts, statistics, shape, made } = scene;
  const firsts = [...counts.keys()].map((row) => shared.of.indexOf(row));
  const head = [
    "group",
    `first element (${scene.axes.join(" ")})`,
    "elements",
    "mean",
    made.centered ? "variance" : "mean square",
  ];
  const rows = firsts.map((first, row) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, letters(row)),
      [unravel(first, shape).join(" "), counts[row], fixed(statistics.mean[row]), fixed(statistics.variance[row])].map(
        (text) => html("td", {}, `${text}`),
      ),
    ),
  );
  $("#groups").replaceChildren(
    html(
      "table",
      { class: "groups" },
      html(
        "thead",
        {},
        html(
          "tr",
          {},
          head.map((text) => html("th", { scope: "col" }, text)),
        ),
      ),
      html("tbody", {}, rows),
    ),
  );
}

function drawMates() {
  const alone = scene.shape.length < 2 || scene.shape[0] === 1;
  $("#mates").hidden = alone;
  $("#no-mates").hidden = !alone;
  if (alone) return;
  const far = batchmates.draw($("#mates-plot"), scene);
  const exact = far.drawn === 0 && far.shifted === 0;
  $("#mates-said").textContent = exact
    ? "Nothing changes, to the last bit: this sample's output does not depend on its batch-mates."
    : `Its output changes by up to ${fixed(far.drawn, 2)} with other batch-mates${state.shift ? `, by up to ${fixed(far.shifted, 2)} when they move` : ""}.`;
}

function drawRunning() {
  const keeps = scene.training !== null;
  $("#running").hidden = !keeps;
  $("#no-running").hidden = keeps;
  if (!keeps) return;
  running.draw($("#running-mean"), $("#running-variance"), scene);
  $("#momentum-help").textContent = running.meaning(scene.state.momentum);
}

function draw() {
  controls.show(scene, state, act);
  const { made } = scene;
  $("#about").textContent = NORMALIZERS[scene.state.norm].about;
  $("#sentence").replaceChildren(...sentence(made, scene.state.momentum).map((part) => html("span", {}, part)));
  drawBlock();
  $("#cells").replaceChildren(...cells.tables(scene, choose, point));
  light();
  drawGroups();
  steps.draw($("#steps"), scene);
  histograms.draw($("#before"), $("#after"), scene);
  drawRunning();
  drawMates();
  const evaluation = scene.evaluating ? "\nlayer.eval()" : "";
  $("#code").textContent =
    `layer = ${code(scene.state, made)}${evaluation}\ny = layer(x)  # x of shape (${scene.shape.join(", ")})`;
}

function play() {
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    $("#play").textContent = "Play";
  };
  $("#play").addEventListener("click", () => {
    if (timer) return stop();
    if (state.updates >= STEPS) act({ updates: 0 });
    $("#play").textContent = "Pause";
    timer = setInterval(() => (state.updates < STEPS ? act({ updates: state.updates + 1 }) : stop()), 120);
  });
}

function linking() {
  $("#link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("#link").textContent = "Copied";
    } catch {
      $("#link").textContent = "It is in the address bar";
    }
    setTimeout(() => ($("#link").textContent = "Copy link"), 2000);
  });
}

function begin() {
  // A fault in the address is said, and shown over the normalizer as it is at first.
  scene = attempt(state) ?? compute(initial(state.norm));
  if (matchMedia("(max-width: 700px)").matches) {
    for (const group of document.querySelectorAll("#controls details:not(:first-child)")) group.open = false;
  }
  controls.connect({ act, choose: (norm) => act(choosing(state, norm)), state: () => state });
  theming($("#theme"), () => {});
  draw();
  play();
  linking();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
  addEventListener("hashchange", () => act(fromFragment(location.hash.slice(1))));
}

begin();
