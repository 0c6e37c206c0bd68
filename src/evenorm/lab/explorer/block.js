// The block: a tensor seen from the front, its first axis going into the depth, its second across, the others down.

import { svg } from "explorer/markup";

const SLANT = { x: 0.5, y: -0.38 };

/** How a shape lies in the block: sizes of its three edges, and the flat index of a place. */
export function placed(shape) {
  const [depth, across] = shape.length > 1 ? shape : [1, shape[0]];
  const down = shape.slice(2).reduce((product, size) => product * size, 1);
  return { depth, across, down, flat: (d, a, r) => (d * across + a) * down + r };
}

/** The visible cells, each with its face, its element and its corners in units of a cell. */
function faces(shape) {
  const { depth, across, down, flat } = placed(shape);
  const corner = (a, r, d) => [a + d * SLANT.x, r + d * SLANT.y];
  const cells = [];
  for (let r = 0; r < down; r++) {
    for (let a = 0; a < across; a++) {
      cells.push([
        "front",
        flat(0, a, r),
        [corner(a, r, 0), corner(a + 1, r, 0), corner(a + 1, r + 1, 0), corner(a, r + 1, 0)],
      ]);
    }
  }
  for (let d = depth - 1; d >= 0; d--) {
    for (let a = 0; a < across; a++) {
      cells.push([
        "top",
        flat(d, a, 0),
        [corner(a, 0, d), corner(a + 1, 0, d), corner(a + 1, 0, d + 1), corner(a, 0, d + 1)],
      ]);
    }
    for (let r = 0; r < down; r++) {
      const a = across - 1;
      cells.push([
        "side",
        flat(d, a, r),
        [corner(across, r, d), corner(across, r, d + 1), corner(across, r + 1, d + 1), corner(across, r + 1, d)],
      ]);
    }
  }
  return cells;
}

/** A drawing of a block; `names` are the words at its edges, none where it is an emblem. */
export function block(shape, { size, names = null }) {
  const { depth, across, down } = placed(shape);
  const room = names ? { left: 34, right: 40, top: 20, bottom: 24 } : { left: 1, right: 1, top: 1, bottom: 1 };
  const [width, height] = [across + depth * SLANT.x, down - depth * SLANT.y].map((units) => units * size);
  const [left, top] = [room.left, room.top - depth * SLANT.y * size];
  const drawing = svg("svg", {
    class: "block",
    viewBox: `0 0 ${width + room.left + room.right} ${height + room.top + room.bottom}`,
    width: width + room.left + room.right,
    height: height + room.top + room.bottom,
  });
  for (const [face, element, corners] of faces(shape)) {
    const points = corners.map(([x, y]) => `${(left + x * size).toFixed(1)},${(top + y * size).toFixed(1)}`).join(" ");
    drawing.append(svg("polygon", { points, class: face, "data-element": element }));
  }
  if (names) {
    const label = (text, x, y, anchor = "middle") =>
      text && drawing.append(svg("text", { class: "label", x, y, "text-anchor": anchor }, text));
    label(names.across, left + (across * size) / 2, top + down * size + 18);
    label(names.down, left - 8, top + (down * size) / 2 + 4, "end");
    const middle = depth / 2;
    label(
      names.depth,
      left + (across + middle * SLANT.x) * size + 9,
      top + (down + middle * SLANT.y) * size + 14,
      "start",
    );
  }
  return drawing;
}

/** Show which cells share, and which one is chosen. */
export function highlight(drawing, sharing, chosen) {
  for (const cell of drawing.querySelectorAll("[data-element]")) {
    const element = Number(cell.dataset.element);
    cell.classList.toggle("shares", sharing(element));
    cell.classList.toggle("chosen", element === chosen);
  }
}
