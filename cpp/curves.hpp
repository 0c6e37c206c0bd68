// Activations and their slopes. In float from polynomials of our own fit, exact to two units in the last place
// but for the roundings of the formula around them; in double from the C library.
#pragma once

#include <cmath>
#include <limits>

#include "call.hpp"
#include "element.hpp"

namespace evenorm::EVENORM_ISA {

template <class R>
inline Vec<R> size_of(Vec<R> z) {
  return z < 0 ? -z : z;
}

template <std::size_t kCount>
inline Vec<float> polynomial(Vec<float> x, const float (&highest_first)[kCount]) {
  Vec<float> p = splat(highest_first[0]);
  for (std::size_t k = 1; k < kCount; ++k) p = multiply_add(p, x, splat(highest_first[k]));
  return p;
}

// e^(x + rest) for x <= 0 and a rest that is small.
inline Vec<float> exp_below(Vec<float> x, Vec<float> rest) {
  x = x > -104.0f ? x : splat(-104.0f);
  // The nearest whole number, for which there is no vector instruction everywhere.
  Vec<float> rounding = splat(0x1.8p23f);
  Vec<float> n = multiply_add(x, splat(0x1.715476p0f), rounding) - rounding;
  // ln 2 in two parts, of which n times the first is exact.
  Vec<float> r = multiply_add(n, splat(0x1.bd0106p-13f), x - n * 0x1.63p-1f) + rest;
  Vec<float> p = polynomial(r, {0x1.6a23eep-10f, 0x1.123a0cp-7f, 0x1.5558f2p-5f, 0x1.555492p-3f,
                                0x1.fffffcp-2f});
  p = multiply_add(p * r, r, r) + 1;
  // 2^n in two steps, since alone it may be a denormal.
  Bits<float> raised = (__builtin_convertvector(n, Bits<float>) + (127 + 64)) << 23;
  return p * reinterpret_cast<Vec<float>>(raised) * 0x1p-64f;
}

inline Vec<double> exp_below(Vec<double> x, Vec<double> rest) {
  for (int k = 0; k < kLanes<double>; ++k) x[k] = std::exp(x[k] + rest[k]);
  return x;
}

// 1 / (1 + e^-z), and what it lacks to 1.
template <class R>
struct Logistic {
  Vec<R> share, rest;

  explicit Logistic(Vec<R> z) {
    Vec<R> e = exp_below(-size_of<R>(z), Vec<R>{});
    Vec<R> large = 1 / (1 + e), small = e * large;
    share = z > 0 ? large : small;
    rest = z > 0 ? small : large;
  }
};

// The normal distribution's tail beyond a >= 0, over e^(-a^2 / 2).
inline Vec<float> tail_ratio(Vec<float> a) {
  Vec<float> t = 1 / (a * 0.25f + 1);
  return t * polynomial(t, {0x1.0a00d0p-6f, -0x1.f2979ep-5f, 0x1.80a8a8p-5f, 0x1.1e4802p-5f, 0x1.ceb124p-8f,
                            0x1.6ff9b4p-4f, 0x1.2229d0p-4f, 0x1.884f58p-4f, 0x1.976222p-4f,
                            0x1.989336p-4f});
}

// The normal distribution's share below z, and its density there.
template <class R>
struct Normal {
  Vec<R> share, density;

  explicit Normal(Vec<R> z) {
    // Beyond this the tail is 0.
    constexpr R far = std::is_same_v<R, float> ? 15 : 40;
    Vec<R> a = size_of<R>(z);
    a = a < far ? a : splat<R>(far);
    Vec<R> e = gauss(a), tail;
    if constexpr (std::is_same_v<R, float>) {
      tail = tail_ratio(a) * e;
    } else {
      for (int k = 0; k < kLanes<R>; ++k) tail[k] = std::erfc(a[k] * 0x1.6a09e667f3bcdp-1) / 2;
    }
    share = z > 0 ? 1 - tail : tail;
    density = e * R(0x1.9884533d43651p-2);
  }

  // e^(-a^2 / 2): the first bits of a are squared exactly.
  static Vec<R> gauss(Vec<R> a) {
    constexpr Lane first = -(Lane(1) << (std::is_same_v<R, float> ? 12 : 27));
    Vec<R> b = reinterpret_cast<Vec<R>>(reinterpret_cast<Bits<R>>(a) & first);
    return exp_below(b * b * R(-0.5), (a + b) * (a - b) * R(-0.5));
  }
  using Lane = std::conditional_t<std::is_same_v<R, float>, std::int32_t, std::int64_t>;
};

// Each curve has a value and a slope at z.
template <class R>
struct Clamp {
  R floor, ceiling;
  R last;  // the largest z that has a slope: infinity has one where there is no ceiling

  Vec<R> value(Vec<R> z) const {
    z = z < floor ? splat<R>(floor) : z;
    return z > ceiling ? splat<R>(ceiling) : z;
  }
  Bits<R> inside(Vec<R> z) const { return (z > floor) & (z <= last); }
  Vec<R> slope(Vec<R> z) const { return inside(z) ? splat<R>(1) : Vec<R>{}; }
};

template <class R>
struct Leaky {
  R below;

  Vec<R> value(Vec<R> z) const { return z > 0 ? z : z * below; }
  Vec<R> slope(Vec<R> z) const { return z > 0 ? splat<R>(1) : splat<R>(below); }
};

template <class R>
struct Silu {
  Vec<R> value(Vec<R> z) const { return z * Logistic<R>(z).share; }
  Vec<R> slope(Vec<R> z) const {
    Logistic<R> s(z);
    return s.share * multiply_add(z, s.rest, splat<R>(1));
  }
};

template <class R>
struct Hardswish {
  Vec<R> value(Vec<R> z) const { return z * Clamp<R>{0, 6, 6}.value(z + 3) / 6; }
  Vec<R> slope(Vec<R> z) const {
    Vec<R> ramp = z / 3 + R(0.5);
    ramp = z <= -3 ? Vec<R>{} : ramp;
    return z >= 3 ? splat<R>(1) : ramp;
  }
};

template <class R>
struct Gelu {
  Vec<R> value(Vec<R> z) const { return z * Normal<R>(z).share; }
  Vec<R> slope(Vec<R> z) const {
    Normal<R> normal(z);
    // Far out the density is 0, however far.
    return multiply_add(Clamp<R>{-40, 40, 40}.value(z), normal.density, normal.share);
  }
};

// (1 + tanh u) / 2 is the logistic function at 2u.
template <class R>
struct GeluTanh {
  static constexpr R scale = R(0x1.9884533d43651p+0), cubic = R(0.044715);

  Vec<R> value(Vec<R> z) const {
    return z * Logistic<R>(multiply_add(z * z * cubic, z, z) * scale).share;
  }
  Vec<R> slope(Vec<R> z) const {
    z = Clamp<R>{-40, 40, 40}.value(z);
    Vec<R> square = z * z * cubic;
    Logistic<R> s(multiply_add(square, z, z) * scale);
    return multiply_add(z * s.share * s.rest, (3 * square + 1) * scale, s.share);
  }
};

// Identity, ReLU and ReLU6 are cut off below and above.
inline bool clamps(Activation a) {
  return a == Activation::identity || a == Activation::relu || a == Activation::relu6;
}

template <class R>
inline Clamp<R> clamp_of(Activation a) {
  constexpr R infinity = std::numeric_limits<R>::infinity();
  R floor = a == Activation::identity ? -infinity : 0;
  if (a == Activation::relu6) return {floor, 6, std::nextafter(R(6), R(0))};
  return {floor, infinity, infinity};
}

// Calls f with the curve.
template <class R, class F>
inline auto with_curve(Activation activation, double slope, const F& f) {
  switch (activation) {
    case Activation::leaky_relu: return f(Leaky<R>{R(slope)});
    case Activation::silu: return f(Silu<R>{});
    case Activation::hardswish: return f(Hardswish<R>{});
    case Activation::gelu: return f(Gelu<R>{});
    case Activation::gelu_tanh: return f(GeluTanh<R>{});
    default: return f(clamp_of<R>(activation));
  }
}

// Values in place of z, or slopes.
template <class R>
EVENORM_LOOP void take_values(Activation activation, double slope, R* z, Size n) {
  with_curve<R>(activation, slope, [&](const auto& curve) {
    each_vector<R>(n, [&](Size i, auto lanes) {
      store<R, R>(z + i, curve.value(load<R>(z + i, lanes)), lanes);
    });
  });
}

template <class R>
EVENORM_LOOP void take_slopes(Activation activation, double slope, R* z, Size n) {
  with_curve<R>(activation, slope, [&](const auto& curve) {
    each_vector<R>(n, [&](Size i, auto lanes) {
      store<R, R>(z + i, curve.slope(load<R>(z + i, lanes)), lanes);
    });
  });
}

}  // namespace evenorm::EVENORM_ISA
