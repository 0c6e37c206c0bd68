// Sums of the gradient along dense runs.
#pragma once

#include <array>
#include <utility>

#include "apply.hpp"
#include "entries.hpp"
#include "total.hpp"

namespace evenorm::EVENORM_ISA {

// Sums of w*dz and w*dz*xhat.
struct GradSums {
  double plain = 0, normalized = 0;

  void add(const GradSums& other, double scale = 1) {
    plain += scale * other.plain;
    normalized += scale * other.normalized;
  }
  bool finite() const { return std::fabs(plain) <= 1e300 && std::fabs(normalized) <= 1e300; }
};

// What no sum in float32 is finite with.
constexpr GradSums kUnsound{INFINITY, INFINITY};

// Sums of dz and dz*d as those of dz and dz*xhat.
template <class R>
inline GradSums normalized_sums(const Center& center, double plain, double deviated) {
  return {plain, center.rstd * (deviated + Deviation<R>::rest(center) * plain)};
}

// Sums along runs of one center and one scale, of dz alone.
template <class T, class Scale, class Way>
EVENORM_LOOP GradSums grad_sums_in(const T* dy, const T* x, Size n, Several several,
                                   const Center& center, Scale scale, Way way) {
  using R = Real<T>;
  Line<R, Scale> line(center, scale);
  Total<R> plain, deviated;
  each_link<R>(
      several.runs, n,
      [&](Size r, Size i, auto lanes, int chain) {
        if (chain == 0) ahead(x + r * several.x + i), ahead(dy + r * several.dy + i);
        Vec<R> d = line.deviation(load<R>(x + r * several.x + i, lanes), i, lanes);
        Vec<R> dz = load<R>(dy + r * several.dy + i, lanes);
        dz = keep<R>(way.at(r * several.dense)(dz, d, line, i, lanes), lanes);
        plain.add(chain, dz);
        deviated.add(chain, dz, d);
      },
      [&] { plain.flush(), deviated.flush(); });
  return normalized_sums<R>(center, plain.value(), deviated.value());
}

// The same of each run for itself, where dz is dy. What float32 cannot hold is unsound.
template <class T>
EVENORM_LOOP void grad_sums_of(const T* dy, const T* x, Size n, Several several, const Center* centers,
                               GradSums* sums) {
  using R = Real<T>;
  for (Size r = 0; r < several.runs; ++r, x += several.x, dy += several.dy) {
    const Center& center = centers[r * several.center];
    Standardize<R> standardize(center);
    Total<R> plain, deviated;
    each_link<R>(
        n,
        [&](Size i, auto lanes, int chain) {
          if (chain == 0) ahead(x + i), ahead(dy + i);
          Vec<R> d = standardize.deviation(load<R>(x + i, lanes), i, lanes);
          Vec<R> dz = keep<R>(load<R>(dy + i, lanes), lanes);
          plain.add(chain, dz);
          deviated.add(chain, dz, d);
        },
        [&] { plain.flush(), deviated.flush(); });
    sums[r] = normalized_sums<R>(center, plain.value(), deviated.value());
    if (!center.narrow()) sums[r] = kUnsound;
  }
}

// One row of the sums by element.
template <class R, class Scale>
struct LinkedRow {
  Line<R, Scale> line;
  Total<R, 1> plain{}, normalized{};

  LinkedRow(const Center& center, const Scale& scale) : line(center, scale) {}

  // w*dz added to the row's sums, dz*xhat and dz to those of the elements.
  template <bool kAdd, class T, class Way, class Lanes>
  void add(const T* dy, const T* x, Size i, Lanes lanes, const Way& way, Vec<R> w, Vec<R>& dw, Vec<R>& db) {
    Vec<R> d = line.deviation(load<R>(x + i, lanes), i, lanes), xhat = line.xhat(d, i, lanes);
    Vec<R> dz = keep<R>(way(load<R>(dy + i, lanes), d, line, i, lanes), lanes);
    if constexpr (kAdd) {
      dw = multiply_add(dz, xhat, dw);
      db += dz;
    }
    dz *= w;
    plain.add(0, dz);
    normalized.add(0, dz, xhat);
  }
  void flush() { plain.flush(), normalized.flush(); }
  GradSums value() const { return {plain.value(), normalized.value()}; }
};

// Rows that share the way to the elements' chains. Four, where they begin a multiple of 4 KiB apart, would drive each
// other out of a first cache of eight ways.
constexpr int kLinkedRows = 2;

template <class Row, class Make, std::size_t... k>
inline std::array<Row, sizeof...(k)> rows_of(const Make& make, std::index_sequence<k...>) {
  return {make(k)...};
}

// Sums along each run, of w*dz, and on the way dz*xhat and dz of all of them added element by element to
// `chains`, which are padded to whole vectors. A run that float32 cannot hold is left out, and unsound.
template <bool kAdd, class T, class Scale, class Way>
EVENORM_LOOP void grad_sums_in(const T* dy, const T* x, Size n, Several several, const Center* centers,
                               Scale scale, EntryChains<Real<T>> chains, Way way, GradSums* sums) {
  using R = Real<T>;
  R* dw = chains.dw;
  R* db = chains.db;
  bool fresh = kAdd && chains.fresh;
  auto add_rows = [&](Size first, auto count) {
    constexpr int kRows = count.value;
    auto rows = rows_of<LinkedRow<R, Scale>>(
        [&](Size k) { return LinkedRow<R, Scale>(centers[(first + k) * several.center], scale); },
        std::make_index_sequence<kRows>{});
    const T* x0 = x + first * several.x;
    const T* dy0 = dy + first * several.dy;
    Way way0 = way.at(first * several.dense);
    Size next = kRows * (1 + kAhead / (kRows * n * Size(sizeof(T))));
    constexpr Size block = Size{kLanes<R>} * kLinks;
    Bits<R> kept = Bits<R>{} - (fresh ? 0 : 1);
    fresh = false;
    auto held = [&](const R* chain) { return reinterpret_cast<Vec<R>>(read<Bits<R>>(chain) & kept); };
    for (Size start = 0; start < n; start += block) {
      each_vector<R>(n - start < block ? n - start : block, [&](Size k, auto lanes) {
        Size i = start + k;
        Vec<R> w = scale.weight(i, lanes), dw_here{}, db_here{};
        if constexpr (kAdd) dw_here = held(dw + i), db_here = held(db + i);
        for (int r = 0; r < kRows; ++r) {
          if (kRows > 1) foresee(x0 + (r + next) * several.x + i), foresee(dy0 + (r + next) * several.dy + i);
          rows[r].template add<kAdd>(dy0 + r * several.dy, x0 + r * several.x, i, lanes, way0.at(r * several.dense), w,
                                     dw_here, db_here);
        }
        if constexpr (kAdd) write(dw + i, dw_here), write(db + i, db_here);
      });
      for (auto& row : rows) row.flush();
    }
    for (int r = 0; r < kRows; ++r) sums[first + r] = rows[r].value();
  };
  auto narrow = [&](Size first, Size count) {
    bool all = first + count <= several.runs;
    for (Size r = first; all && r < first + count; ++r) all = centers[r * several.center].narrow();
    return all;
  };
  for (Size r = 0; r < several.runs;) {
    if (narrow(r, kLinkedRows)) {
      add_rows(r, std::integral_constant<int, kLinkedRows>{});
      r += kLinkedRows;
      continue;
    }
    sums[r] = kUnsound;
    if (narrow(r, 1)) add_rows(r, std::integral_constant<int, 1>{});
    ++r;
  }
  if (!fresh) return;
  each_vector<R>(n, [&](Size i, auto) { write(dw + i, Vec<R>{}), write(db + i, Vec<R>{}); });
}

// In float64, one element at a time; put(i, dz*xhat, dz) takes what belongs to an element.
template <class T, class Scale, class Put>
inline GradSums exact_grad_sums(const T* dy, const T* x, Size n, const Center& center,
                                const Scale& scale, const Epilogue<T>& epilogue, const Put& put) {
  GradSums sum;
  for (Size i = 0; i < n; ++i) {
    double xhat = center.xhat(double(scalar(x[i])));
    double d = epilogue.dz(double(scalar(dy[i])), xhat, scale, i);
    sum.add({d, d * xhat}, put(i, d * xhat, d));
  }
  return sum;
}

}  // namespace evenorm::EVENORM_ISA
