// Numbers as text.

/** A number for reading: as many digits behind the point for all, a true minus, no minus zero. */
export function fixed(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "undefined";
  const far = Math.abs(value) >= 10 ** 5;
  const text = far ? value.toExponential(digits - 1) : value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replaceAll("-", "−");
}

/** A number for code, as Python's {:g} writes it. */
export function general(value) {
  const rounded = Number(value.toPrecision(6));
  if (rounded === 0) return "0";
  const exponent = Number(rounded.toExponential().split("e")[1]);
  if (exponent >= -4 && exponent < 6) return `${rounded}`;
  const [digits, power] = rounded.toExponential().split("e");
  return `${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}

/** 'A' … 'Z', 'AA', 'AB' …: names for groups. */
export function letters(index) {
  return (index >= 26 ? letters(Math.floor(index / 26) - 1) : "") + String.fromCharCode(65 + (index % 26));
}

/** 1 element, 2 elements. */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
