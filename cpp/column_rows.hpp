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

// Rows that are worked at once, so that what they have in common is read once for all of them. The next ones are asked
// for meanwhile.
constexpr int kTogether = 4;

// One of each row.
template <class V, int kRows>
struct Few {
  V of[kRows];
};

// Calls f(row, count) for the first of each few of `runs` rows, count being a constant.
template <class F>
inline void each_few(Size runs, const F& f) {
  Size r = 0;
  for (; r + kTogether <= runs; r += kTogether) f(r, std::integral_constant<int, kTogether>{});
  for (; r < runs; ++r) f(r, std::integral_constant<int, 1>{});
}

// Calls make(row, count)(i, lanes) and put(row, count)(i, made, lanes) for the vectors of rows that are stored to `to`,
// several rows at a time unless their cache lines lie unevenly.
template <class R, class T, class Make, class Put>
inline void each_row_stored(const T* to, Size width, const Several& several, bool stream, const Make& make,
                            const Put& put) {
  constexpr Size L = kLanes<R>, line = 64 / sizeof(T);
  bool even = several.dense % line == 0 && reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
  Size together = width < L || (stream && !even) ? 0 : several.runs / kTogether * kTogether;
  std::integral_constant<int, kTogether> few;
  for (Size r = 0; r < together; r += kTogether) each_whole<R>(width, stream, make(r, few), put(r, few));
  std::integral_constant<int, 1> one;
  for (Size r = together; r < several.runs; ++r) {
    each_stored<R>(to + r * several.dense, width, stream, make(r, one), put(r, one));
  }
}

template <class T, class To, class R, class Scale, class Finish>
EVENORM_LOOP void standardize_rows(const T* x, To* y, Size width, Several several, Lines<R> lines, Scale scale,
                                   Finish finish, Storing how) {
  auto make = [&](Size first, auto count) {
    constexpr int kRows = decltype(count)::value;
    return [=](Size i, auto lanes) {
      Few<Vec<R>, kRows> rows;
      for (int k = 0; k < kRows; ++k) {
        Size r = first + k;
        if (kRows > 1) foresee(x + (r + kRows) * several.x + i), foresee_store(y + (r + kRows) * several.dense + i);
        Vec<R> d = lines.deviation(load<R>(x + r * several.x + i, lanes), i, lanes);
        Vec<R> xhat = lines.xhat(d, i, lanes);
        if constexpr (!std::is_same_v<R, T> && Scale::rounds) {
          if (how.round_normalized) xhat = through<T, R>(xhat);
        }
        rows.of[k] = finish.at(r * several.dense)(scale.at(r).affine(xhat, i, lanes), i, lanes);
      }
      return rows;
    };
  };
  auto put = [&](Size first, auto count) {
    constexpr int kRows = decltype(count)::value;
    return [=](Size i, const Few<Vec<R>, kRows>& rows, auto lanes) {
      for (int k = 0; k < kRows; ++k) store<To, R>(y + (first + k) * several.dense + i, rows.of[k], lanes);
    };
  };
  each_row_stored<R>(y, width, several, how.stream, make, put);
}

// The same where columns may be odd, of which there is room for one row.
template <class T, class To, class R, class Scale, class Finish>
inline void standardize_row(const T* x, To* y, Size width, const Several& several, const Slab& slab,
                            const Lines<R>& lines, const Scale& scale, const Finish& finish, Storing how) {
  auto exact = [&](Size k) {
    return exact_apply<T, To>(x[k], slab.center(k), scale.at(0), finish, k, how.round_normalized);
  };
  with_odd(lines, width, exact, [&](Size k, To value) { y[k] = value; },
           [&] { standardize_rows(x, y, width, several, lines, scale, finish, how); });
}

// Whether several rows may be worked in one call: there is scratch memory for one.
template <class T, class R>
inline bool several_at_once(const Lines<R>& lines, const Epilogue<T>& epilogue) {
  return lines.odds == 0 && !epilogue.curved();
}

template <class T, class R, class Scale>
inline void apply_rows(const T* x, T* y, Size width, const Several& several, const Slab& slab, const Lines<R>& lines,
                       const Scale& scale, const Epilogue<T>& epilogue, bool stream) {
  finished(epilogue, y, width, stream, lines.guess, [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, several, slab, lines, scale, finish, how);
  });
}

// The way back for rows.
template <class T, class R, class Scale, class Back>
inline auto with_row_way(const T* x, Size width, const Slab& slab, const Lines<R>& lines, const Scale& scale,
                         const Epilogue<T>& epilogue, const Back& back) {
  auto loop = [&](auto* to, const auto& finish, Storing how) {
    standardize_row(x, to, width, Several{}, slab, lines, scale, finish, how);
  };
  return with_way(epilogue, width, lines.guess, loop, back);
}

template <class T, class R, class Scale, class Way>
EVENORM_LOOP void pull_rows(const T* dy, const T* x, T* dx, T* dz, Size width, Several several, Lines<R> lines,
                            Scale scale, Way way, bool stream) {
  auto make = [&](Size first, auto count) {
    constexpr int kRows = decltype(count)::value;
    return [=](Size i, auto lanes) {
      Few<GradVectors<R>, kRows> rows;
      for (int k = 0; k < kRows; ++k) {
        Size r = first + k;
        if (kRows > 1) {
          if (x) foresee(x + (r + kRows) * several.x + i);
          foresee(dy + (r + kRows) * several.dy + i), foresee_store(dx + (r + kRows) * several.dense + i);
        }
        auto own = scale.at(r);
        RowLine<R, decltype(own)> line{lines, own};
        Vec<R> d = x ? line.deviation(load<R>(x + r * several.x + i, lanes), i, lanes) : Vec<R>{};
        Vec<R> back = way.at(r * several.dense)(load<R>(dy + r * several.dy + i, lanes), d, line, i, lanes);
        Vec<R> rest = load<R>(lines.push + i, lanes);
        if (x) rest = multiply_add(d, load<R>(lines.pull + i, lanes), rest);
        rows.of[k] = {line.weighed(back, rest, i, lanes), back};
      }
      return rows;
    };
  };
  auto put = [&](Size first, auto count) {
    constexpr int kRows = decltype(count)::value;
    return [=](Size i, const Few<GradVectors<R>, kRows>& rows, auto lanes) {
      for (int k = 0; k < kRows; ++k) {
        Size at = (first + k) * several.dense + i;
        if (dz) store<T, R>(dz + at, rows.of[k].dz, lanes);
        store<T, R>(dx + at, rows.of[k].dx, lanes);
      }
    };
  };
  each_row_stored<R>(dx, width, several, stream, make, put);
}

template <class T, class R, class Scale>
inline void grad_input_rows(const T* dy, const T* x, T* dx, Size width, const Several& several, const Slab& slab,
                            const Lines<R>& lines, const Scale& scale, const Epilogue<T>& epilogue, bool stream) {
  T* dz = epilogue.d_residual;
  bool both = stream && (!dz || alike(dx, dz));
  auto put = [&](Size k, const InputGradient<T>& d) {
    dx[k] = d.dx;
    if (dz) dz[k] = d.dz;
  };
  with_row_way(x, width, slab, lines, scale, epilogue, [&](const auto& way) {
    auto exact = [&](Size k) {
      return exact_grad_input(dy, x, slab.center(k), slab.pull(k), scale.at(0), epilogue, k);
    };
    with_odd(lines, width, exact, put, [&] {
      pull_rows(dy, x, dx, dz, width, several, lines, way.scale(scale), way, both);
    });
  });
}

}  // namespace evenorm::EVENORM_ISA
