// The layout: for every element of a tensor, which statistic, which parameter, which entry of the history is its own.

/** For each element, in memory order, its index along some parts of a binding; `size` is how many indices there are. */
export function indexed(binding, positions) {
  const total = binding.shape.reduce((product, size) => product * size, 1);
  const of = new Int32Array(total);
  let size = 1;
  for (const position of [...positions].reverse()) {
    const length = binding.shape[position];
    const stride = binding.shape.slice(position + 1).reduce((product, part) => product * part, 1);
    for (let i = 0; i < total; i++) of[i] += size * (Math.floor(i / stride) % length);
    size *= length;
  }
  return { of, size };
}

/** The index along named axes. Axes that the names do not need are not split, so that a short ghost batch fits. */
function named(pattern, names, shape) {
  const binding = pattern.keeping(names).bind(shape);
  return indexed(
    binding,
    names.map((name) => binding.names.indexOf(name)),
  );
}

/** The statistics of each element; a ghost batch's last chunk may be short, and then has its own. */
function rows(normalizer, shape) {
  const { pattern, chunk } = normalizer;
  const tail = chunk ? shape[0] % chunk.size : 0;
  if (!tail) {
    const binding = pattern.bind(shape);
    return indexed(binding, binding.kept);
  }
  const rest = shape.slice(1);
  const last = rows({ pattern: pattern.withSizes({ [chunk.name]: tail }) }, [tail, ...rest]);
  const whole = shape[0] > tail ? rows(normalizer, [shape[0] - tail, ...rest]) : { of: [], size: 0 };
  const moved = last.of.map((row) => row + whole.size);
  return { of: Int32Array.from([...whole.of, ...moved]), size: whole.size + last.size };
}

/** How a normalizer lies on a shape: `rows`, `parameters` and `entries`, each {of, size}, and the values per row. */
export function layout(normalizer, shape) {
  const lying = {
    rows: rows(normalizer, shape),
    parameters: named(normalizer.pattern, normalizer.affine, shape),
    entries: named(normalizer.pattern, normalizer.history, shape),
  };
  return { ...lying, counts: counted(lying.rows) };
}

/** How many elements each index has. */
export function counted({ of, size }) {
  const counts = new Float64Array(size);
  for (const index of of) counts[index] += 1;
  return counts;
}
