// Moments of columns: a tile of rows, each column with a mean and an M2 of its own.
#pragma once

#include "moments.hpp"

namespace evenorm::EVENORM_ISA {

constexpr Size kTileRows = kLinks;

// Moments of columns, each of as many values as the others. The arrays are padded to whole vectors.
struct ColumnMoments {
  double count;
  double* mean;
  double* m2;
};

// A column for which float32 may have failed, most often one of zeros.
template <class T>
inline Moments one_column(const T* x, Size pitch, Size rows, bool centered) {
  Chunk<T> column{x, pitch, rows, 1};
  if (all_zero(column)) return {column.count(), 0, 0};
  return moments_in<double>(column, centered);
}

// Merges V neighboring vectors of columns, of at most kTileRows rows, into `to`.
template <int V, bool kCentered, class T, class Lanes>
inline void merge_strip(const T* x, Size pitch, Size rows, const ColumnMoments& to, Size column,
                        Lanes lanes) {
  using R = Real<T>;
  constexpr int L = kLanes<R>, H = kLanes<double>;
  double n = double(rows);
  Vec<R> center[V]{}, rest[V]{}, squares[V]{};
  if constexpr (kCentered) {
    for (Size r = 0; r < rows; ++r) {
      for (int v = 0; v < V; ++v) center[v] += load<R>(x + r * pitch + v * L, lanes);
    }
    for (int v = 0; v < V; ++v) center[v] *= R(1 / n);
  }
  for (Size r = 0; r < rows; ++r) {
    for (int v = 0; v < V; ++v) {
      Vec<R> d = load<R>(x + r * pitch + v * L, lanes) - center[v];
      if constexpr (kCentered) rest[v] += d;
      squares[v] += d * d;
    }
  }
  double share = n / (to.count + n), weight = to.count * share;
  for (int v = 0; v < V; ++v) {
    for (int h = 0; h < kHalves<R>; ++h) {
      Vec<double> correction = half(rest[v], h), sum = half(squares[v], h);
      Vec<double> mean = half(center[v], h) + correction / n;
      Vec<double> m2 = sum - correction * correction / n;
      m2 = m2 < 0.0 ? Vec<double>{} : m2;
      Size first = v * L + h * H;
      if constexpr (std::is_same_v<R, float>) {
        Bits<double> sound = (sum >= kSmallestSquare * n) & (sum <= 1e300);
        for (int k = 0; k < H; ++k) {
          if constexpr (std::is_same_v<Lanes, Part>) {
            if (h * H + k >= lanes.count) break;
          }
          if (sound[k]) continue;
          Moments m = one_column(x + first + k, pitch, rows, kCentered);
          mean[k] = m.mean;
          m2[k] = m.m2;
        }
      }
      double* to_mean = to.mean + column + first;
      double* to_m2 = to.m2 + column + first;
      Vec<double> old = read<Vec<double>>(to_mean), delta = mean - old;
      write(to_mean, old + delta * share);
      write(to_m2, read<Vec<double>>(to_m2) + m2 + delta * delta * weight);
    }
  }
}

template <bool kCentered, class T>
inline void merge_tile(const T* x, Size pitch, Size rows, Size width, ColumnMoments& to) {
  constexpr int L = kLanes<Real<T>>;
  Size c = 0;
  for (; c + 4 * L <= width; c += 4 * L) {
    merge_strip<4, kCentered>(x + c, pitch, rows, to, c, Full{});
  }
  for (; c + L <= width; c += L) merge_strip<1, kCentered>(x + c, pitch, rows, to, c, Full{});
  if (c < width) {
    merge_strip<1, kCentered>(x + c, pitch, rows, to, c, Part{int(width - c)});
  }
  to.count += double(rows);
}

template <class T>
inline void merge_rows(const T* x, Size pitch, Size rows, Size width, bool centered,
                       ColumnMoments& to) {
  for (Size r = 0; r < rows; r += kTileRows) {
    Size n = rows - r < kTileRows ? rows - r : kTileRows;
    if (centered) {
      merge_tile<true>(x + r * pitch, pitch, n, width, to);
    } else {
      merge_tile<false>(x + r * pitch, pitch, n, width, to);
    }
  }
}

// Merges columns with columns.
inline void merge_columns(const ColumnMoments& from, Size width, ColumnMoments& to) {
  double n = to.count + from.count, share = from.count / n, weight = to.count * share;
  for (Size k = 0; k < width; ++k) {
    double delta = from.mean[k] - to.mean[k];
    to.mean[k] += delta * share;
    to.m2[k] += from.m2[k] + delta * delta * weight;
  }
  to.count = n;
}

}  // namespace evenorm::EVENORM_ISA
