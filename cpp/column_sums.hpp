// The backward sums of columns: chains of rows in R, flushed into float64.
#pragma once

#include "column_rows.hpp"
#include "gradient_sums.hpp"

namespace evenorm::EVENORM_ISA {

// Adds dz and dz*d of a row to the chains.
template <class T, class R, class Scale, class Way>
EVENORM_LOOP void add_row(const T* dy, const T* x, Size width, Lines<R> lines, Scale scale, Way way) {
  RowLine<R, Scale> line{lines, scale};
  each_vector<R>(width, [&](Size i, auto lanes) {
    Vec<R> d = keep<R>(line.deviation(load<R>(x + i, lanes), i, lanes), lanes);
    Vec<R> dz = way(load<R>(dy + i, lanes), d, line, i, lanes);
    add_to<R>(lines.chain1 + i, dz);
    add_to<R>(lines.chain2 + i, dz, d);
  });
}

// The same of several rows, four at a time.
template <class T, class R, class Scale, class Way>
EVENORM_LOOP void add_rows(const T* dy, const T* x, Size width, Several several, Lines<R> lines, Scale scale,
                           Way way) {
  RowLine<R, Scale> line{lines, scale};
  each_few(several.runs, [&](Size first, auto count) {
    each_vector<R>(width, [&](Size i, auto lanes) {
      Vec<R> sum1 = read<Vec<R>>(lines.chain1 + i), sum2 = read<Vec<R>>(lines.chain2 + i);
      for (Size k = 0; k < count.value; ++k) {
        Size r = first + k;
        if (count.value > 1) foresee(x + (r + kTogether) * several.x + i), foresee(dy + (r + kTogether) * several.dy + i);
        Vec<R> d = keep<R>(line.deviation(load<R>(x + r * several.x + i, lanes), i, lanes), lanes);
        Vec<R> dz = way.at(r * several.dense)(load<R>(dy + r * several.dy + i, lanes), d, line, i, lanes);
        sum1 += dz;
        sum2 = multiply_add(dz, d, sum2);
      }
      write(lines.chain1 + i, sum1);
      write(lines.chain2 + i, sum2);
    });
  });
}

// A row's own sums of dz and dz*xhat, on the way to those of its columns.
template <class R>
struct WeightedRow {
  Total<R, 1> plain{}, normalized{};

  void add(Vec<R> dz, Vec<R> d, Vec<R> xhat, R w, Vec<R>& sum1, Vec<R>& sum2) {
    Vec<R> weighed = dz * splat<R>(w);
    sum1 += weighed;
    sum2 = multiply_add(weighed, d, sum2);
    plain.add(0, dz);
    normalized.add(0, dz, xhat);
  }
  void flush() { plain.flush(), normalized.flush(); }
  GradSums value() const { return {plain.value(), normalized.value()}; }
};

// Adds w*dz and w*dz*d of rows that have a weight each, where dz is dy; `sums` are the rows' of dz and dz*xhat, which
// may be infinite.
template <class T, class R>
EVENORM_LOOP void add_weighted_rows(const T* dy, const T* x, Size width, Several several, Lines<R> lines, const R* w,
                                    GradSums* sums) {
  constexpr Size block = Size{kLanes<R>} * kLinks;
  each_few(several.runs, [&](Size first, auto count) {
    constexpr int kRows = decltype(count)::value;
    WeightedRow<R> rows[kRows];
    for (Size start = 0; start < width; start += block) {
      each_vector<R>(width - start < block ? width - start : block, [&](Size from, auto lanes) {
        Size i = start + from;
        Vec<R> sum1 = read<Vec<R>>(lines.chain1 + i), sum2 = read<Vec<R>>(lines.chain2 + i);
        for (int k = 0; k < kRows; ++k) {
          Size at_x = (first + k) * several.x + i, at_dy = (first + k) * several.dy + i;
          if (kRows > 1) foresee(x + at_x + kRows * several.x), foresee(dy + at_dy + kRows * several.dy);
          Vec<R> d = keep<R>(lines.deviation(load<R>(x + at_x, lanes), i, lanes), lanes);
          Vec<R> dz = keep<R>(load<R>(dy + at_dy, lanes), lanes);
          rows[k].add(dz, d, lines.xhat(d, i, lanes), w[first + k], sum1, sum2);
        }
        write(lines.chain1 + i, sum1);
        write(lines.chain2 + i, sum2);
      });
      for (WeightedRow<R>& row : rows) row.flush();
    }
    for (int k = 0; k < kRows; ++k) sums[first + k] = rows[k].value();
  });
}

// Adds w*dz and w*dz*d; returns the row's sums of dz and dz*xhat, which may be infinite.
template <class T, class R, class Way>
EVENORM_LOOP GradSums add_weighted_row(const T* dy, const T* x, Size width, Lines<R> lines, Uniform<R> scale,
                                       Way way) {
  RowLine<R, Uniform<R>> line{lines, scale};
  Total<R> plain, normalized;
  each_link<R>(
      width,
      [&](Size i, auto lanes, int chain) {
        Vec<R> d = line.deviation(load<R>(x + i, lanes), i, lanes);
        Vec<R> dz = keep<R>(way(load<R>(dy + i, lanes), d, line, i, lanes), lanes);
        Vec<R> weighed = dz * splat<R>(scale.w);
        add_to<R>(lines.chain1 + i, weighed);
        add_to<R>(lines.chain2 + i, weighed, d);
        plain.add(chain, dz);
        normalized.add(chain, dz, lines.xhat(d, i, lanes));
      },
      [&] { plain.flush(), normalized.flush(); });
  return {plain.value(), normalized.value()};
}

// dz and dz*xhat of a column in float64.
template <class T, class Scale>
inline GradSums exact_terms(const T* dy, const T* x, Size k, const Slab& slab, const Scale& scale,
                            const Epilogue<T>& epilogue) {
  double xhat = slab.center(k).xhat(double(scalar(x[k])));
  double d = epilogue.dz(double(scalar(dy[k])), xhat, scale, k);
  return {d, d * xhat};
}

template <class T, class Scale>
inline GradSums exact_row(const T* dy, const T* x, Size width, const Slab& slab, const Scale& scale,
                          const Epilogue<T>& epilogue) {
  GradSums sum;
  for (Size k = 0; k < width; ++k) sum.add(exact_terms(dy, x, k, slab, scale, epilogue));
  return sum;
}

// The sums of a row of one weight, in float64 where float32 may have failed.
template <class T, class R>
inline GradSums add_uniform_row(const T* dy, const T* x, Size width, const Slab& slab, const Lines<R>& lines,
                                const Uniform<R>& scale, const Epilogue<T>& epilogue) {
  GradSums sum = with_row_way(x, width, slab, lines, scale, epilogue, [&](const auto& way) {
    return add_weighted_row(dy, x, width, lines, scale, way);
  });
  if (lines.odds == 0 && sum.finite()) return sum;
  return exact_row(dy, x, width, slab, scale, epilogue);
}

// Adds the chains to float64 sums of dz and dz*xhat; exact(column) where a chain overflowed or the column is odd.
template <class R, class Exact>
inline void flush_chains(Size width, const Slab& slab, const Lines<R>& lines, double* plain, double* normalized,
                         const Exact& exact) {
  const R* chain1 = lines.chain1;
  const R* chain2 = lines.chain2;
  auto sums = [&](Size k) {
    double low = double(lines.high[k]) - slab.mean[k];
    return GradSums{double(chain1[k]), slab.rstd[k] * (double(chain2[k]) + low * double(chain1[k]))};
  };
  Size wrong = lines.odds;
  for (Size k = 0; k < width; ++k) wrong += !(chain1[k] - chain1[k] == 0);
  for (Size k = 0; k < width; ++k) wrong += !(chain2[k] - chain2[k] == 0);
  if (wrong == 0) {
    for (Size k = 0; k < width; ++k) plain[k] += double(chain1[k]);
    for (Size k = 0; k < width; ++k) normalized[k] += sums(k).normalized;
    return;
  }
  for (Size k = 0, next = 0; k < width; ++k) {
    bool odd = next < lines.odds && lines.odd[next] == k;
    next += odd;
    GradSums sum = sums(k);
    if (odd || !sum.finite()) sum = exact(k);
    plain[k] += sum.plain;
    normalized[k] += sum.normalized;
  }
}

}  // namespace evenorm::EVENORM_ISA
