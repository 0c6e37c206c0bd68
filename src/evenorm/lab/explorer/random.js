// Numbers that look random and are the same on every visit: a view that is shared shows the same tensor.

/** A generator of numbers from 0 to 1 from any list of numbers (splitmix32). */
function uniform(...key) {
  let state = 0x9e3779b9;
  const next = () => {
    state = (state + 0x9e3779b9) | 0;
    let t = state ^ (state >>> 16);
    t = Math.imul(t, 0x21f0aaad);
    t ^= t >>> 15;
    t = Math.imul(t, 0x735a2d97);
    return ((t ^ (t >>> 15)) >>> 0) / 4294967296;
  };
  for (const part of key) {
    state = (state ^ Math.imul(part + 1, 0x85ebca6b)) | 0;
    next();
  }
  return next;
}

/** `count` draws of the standard normal distribution (Box & Muller). */
export function normals(count, ...key) {
  const next = uniform(...key);
  return Float64Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
  );
}
