// The controls: what a person chooses, as changes of the state; and the state, as what the controls show.

import { $, html } from "explorer/markup";
import { fixed, general } from "explorer/numbers";
import { NORMALIZERS, adopting, recognized } from "explorer/normalizers";
import { block, highlight } from "explorer/block";
import { layout } from "explorer/layout";
import { Pattern } from "explorer/pattern";
import { LEAST_EPS, LONGEST_AXIS, MOST_AXES } from "explorer/state";

// Parameters beyond these are shown by no field.
const MOST_FIELDS = 32;
// What an emblem shows of a normalizer: images of 4 samples, tokens of 3.
const EMBLEMS = { 3: [3, 3, 4], 4: [4, 4, 2, 2] };

/** Connect the controls. `act(changes)` changes the state, `choose(norm)` takes another normalizer, `state()` tells it. */
export function connect({ act, choose, state }) {
  emblems(choose);
  const form = $("#controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.pattern.addEventListener("input", ({ target }) =>
    act(saying(state(), { pattern: target.value, ...adopting(state(), target.value) })),
  );
  for (const name of ["affine", "history"]) {
    form.elements[name].addEventListener("input", ({ target }) => act(saying(state(), { [name]: target.value })));
  }
  form.elements.centered.addEventListener("change", ({ target }) => act(saying(state(), { centered: target.checked })));
  for (const name of ["mode", "show", "motion"]) {
    document.addEventListener("change", ({ target }) => target.name === name && act({ [name]: target.value }));
  }
  for (const name of ["mean", "spread", "differ", "updates", "shift"]) {
    $(`#${name}`).addEventListener("input", ({ target }) => act({ [name]: Number(target.value) }));
  }
  $("#eps-range").addEventListener("input", ({ target }) =>
    act({ eps: Number((10 ** Number(target.value)).toPrecision(2)) }),
  );
  typed(form.elements.eps, (value) => value >= 0 && value <= 100 && act({ eps: value }));
  const momentum = (value) => value >= 0 && value <= 1 && act({ momentum: Number(value.toPrecision(8)) });
  $("#momentum-range").addEventListener("input", ({ target }) => momentum(Number(target.value)));
  typed(form.elements.momentum, momentum);
  typed($("#decay"), (value) => momentum(1 - value));
  $("#cumulative").addEventListener("change", ({ target }) => act({ momentum: target.checked ? null : 0.1 }));
  $("#plain").addEventListener("click", () => act({ weight: null, bias: null }));
  $("#reseed").addEventListener("click", () => act({ seed: (state().seed % 9999) + 1 }));
  $("#redraw").addEventListener("click", () => act({ mates: (state().mates % 9999) + 1 }));
}

/** The state after its sentence was edited, under the name that the new sentence has. */
function saying(state, changes) {
  const said = { ...state, ...changes };
  return { ...changes, norm: recognized(said) };
}

/** A field whose number counts as soon as it is one. */
function typed(field, take) {
  field.addEventListener("input", () => {
    const value = field.value.trim() === "" ? NaN : Number(field.value);
    const taken = Number.isFinite(value) && take(value) !== false;
    field.setAttribute("aria-invalid", !taken);
  });
}

/** The normalizers as blocks to choose from. */
function emblems(choose) {
  for (const [key, { name, pattern, history, affine, shape }] of Object.entries(NORMALIZERS)) {
    const parsed = Pattern.parse(pattern);
    const small = EMBLEMS[shape.length];
    const { rows } = layout({ pattern: parsed, affine: [], history: [], chunk: null }, small);
    const picture = block(small, { size: 9 });
    const mine = rows.of[0];
    if (key !== "free") highlight(picture, (element) => rows.of[element] === mine, null);
    picture.setAttribute("aria-hidden", "true");
    const radio = html("input", { type: "radio", name: "norm", value: key });
    radio.addEventListener("change", () => choose(key));
    $("#normalizers").append(html("label", { class: "emblem" }, radio, picture, html("span", {}, name)));
  }
}

/** Put a value into a field, unless somebody is typing there. */
function put(field, value) {
  if (document.activeElement !== field || field.type === "range") field.value = value;
  if (document.activeElement !== field) field.removeAttribute("aria-invalid");
}

/** Show a state in the controls, and what its scene has to choose; a state at fault has the scene before it. */
export function show(scene, state, act) {
  const { made } = scene;
  const form = $("#controls");
  for (const radio of document.querySelectorAll('input[type="radio"]'))
    radio.checked = state[radio.name] === radio.value;
  for (const name of ["pattern", "affine", "history"]) put(form.elements[name], state[name]);
  form.elements.centered.checked = state.centered;
  $("select[name=motion]").value = state.motion;
  for (const name of ["mean", "spread", "differ", "updates", "shift"]) {
    put($(`#${name}`), state[name]);
    $(`output[for=${name}]`).textContent =
      name === "updates" ? state.updates : name === "shift" ? `${fixed(state.shift, 1)} σ` : fixed(state[name], 2);
  }
  put($("#eps-range"), Math.log10(Math.max(state.eps, LEAST_EPS)));
  $("#eps-range").setAttribute("aria-valuetext", general(state.eps));
  put(form.elements.eps, general(state.eps));
  const cumulative = state.momentum === null;
  put($("#momentum-range"), state.momentum ?? 0);
  put(form.elements.momentum, cumulative ? "" : general(state.momentum));
  put($("#decay"), cumulative ? "" : general(Number((1 - state.momentum).toPrecision(8))));
  for (const field of [$("#momentum-range"), form.elements.momentum, $("#decay")]) field.disabled = cumulative;
  $("#cumulative").checked = cumulative;
  $("#momentum").hidden = !made.history.length;
  $("#mode-help").textContent = !made.history.length
    ? "This normalizer computes the same in both."
    : scene.evaluating
      ? "The running average normalizes; the batch does not matter."
      : "The batch's own mean and biased variance normalize; the running average only watches.";
  steppers(scene, act);
  sizes(scene, act);
  parameters(scene, act);
}

/** Build a group of fields only when they are others than before, so that nobody loses the one they are in. */
function rebuilt(place, key, build) {
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...build());
}

const numberField = (attributes, take) => {
  const field = html("input", { type: "number", ...attributes });
  typed(field, take);
  return field;
};

/** A field for each axis; the first is the batch size. */
function steppers({ axes, made, state }, act) {
  const place = $("#shape");
  const open = made.pattern.hasEllipsis;
  const least = made.pattern.axes.length - (open ? 1 : 0);
  const shape = state.shape;
  // Handlers outlive the state in which they were made: they read the fields.
  const now = () => [...place.querySelectorAll("input")].map((field) => Number(field.value));
  const whole = (value) =>
    Number.isInteger(value) && value >= 1 && value <= LONGEST_AXIS ? act({ shape: now() }) : false;
  rebuilt(place, `${axes} ${open}`, () => [
    ...axes.map((name, axis) =>
      html(
        "label",
        {},
        axis === 0 && axes.length > 1 ? `batch size ${name}` : `${name}`,
        numberField({ min: 1, max: LONGEST_AXIS, value: shape[axis] }, whole),
      ),
    ),
    ...(open
      ? [
          html(
            "button",
            {
              type: "button",
              "aria-label": "one axis fewer",
              disabled: shape.length <= Math.max(least, 1),
              onclick: () => act({ shape: now().slice(0, -1) }),
            },
            "−",
          ),
          html(
            "button",
            {
              type: "button",
              "aria-label": "one axis more",
              disabled: shape.length >= MOST_AXES,
              onclick: () => act({ shape: [...now(), 2] }),
            },
            "+",
          ),
        ]
      : []),
  ]);
  place.querySelectorAll("input").forEach((field, axis) => put(field, shape[axis]));
}

/** A field for each size that the pattern names. */
function sizes({ made, state }, act) {
  const place = $("#sizes");
  const sized = made.pattern.factors.filter(({ size }) => size !== null);
  const resize = (name) => (value) => {
    if (!Number.isInteger(value) || value < 1 || value > LONGEST_AXIS) return false;
    const now = Pattern.parse($("#pattern").value);
    return act({ pattern: now.withSizes({ [name]: value }).text });
  };
  rebuilt(place, sized.map(({ name }) => name).join(), () =>
    sized.map(({ name }) =>
      html(
        "label",
        {},
        state.norm === "ghost" ? "ghost batch" : state.norm === "group" ? "groups" : name,
        numberField({ min: 1, max: LONGEST_AXIS, "data-name": name }, resize(name)),
      ),
    ),
  );
  for (const field of place.querySelectorAll("input"))
    put(field, sized.find(({ name }) => name === field.dataset.name).size);
}

/** Fields for γ and β, and what can be undone with them. */
function parameters(scene, act) {
  const { layout: lying, made, parameters: given } = scene;
  const count = made.affine.length ? lying.parameters.size : 0;
  const shown = Math.min(count, MOST_FIELDS);
  const place = $("#parameters");
  $("#affine-details").hidden = !count;
  const rest = count > shown ? ` The first ${shown} of ${count} have fields.` : "";
  $("#affine-help").textContent =
    `They lie on ${made.affine.join(" ")}: ${count} of each.${rest}${made.biasless ? " There is no β." : ""}`;
  const kinds = [["weight", "γ"], ...(made.biasless ? [] : [["bias", "β"]])];
  rebuilt(place, `${kinds} ${shown}`, () =>
    kinds.map(([kind, letter]) =>
      html(
        "div",
        { class: "fields", role: "group", "aria-label": letter },
        Array.from({ length: shown }, (_, i) =>
          html(
            "label",
            {},
            html("span", {}, letter, html("sub", {}, `${i}`)),
            numberField({ step: 0.1, "data-kind": kind }, () => act({ [kind]: values(kind) })),
          ),
        ),
      ),
    ),
  );
  const values = (kind) => [...place.querySelectorAll(`[data-kind=${kind}]`)].map((field) => Number(field.value));
  for (const [kind] of kinds) {
    place
      .querySelectorAll(`[data-kind=${kind}]`)
      .forEach((field, i) => put(field, Number(given[kind][i].toPrecision(5))));
  }
  const undo = undoing(scene);
  $("#undo").disabled = undo === null;
  $("#undo").title = undo
    ? "γ = √(σ² + ε), β = μ"
    : "Only where γ and β lie on what the statistics lie on, and there is a β.";
  $("#undo").onclick = () => act(undo);
}

/** γ = √(σ² + ε), β = μ give x back; null where they do not lie on the statistics. */
function undoing({ layout: lying, shared, statistics, made, parameters: given }) {
  if (
    !given.weight ||
    !given.bias ||
    shared.size !== lying.parameters.size ||
    shared.of.some((row, i) => row !== lying.parameters.of[i])
  )
    return null;
  return {
    weight: [...statistics.variance].map((variance) => Number(Math.sqrt(variance + made.eps).toPrecision(8))),
    bias: [...statistics.mean].map((mean) => Number(mean.toPrecision(8))),
  };
}
