// The four element types, loaded into and stored from vectors of float or double.
#pragma once

#include <cmath>
#include <type_traits>

#include "vector.hpp"

namespace evenorm::EVENORM_ISA {

struct Bfloat16 {
  std::uint16_t raw;
};
struct Float16 {
  std::uint16_t raw;
};

// What a tensor of this type is computed in, where nothing calls for more.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));

inline Words select(Bits<float> where, Words yes, Words no) {
  return where ? yes : no;
}

// Each half in a word of its own; compilers take several instructions for it, unasked.
inline Words doubled(Halves h) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, Words);
#endif
}

// Of words below 2^16.
inline Halves halved(Words w) {
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(w)));
#elif defined(__AVX2__)
  auto all = reinterpret_cast<__m256i>(w);
  return reinterpret_cast<Halves>(
      _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
  return __builtin_convertvector(w, Halves);
#endif
}

inline Vec<float> widen(Halves h, Bfloat16) {
  return reinterpret_cast<Vec<float>>(doubled(h) << 16);
}

inline Halves narrow(Vec<float> v, Bfloat16) {
  Words raw = reinterpret_cast<Words>(v);
  Words rounded = (raw + 0x7fff + (raw >> 16 & 1)) >> 16;
  return halved(select(v == v, rounded, Words{} + 0x7fc0));
}

#if defined(__F16C__)
inline Vec<float> widen(Halves h, Float16) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(h));
#else
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h));
#endif
}

inline Halves narrow(Vec<float> v, Float16) {
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#else
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#else
// After Fabian Giesen, "half to float done quick" (2012) and its sequels; no denormal is an operand.
inline Vec<float> widen(Halves h, Float16) {
  Words all = doubled(h);
  Words shifted = (all & 0x7fff) << 13;
  Words exponent = shifted & (0x7c00u << 13);
  Words normal = shifted + (112u << 23);
  Words infinite = normal + (112u << 23);
  Words above = normal + (1u << 23);
  Words tiny = reinterpret_cast<Words>(reinterpret_cast<Vec<float>>(above) - 0x1p-14f);
  Words result = select(exponent == (0x7c00u << 13), infinite, select(exponent == 0, tiny, normal));
  return reinterpret_cast<Vec<float>>(result | (all & 0x8000) << 16);
}

inline Halves narrow(Vec<float> v, Float16) {
  Words raw = reinterpret_cast<Words>(v);
  Words sign = raw & 0x80000000u;
  Words size = raw ^ sign;
  Words normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  Words magic = Words{} + (126u << 23);
  Words tiny = reinterpret_cast<Words>(reinterpret_cast<Vec<float>>(size) + 0.5f) - magic;
  Bits<float> magnitude = reinterpret_cast<Bits<float>>(size);
  Words huge = select(magnitude > 0x7f800000, Words{} + 0x7e00, Words{} + 0x7c00);
  Words result = select(magnitude >= (143 << 23), huge,
                        select(magnitude < (113 << 23), tiny, normal));
  return halved(result | sign >> 16);
}
#endif

inline float scalar(float v) { return v; }
inline double scalar(double v) { return v; }
template <class T>
inline float scalar(T v) {
  Halves h{};
  h[0] = v.raw;
  return widen(h, T{})[0];
}

// To odd, so that a rounding to fewer bits afterwards is the only one.
inline float round_to_odd(double v) {
  float nearest = float(v);
  if (double(nearest) == v || v != v) return nearest;
  std::uint32_t raw;
  std::memcpy(&raw, &nearest, sizeof raw);
  if (std::fabs(double(nearest)) > std::fabs(v)) --raw;
  raw |= 1;
  std::memcpy(&nearest, &raw, sizeof raw);
  return nearest;
}

template <class T>
inline T rounded(double v) {
  if constexpr (std::is_floating_point_v<T>) {
    return T(v);
  } else {
    return T{narrow(splat<float>(round_to_odd(v)), T{})[0]};
  }
}

template <class R, class T>
inline Vec<R> load(const T* p, Full) {
  if constexpr (std::is_same_v<R, T>) {
    return read<Vec<R>>(p);
  } else if constexpr (std::is_same_v<R, float> && sizeof(T) == 2) {
    return widen(read<Halves>(p), T{});
  } else {
    Vec<R> v;
    for (int k = 0; k < kLanes<R>; ++k) v[k] = R(scalar(p[k]));
    return v;
  }
}

// Zero outside the lanes that are meant, none of which is read.
template <class R, class T>
inline Vec<R> load(const T* p, Part lanes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (std::is_same_v<R, T> && std::is_same_v<R, double>) {
    return _mm512_maskz_loadu_pd(__mmask8((1u << lanes.count) - 1), p);
  } else if constexpr (std::is_same_v<R, T>) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << lanes.count) - 1), p);
  } else if constexpr (std::is_same_v<R, float> && sizeof(T) == 2) {
    return widen(reinterpret_cast<Halves>(
                     _mm256_maskz_loadu_epi16(__mmask16((1u << lanes.count) - 1), p)),
                 T{});
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<R, T> && std::is_same_v<R, float>) {
    Bits<float> inside = lane_numbers<float>() < (Bits<float>{} + lanes.count);
    return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(inside));
  }
#endif
  T padded[kLanes<R>];
  std::memset(static_cast<void*>(padded), 0, sizeof padded);
  for (int k = 0; k < lanes.count; ++k) padded[k] = p[k];
  return load<R, T>(padded, Full{});
}

template <class R, class T>
inline Vec<R> load(const T* p, Rest lanes) {
  return keep<R>(load<R>(p, Full{}), lanes);
}

template <class T, class R>
inline void store(T* p, Vec<R> v, Full) {
  if constexpr (std::is_same_v<R, T>) {
    write(p, v);
  } else {
    write(p, narrow(v, T{}));
  }
}

template <class T, class R>
inline void store(T* p, Vec<R> v, Part lanes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (std::is_same_v<R, double>) {
    return _mm512_mask_storeu_pd(p, __mmask8((1u << lanes.count) - 1), v);
  } else if constexpr (std::is_same_v<R, T>) {
    return _mm512_mask_storeu_ps(p, __mmask16((1u << lanes.count) - 1), v);
  } else if constexpr (std::is_same_v<R, float> && sizeof(T) == 2) {
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << lanes.count) - 1),
                                    reinterpret_cast<__m256i>(narrow(v, T{})));
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<R, T> && std::is_same_v<R, float>) {
    Bits<float> inside = lane_numbers<float>() < (Bits<float>{} + lanes.count);
    return _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(inside), v);
  }
#endif
  T padded[kLanes<R>];
  store<T, R>(padded, v, Full{});
  for (int k = 0; k < lanes.count; ++k) p[k] = padded[k];
}

// Where there is such a store; `p` is a multiple of the vector.
template <class T, class R>
inline void store(T* p, Vec<R> v, Streamed) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<R, float> && std::is_same_v<T, float>) {
#if defined(__AVX512F__)
    return _mm512_stream_ps(p, v);
#elif defined(__AVX__)
    return _mm256_stream_ps(p, v);
#else
    return _mm_stream_ps(p, v);
#endif
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<R, float> && sizeof(T) == 2) {
    Halves h = narrow(v, T{});
#if defined(__AVX512F__)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(h));
#else
    return _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(h));
#endif
  }
#endif
  store<T, R>(p, v, Full{});
}

// To the element type and back: the order of cast and scale that Llama has.
template <class T, class R>
inline Vec<R> through(Vec<R> v) {
  if constexpr (std::is_same_v<R, T>) {
    return v;
  } else {
    T passed[kLanes<R>];
    store<T, R>(passed, v, Full{});
    return load<R, T>(passed, Full{});
  }
}

}  // namespace evenorm::EVENORM_ISA
