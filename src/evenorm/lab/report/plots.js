"use strict";
// Draws every figure in the page's colors, by day, by night and on paper; a click on a row's name
// hides it everywhere.
const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];
const hidden = new Set();
// What fits an A4 page between its margins, whole and half.
const PAPER = { whole: 670, half: 325 };

const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// Every string that names a color of the page becomes that color.
const painted = (value) => {
  if (typeof value === "string") return value.startsWith("--") ? color(value) : value;
  if (Array.isArray(value)) return value.map(painted);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, painted(entry)]));
  }
  return value;
};

const drawPlot = (plot) => {
  const paper = root.classList.contains("paper");
  const figure = figures[plot.dataset.figure];
  const layout = painted({
    margin: { l: 54, r: 12, t: 22, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: "--text" },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: "--raised", bordercolor: "--rule", font: { color: "--text" } },
    dragmode: false,
    height: figure.height,
    ...figure.layout,
  });
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    layout[name] = {
      automargin: true,
      fixedrange: true,
      zeroline: false,
      gridcolor: color("--rule"),
      linecolor: color("--rule"),
      ...layout[name],
    };
  }
  if (paper) layout.width = plot.closest(".grid") ? PAPER.half : PAPER.whole;
  const traces = figure.traces.map((trace) => ({ ...painted(trace), visible: !hidden.has(trace.name) }));
  Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: !paper });
};

// A plot is drawn when it comes near: a page of seventy opens at once.
const drawn = new Set();
const draw = () => drawn.forEach(drawPlot);
const near = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(target);
    drawn.add(target);
    drawPlot(target);
  }
}, { rootMargin: "800px" });
for (const plot of plots) {
  plot.style.minHeight = `${figures[plot.dataset.figure].height}px`;
  near.observe(plot);
}

for (const button of document.querySelectorAll(".keys button")) {
  button.addEventListener("click", () => {
    const name = button.dataset.name;
    if (!hidden.delete(name)) hidden.add(name);
    for (const each of document.querySelectorAll(`.keys button[data-name="${name}"]`)) {
      each.setAttribute("aria-pressed", String(!hidden.has(name)));
    }
    draw();
  });
}
// A press on a verdict hides its claims.
for (const button of document.querySelectorAll(".filters button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const row of document.querySelectorAll(`tr[data-verdict="${button.dataset.verdict}"]`)) row.hidden = !shown;
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("beforeprint", () => {
  root.classList.add("paper");
  plots.forEach((plot) => drawn.add(plot));
  draw();
});
addEventListener("afterprint", () => { root.classList.remove("paper"); draw(); });
