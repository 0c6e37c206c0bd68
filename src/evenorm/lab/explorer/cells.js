// The cells: the block taken apart, a table for each index of the first axis, every element to be pointed at.

import { html } from "explorer/markup";
import { fixed, letters } from "explorer/numbers";
import { placed } from "explorer/block";
import { unravel } from "explorer/scene";

const MOVES = {
  ArrowLeft: [0, 0, -1],
  ArrowRight: [0, 0, 1],
  ArrowUp: [0, -1, 0],
  ArrowDown: [0, 1, 0],
  PageUp: [-1, 0, 0],
  PageDown: [1, 0, 0],
};

/** What an element is called: ['n 0', 'g 1', 'c 0', 'h 1'], of all axes or of one. */
function named({ parts }, element, wanted = null) {
  const sizes = parts.map((part) => part.size);
  const words = unravel(element, sizes).map((index, k) => `${parts[k].name} ${index}`);
  return words.filter((_, k) => wanted === null || parts[k].axis === wanted);
}

/** What an element is called in a sentence: 'n 0, c 1, h 0, w 2'. */
export const called = (scene, element) => named(scene, element).join(", ");

/** A value as it stands in a cell. */
function inside(scene, element) {
  const { show } = scene.state;
  return show === "group" ? letters(scene.shared.of[element]) : fixed(scene[show][element], 2);
}

/** The tables of a scene; `choose` is told of an element that was chosen, `point` of one that is pointed at. */
export function tables(scene, choose, point) {
  const { shape } = scene;
  const { depth, across, down, flat } = placed(shape);
  const rows = shape.length > 1 ? 1 : 0;
  const title = (d) => named(scene, flat(d, 0, 0), 0).join(" ");
  const cell = (d, a, r) => {
    const element = flat(d, a, r);
    const value = `x ${fixed(scene.x[element], 2)}, y ${fixed(scene.y[element], 2)}, group ${letters(scene.shared.of[element])}`;
    return html(
      "td",
      {
        "data-element": element,
        "data-place": `${d} ${a} ${r}`,
        tabindex: -1,
        "aria-label": `${called(scene, element)}: ${value}`,
      },
      inside(scene, element),
    );
  };
  return Array.from({ length: depth }, (_, d) =>
    html(
      "div",
      {
        class: "sheet",
        onclick: (event) => elementOf(event) !== null && choose(elementOf(event)),
        onpointerover: (event) => point(elementOf(event)),
        onpointerleave: () => point(null),
        onkeydown: (event) => moved(event, { depth, across, down, flat }, choose),
      },
      html(
        "table",
        { role: "grid", "aria-label": shape.length > 1 ? title(d) : "all elements", class: scene.state.show },
        shape.length > 1 ? html("caption", {}, title(d)) : null,
        html(
          "tbody",
          {},
          Array.from({ length: across }, (_, a) =>
            html(
              "tr",
              {},
              html("th", { scope: "row" }, named(scene, flat(d, a, 0), rows).join(" ")),
              Array.from({ length: down }, (_, r) => cell(d, a, r)),
            ),
          ),
        ),
      ),
    ),
  );
}

function elementOf(event) {
  const cell = event.target.closest("[data-element]");
  return cell ? Number(cell.dataset.element) : null;
}

function moved(event, { depth, across, down, flat }, choose) {
  const place = event.target.dataset.place?.split(" ").map(Number);
  const ends = { Home: [place?.[0], place?.[1], 0], End: [place?.[0], place?.[1], down - 1] };
  const step = MOVES[event.key];
  if (!place || !(step || ends[event.key])) return;
  event.preventDefault();
  const sizes = [depth, across, down];
  const next = step ? place.map((index, k) => Math.min(Math.max(index + step[k], 0), sizes[k] - 1)) : ends[event.key];
  choose(flat(...next));
}

/** Show which cells share and which one is chosen; only the chosen one is a stop of the tab key. */
export function highlight(root, sharing, shown, chosen) {
  for (const cell of root.querySelectorAll("td[data-element]")) {
    const element = Number(cell.dataset.element);
    cell.classList.toggle("shares", sharing(element));
    cell.classList.toggle("chosen", element === shown);
    cell.tabIndex = element === chosen ? 0 : -1;
    cell.setAttribute("aria-selected", sharing(element));
  }
}
