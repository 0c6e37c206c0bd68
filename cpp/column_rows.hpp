// One row of many columns, each with a statistic of its own: apply and the input's gradient.
#pragma once

#include "gradient.hpp"

namespace evenorm::EVENORM_ISA {

// What is known of a block of columns, in float64, laid out in memory that threads share.
struct Slab {
  Size room;
  double *partial, *mean, *rstd, *c1, *c2;
  Center* centers;  // of groups whose runs are worked one by one
  Pull* pulls;

  static Size rounded(Size width) { return (width + 15) / 16 * 16; }
  static Size doubles(Size width, Size pieces) { return rounded(width) * (4 + 2 * pieces) + rounded(width) / 4 + 16; }

  Slab(double* memory, Size width, Size pieces) : room(rounded(width)) {
    auto take = [&](Size count) {
      double* taken = memory;
      memory += count;
      return taken;
    };
    partial = take(2 * pieces * room);
    mean = take(room), rstd = take(room), c1 = take(room), c2 = take(room);
    centers = reinterpret_cast<Center*>(take(room / 8));
    pulls = reinterpret_cast<Pull*>(take(room / 8));
  }

  Center center(Size i) const { return {mean[i], rstd[i]}; }
  Pull pull(Size i) const { return {c1[i], c2[i]}; }
};

// What one thread works these columns with, in R: d = x - high, z = d * slope + level, and on the way back
// dx = slope * dz + (d * pull + push). Odd columns are those that float32 cannot hold.
template <class R>
struct Lines {
  Size room;
  R *high, *slope, *level, *pull, *push, *guess, *chain1, *chain2;
  Size* odd;
  double* saved;  // room for two numbers of each odd column
  Size odds = 0;

  static Size doubles(Size width) { return Slab::rounded(width) * Size(sizeof(R) + 3); }

  Lines(double* memory, Size width) : room(Slab::rounded(width)) {
    R* reals = reinterpret_cast<R*>(memory);
    for (R** array : {&high, &slope, &level, &pull, &push, &guess, &chain1, &chain2}) {
      *array = reals;
      reals += room;
    }
    odd = reinterpret_cast<Size*>(memory + room * Size(sizeof(R)));
    saved = memory + room * Size(sizeof(R) + 1);
  }

  // For sums of deviations: what is high alone.
  void prepare_deviations(const Slab& slab, Size width) {
    for (Size k = 0; k < width; ++k) high[k] = R(slab.mean[k]);
    list_odd(width, [&](Size k) { return slab.center(k).narrow(); });
  }

  // Slope and level are those of z where weights and biases are folded in, those of xhat where they are not.
  void prepare(const Slab& slab, Size width, const Folded<R>& scale) {
    prepare_scaled(slab, width, scale, [](Size) { return true; });
  }

  // The same, and what is pulled towards.
  void prepare_back(const Slab& slab, Size width, const Folded<R>& scale) {
    prepare_scaled(slab, width, scale, [&](Size k) { return slab.pull(k).narrow(slab.center(k)); });
    for (Size k = 0; k < width; ++k) pull[k] = R(slab.pull(k).slope(slab.center(k)));
    for (Size k = 0; k < width; ++k) push[k] = R(slab.pull(k).level(slab.center(k), double(high[k])));
  }

  template <class Lanes>
  Vec<R> deviation(Vec<R> x, Size i, Lanes lanes) const {
    return x - load<R>(high + i, lanes);
  }
  template <class Lanes>
  Vec<R> xhat(Vec<R> d, Size i, Lanes lanes) const {
    return multiply_add(d, load<R>(slope + i, lanes), load<R>(level + i, lanes));
  }

  void clear_chains() const {
    clear(chain1, room);
    clear(chain2, room);
  }

 private:
  template <class Narrow>
  void prepare_scaled(const Slab& slab, Size width, const Folded<R>& scale, const Narrow& narrow) {
    auto each = [&](const auto& weight, const auto& bias) {
      for (Size k = 0; k < width; ++k) {
        R near = R(slab.mean[k]);
        double weighed = slab.rstd[k] * weight(k);
        high[k] = near;
        slope[k] = R(weighed);
        level[k] = R((double(near) - slab.mean[k]) * weighed + bias(k));
      }
      list_odd(width, [&](Size k) {
        return slab.center(k).narrow() & Uniform<double>{weight(k), bias(k)}.narrow() & narrow(k);
      });
    };
    // A loop for each, since what asks for every column is slow.
    auto weight = [&](Size k) { return double(scale.w[k]); };
    auto bias = [&](Size k) { return double(scale.b[k]); };
    auto one = [](Size) { return 1.0; };
    auto zero = [](Size) { return 0.0; };
    if (scale.w) {
      scale.b ? each(weight, bias) : each(weight, zero);
    } else {
      scale.b ? each(one, bias) : each(one, zero);
    }
  }

  template <class Narrow>
  void list_odd(Size width, const Narrow& narrow) {
    Size wide = 0;
    for (Size k = 0; k < width; ++k) wide += !narrow(k);
    odds = 0;
    for (Size k = 0; wide && k < width; ++k) {
      if (!narrow(k)) odd[odds++] = k;
    }
  }
};

// z of a row's deviations.
template <class R, class Scale>
struct RowLine {
  Lines<R> lines;
  Scale scale;

  template <class Lanes>
  Vec<R> deviation(Vec<R> x, Size i, Lanes lanes) const {
    return lines.deviation(x, i, lanes);
  }
  template <class Lanes>
  Vec<R> z(Vec<R> d, Size i, Lanes lanes) const {
    return scale.affine(lines.xhat(d, i, lanes), i, lanes);
  }
  template <class Lanes>
  Vec<R> weighed(Vec<R> dz, Vec<R> rest, Size i, Lanes lanes) const {
    return multiply_add(scale.scaled(dz, i, lanes), load<R>(lines.slope + i, lanes), rest);
  }
};

// Chains are padded to whole vectors.
template <class R>
inline void add_to(R* chain, Vec<R> v) {
  write(chain, read<Vec<R>>(chain) + v);
}
template <class R>
inline void add_to(R* chain, Vec<R> a, Vec<R> b) {
  write(chain, multiply_add(a, b, read<Vec<R>>(chain)));
}

// Works a row in R and its odd columns in float64. These are computed first, since the row may be
// overwritten, and written last.
template <class R, class Exact, class Put, class Fast>
inline void with_odd(const Lines<R>& lines, Size width, const Exact& exact, const Put& put,
                     const Fast& fast) {
  if (lines.odds == 0) return fast();
  auto* saved = reinterpret_cast<decltype(exact(0))*>(lines.saved);
  for (Size k = 0; k < lines.odds; ++k) {
    if (lines.odd[k] < width) saved[k] = exact(lines.odd[k]);
  }
  fast();
  for (Size k = 0; k < lines.odds; ++k) {
    if (lines.odd[k] < width) put(lines.odd[k], saved[k]);
  }
}

template <class T, class To, class R, class Scale, class Finish>
EVENORM_LOOP void standardize_row(const T* x, To* y, Size width, const Slab& slab, Lines<R> lines, Scale scale,
                                  Finish finish, Storing how) {
  auto exact = [&](Size k) {
    return exact_apply<T, To>(x[k], slab.center(k), scale, finish, k, how.round_normalized);
  };
  with_odd(lines, width, exact, [&](Size k, To value) { y[k] = value; },
           [&] { apply_line(x, y, width, RowLine<R, Scale>{lines, scale}, lines, scale, finish, how); });
}

template <class T, class R, class Scale>
inline void apply_row(const T* x, T* y, Size width, const Slab& slab, const Lines<R>& lines, const Scale& scale,
                      const Epilogue<T>& epilogue, bool stream) {
  finished(epilogue, y, width, stream, lines.guess, [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, slab, lines, scale, finish, how);
  });
}

// The way back for a row.
template <class T, class R, class Scale, class Back>
inline auto with_row_way(const T* x, Size width, const Slab& slab, const Lines<R>& lines, const Scale& scale,
                         const Epilogue<T>& epilogue, const Back& back) {
  auto loop = [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, slab, lines, scale, finish, how);
  };
  return with_way(epilogue, width, lines.guess, loop, back);
}

template <class T, class R, class Scale, class Way>
EVENORM_LOOP void pull_row(const T* dy, const T* x, T* dx, T* dz, Size width, Lines<R> lines,
                           Scale scale, Way way, bool stream) {
  RowLine<R, Scale> line{lines, scale};
  each_stored<R>(dx, width, stream, [&](Size i, auto lanes) {
    Vec<R> d = x ? line.deviation(load<R>(x + i, lanes), i, lanes) : Vec<R>{};
    Vec<R> dz = way(load<R>(dy + i, lanes), d, line, i, lanes), rest = load<R>(lines.push + i, lanes);
    if (x) rest = multiply_add(d, load<R>(lines.pull + i, lanes), rest);
    return GradVectors<R>{line.weighed(dz, rest, i, lanes), dz};
  }, put_gradients<R>(dx, dz));
}

template <class T, class R, class Scale>
inline void grad_input_row(const T* dy, const T* x, T* dx, Size width, const Slab& slab, const Lines<R>& lines,
                           const Scale& scale, const Epilogue<T>& epilogue, bool stream) {
  T* dz = epilogue.d_residual;
  bool both = stream && (!dz || alike(dx, dz));
  auto put = [&](Size k, const InputGradient<T>& d) {
    dx[k] = d.dx;
    if (dz) dz[k] = d.dz;
  };
  with_row_way(x, width, slab, lines, scale, epilogue, [&](const auto& way) {
    auto exact = [&](Size k) {
      return exact_grad_input(dy, x, slab.center(k), slab.pull(k), scale, epilogue, k);
    };
    with_odd(lines, width, exact, put, [&] {
      pull_row(dy, x, dx, dz, width, lines, way.scale(scale), way, both);
    });
  });
}

}  // namespace evenorm::EVENORM_ISA
