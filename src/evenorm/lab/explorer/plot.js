// A plot: axes with ticks and labels, as wide as its place on the page.

import { svg } from "explorer/markup";

const MARGIN = { left: 46, right: 10, top: 10, bottom: 38 };

/** Round numbers in an interval, about as many as asked for. */
export function ticks([low, high], about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((multiple) => multiple * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.max(count, 0) }, (_, k) => {
    const value = (first + k) * step;
    return { value, text: (value === 0 ? "0" : value.toFixed(digits)).replace("-", "−") };
  });
}

/** The interval that holds all values, a little wider than they are. */
export function interval(values, margin = 0.06) {
  const finite = values.filter(Number.isFinite);
  const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  const room =
    high - low > 1e-9 * Math.max(1, Math.abs(high)) ? margin * (high - low) : Math.max(0.5, 0.1 * Math.abs(high));
  return [low - room, high + room];
}

/** An empty plot in a place; `at.x` and `at.y` turn values into pixels, `add` draws. */
export class Plot {
  constructor(place, { x, y, xLabel, yLabel, text, height = 220, xTicks = null, yTicks = null }) {
    this.width = place.clientWidth || 480;
    this.height = height;
    const { left, right, top, bottom } = MARGIN;
    this.area = { left, right: this.width - right, top, bottom: height - bottom };
    const scale =
      ([low, high], from, to) =>
      (value) =>
        from + ((value - low) / (high - low)) * (to - from);
    this.at = { x: scale(x, left, this.width - right), y: scale(y, height - bottom, top) };
    this.svg = svg("svg", { class: "plot", viewBox: `0 0 ${this.width} ${height}`, role: "img", "aria-label": text });
    place.replaceChildren(this.svg);
    this.axes(xTicks ?? ticks(x, Math.max(3, this.width / 80)), yTicks ?? ticks(y, 5), xLabel, yLabel);
  }

  axes(along, up, xLabel, yLabel) {
    const { left, right, top, bottom } = this.area;
    for (const { value, text } of up) {
      const y = this.at.y(value);
      this.add("line", { class: "rule", x1: left, x2: right, y1: y, y2: y });
      this.add("text", { class: "tick", x: left - 6, y: y + 4, "text-anchor": "end" }, text);
    }
    for (const { value, text } of along) {
      this.add("text", { class: "tick", x: this.at.x(value), y: bottom + 15, "text-anchor": "middle" }, text);
    }
    this.add("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
    this.add("text", { class: "label", x: right, y: bottom + 32, "text-anchor": "end" }, xLabel);
    const turned = `translate(11 ${top}) rotate(-90)`;
    this.add("text", { class: "label", transform: turned, "text-anchor": "end" }, yLabel);
  }

  /** Draw; what has no place, because it is undefined, is left out. */
  add(name, attributes, ...children) {
    if (Object.values(attributes).some(Number.isNaN)) return null;
    const element = svg(name, attributes, ...children);
    this.svg.append(element);
    return element;
  }

  /** A line through points [x, y]. */
  line(points, attributes) {
    const placed = points.filter(([x, y]) => !Number.isNaN(x + y));
    const path = placed.map(([x, y], k) => `${k ? "L" : "M"}${this.at.x(x).toFixed(2)} ${this.at.y(y).toFixed(2)}`);
    return this.add("path", { d: path.join(""), ...attributes });
  }

  /** A vertical line through the whole plot. */
  upright(x, attributes) {
    const { top, bottom } = this.area;
    return this.add("line", { x1: this.at.x(x), x2: this.at.x(x), y1: top, y2: bottom, ...attributes });
  }
}
