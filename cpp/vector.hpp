// Vectors of the instruction set for which this text is compiled, in the compiler's own vector types.
#pragma once

#include <cstdint>
#include <cstring>

#include "plan.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// A loop over vectors: all that it calls becomes part of it, and it of nothing. Not so where a sanitizer
// wraps every load, since compilation would take an hour.
#if defined(__SANITIZE_ADDRESS__)
#define EVENORM_LOOP
#else
#define EVENORM_LOOP __attribute__((flatten, noinline))
#endif

namespace evenorm::EVENORM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Whether a part of a vector is stored as fast as all of it.
constexpr bool kMaskedStores = kVectorBytes == 64;

template <class R>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t bits __attribute__((vector_size(kVectorBytes)));
};

template <class R>
using Vec = typename VectorOf<R>::type;
template <class R>
using Bits = typename VectorOf<R>::bits;
template <class R>
constexpr int kLanes = kVectorBytes / int(sizeof(R));

// a * b + c, rounded once where the instruction set can. Nothing else is contracted, since a compiler would do
// so in one copy of a loop and not in the other, and a row's bits would depend on where it lies.
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// Which lanes of a vector are meant: all of them, the first few, or the last few, where the others came before.
struct Full {};
struct Part {
  int count;
};
struct Rest {
  int count;
};
// All lanes, and what is stored goes past the caches.
struct Streamed : Full {};

template <class R>
inline Vec<R> splat(R value) {
  return value - Vec<R>{};  // 0 + value would lose the sign of -0
}

// Asks for what will be read, or stored, soon: into the second cache. Processors foresee one stream that is long, not
// several short rows side by side, and nothing beyond a page.
template <class T>
inline void foresee(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
template <class T>
inline void foresee_store(const T* p) {
  __builtin_prefetch(p, 1, 2);
}

// How far on, in bytes: what comes from memory takes as long as a loop takes for this.
constexpr Size kAhead = 2048;

// The same for a loop that takes four vectors at a time.
template <class T>
inline void ahead(const T* p) {
  auto bytes = reinterpret_cast<const char*>(p) + kAhead;
  for (int line = 0; line < 4 * kVectorBytes * int(sizeof(T)) / 4; line += 64) foresee(bytes + line);
}

// The same for one long stream, which processors with AVX-512 foresee.
template <class T>
inline void ahead_alone(const T* p) {
  if (kVectorBytes < 64) ahead(p);
}

template <class V>
inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void write(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <class V>
inline void clear(V* values, Size n) {
  if (n > 0) std::memset(static_cast<void*>(values), 0, std::size_t(n) * sizeof(V));
}

template <class R>
inline Bits<R> lane_numbers() {
  Bits<R> v;
  for (int k = 0; k < kLanes<R>; ++k) v[k] = k;
  return v;
}

template <class R>
inline Vec<R> keep(Vec<R> v, Full) {
  return v;
}

// Zero outside the lanes that are meant.
template <class R>
inline Vec<R> keep(Vec<R> v, Part lanes) {
  Bits<R> inside = lane_numbers<R>() < (Bits<R>{} + lanes.count);
  return reinterpret_cast<Vec<R>>(reinterpret_cast<Bits<R>>(v) & inside);
}

template <class R>
inline Vec<R> keep(Vec<R> v, Rest lanes) {
  Bits<R> inside = lane_numbers<R>() >= (Bits<R>{} + (kLanes<R> - lanes.count));
  return reinterpret_cast<Vec<R>>(reinterpret_cast<Bits<R>>(v) & inside);
}

inline Vec<double> low_half(Vec<float> v) {
#if defined(__AVX512F__)
  auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  return _mm512_maskz_cvtps_pd(0xff, half);
#elif defined(__AVX__)
  return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
  return Vec<double>{v[0], v[1]};
#endif
}

inline Vec<double> high_half(Vec<float> v) {
#if defined(__AVX512F__)
  auto half = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_maskz_cvtps_pd(0xff, half);
#elif defined(__AVX__)
  return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
  return Vec<double>{v[2], v[3]};
#endif
}

// The lanes of a vector in float64: one vector of doubles, or two.
template <class R>
constexpr int kHalves = kLanes<R> / kLanes<double>;

inline Vec<double> half(Vec<double> v, int) { return v; }
inline Vec<double> half(Vec<float> v, int which) { return which ? high_half(v) : low_half(v); }

// The sum of all lanes, in float64.
inline double horizontal(Vec<double> v) {
#if defined(__AVX512F__)
  auto four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  auto four = v;
#endif
#if defined(__AVX__)
  auto two = __builtin_shufflevector(four, four, 0, 1) + __builtin_shufflevector(four, four, 2, 3);
#else
  auto two = four;
#endif
  return two[0] + two[1];
}

inline double horizontal(Vec<float> v) { return horizontal(low_half(v) + high_half(v)); }

// Calls f(i, lanes) for the vectors of [0, n).
template <class R, class F>
inline void each_vector(Size n, F&& f) {
  constexpr int L = kLanes<R>;
  Size i = 0;
  for (; i + L <= n; i += L) f(i, Full{});
  if (i < n) f(i, Part{int(n - i)});
}

// Calls put(i, make(i, lanes), lanes) for the vectors of [0, n), of which there is one at least, past the caches if so
// wished. The last one overlaps the one before, since stores of a part may be slow; it is made before that one is
// stored, which may overwrite its operands.
template <class R, class Make, class Put>
inline void each_whole(Size n, bool stream, const Make& make, const Put& put) {
  constexpr Size L = kLanes<R>;
  auto last = make(n - L, Full{});
  if (stream) {
    for (Size i = 0; i + L < n; i += L) put(i, make(i, Streamed{}), Streamed{});
  } else {
    for (Size i = 0; i + L < n; i += L) put(i, make(i, Full{}), Full{});
  }
  put(n - L, last, Full{});
}

// Calls put(i, make(i, lanes), lanes) for what is stored to [to, to + n), whose whole cache lines are streamed
// if so wished.
template <class R, class T, class Make, class Put>
inline void each_stored(const T* to, Size n, bool stream, const Make& make, const Put& put) {
  constexpr Size L = kLanes<R>, line = 64 / sizeof(T);
  if (n < L) {
    Part lanes{int(n)};
    if (n > 0) put(0, make(0, lanes), lanes);
    return;
  }
  Size head = Size(-(reinterpret_cast<std::uintptr_t>(to) / sizeof(T)) % line);
  if (stream && n >= head + 8 * line) {
    // Parts up to a line's beginning, whole lines, parts again.
    auto parts = [&](Size i, Size stop) {
      for (; i < stop; i += L) {
        Part lanes{int(stop - i < L ? stop - i : L)};
        put(i, make(i, lanes), lanes);
      }
    };
    Size tail = n - (n - head) % line;
    parts(0, head);
    for (Size i = head; i < tail; i += L) put(i, make(i, Streamed{}), Streamed{});
    return parts(tail, n);
  }
  if (kMaskedStores) return each_vector<R>(n, [&](Size i, auto lanes) { put(i, make(i, lanes), lanes); });
  each_whole<R>(n, false, make, put);
}

}  // namespace evenorm::EVENORM_ISA
