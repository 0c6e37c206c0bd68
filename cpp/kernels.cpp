// The verbs, plain: every sum in float64, one element at a time.
#include <cmath>
#include <cstring>
#include <vector>

#include "call.hpp"

namespace evenorm {
namespace {

template <typename To, typename From>
To bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct Bfloat16 {
  std::uint16_t raw;
};
struct Float16 {
  std::uint16_t raw;
};

double load(float v) { return v; }
double load(double v) { return v; }
double load(Bfloat16 v) { return bits<float>(std::uint32_t{v.raw} << 16); }
double load(Float16 v) {
  std::uint32_t exponent = v.raw >> 10 & 31, fraction = v.raw & 1023;
  double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(double(fraction), -24)
                                     : std::ldexp(double(fraction + 1024), int(exponent) - 25);
  return v.raw >> 15 ? -magnitude : magnitude;
}

// Rounds to odd, so that the next rounding to fewer bits is the only one.
float narrow(double v) {
  float f = float(v);
  if (std::isnan(f) || double(f) == v) return f;
  if (std::isinf(f)) return std::copysign(3.402823466e38f, f);
  std::uint32_t raw = bits<std::uint32_t>(f);
  if (std::fabs(double(f)) > std::fabs(v)) --raw;
  return bits<float>(raw | 1);
}
void store(float& to, double v) { to = float(v); }
void store(double& to, double v) { to = v; }
void store(Bfloat16& to, double v) {
  std::uint32_t raw = bits<std::uint32_t>(narrow(v));
  if (std::isnan(v)) {
    to.raw = 0x7fc0;
    return;
  }
  to.raw = std::uint16_t((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
}
void store(Float16& to, double v) {
  std::uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  double a = std::fabs(v);
  if (std::isnan(v)) {
    to.raw = 0x7e00;
  } else if (a >= 65520) {
    to.raw = sign | 0x7c00;
  } else {
    int e;
    std::frexp(a, &e);
    if (e < -13) e = -13;
    std::uint32_t n = std::uint32_t(std::nearbyint(std::ldexp(a, 11 - e)));
    to.raw = sign | std::uint16_t(n < 1024 ? n : n + (std::uint32_t(e + 13) << 10));
  }
}

double parameter(const void* p, Dtype dtype, Size i) {
  switch (dtype) {
    case Dtype::float32: return load(static_cast<const float*>(p)[i]);
    case Dtype::float64: return load(static_cast<const double*>(p)[i]);
    case Dtype::bfloat16: return load(static_cast<const Bfloat16*>(p)[i]);
    default: return load(static_cast<const Float16*>(p)[i]);
  }
}

template <typename F>
void each(const Plan& p, const Strides& s, Size b, Size g, F&& f) {
  for (Size o = 0; o < p.outer; ++o) {
    for (Size i = 0; i < p.inner; ++i) {
      f(b * s.batch + o * s.outer + g * s.group + i,
        ((b * p.outer + o) * p.group + g) * p.inner + i);
    }
  }
}


template <typename T>
struct Plain {
  static void moments(const Call& c) {
    const Plan& p = c.plan;
    const T* x = static_cast<const T*>(c.x);
#pragma omp parallel for if (p.numel > 100000)
    for (Size s = 0; s < p.statistics; ++s) {
      double mean = 0, m2 = 0, rest = 0;
      double n = double(p.values);
      if (c.centered && p.values) {
        each(p, p.x, s / p.group, s % p.group, [&](Size at, Size) { mean += load(x[at]); });
        mean /= n;
      }
      each(p, p.x, s / p.group, s % p.group, [&](Size at, Size) {
        double d = load(x[at]) - mean;
        m2 += d * d;
        rest += d;
      });
      if (c.centered && p.values) {
        mean += rest / n;
        m2 -= rest * rest / n;
      }
      if (c.mean) c.mean[s] = mean;
      if (c.m2) c.m2[s] = m2;
    }
  }

  static double weight(const Call& c, Size flat) {
    if (!c.weight) return 1;
    const Plan& p = c.plan;
    return c.offset + parameter(c.weight, c.parameter_dtype,
                                flat / p.stretch * p.count + flat / p.span % p.count);
  }

  static void apply(const Call& c) {
    const Plan& p = c.plan;
    const T* x = static_cast<const T*>(c.x);
    T* y = static_cast<T*>(c.out);
#pragma omp parallel for if (p.numel > 100000)
    for (Size s = 0; s < p.statistics; ++s) {
      double mean = c.mean ? c.mean[s] : 0, rstd = c.rstd[s];
      each(p, p.x, s / p.group, s % p.group, [&](Size at, Size flat) {
        double v = (load(x[at]) - mean) * rstd;
        if (c.round_normalized) {
          T rounded;
          store(rounded, v);
          v = load(rounded);
        }
        v *= weight(c, flat);
        if (c.bias) {
          v += parameter(c.bias, c.parameter_dtype,
                         flat / p.stretch * p.count + flat / p.span % p.count);
        }
        store(y[flat], v);
      });
    }
  }

  static void grad_sums(const Call& c) {
    const Plan& p = c.plan;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    if (c.dweight) std::memset(c.dweight, 0, sizeof(double) * p.parameters);
    if (c.dbias) std::memset(c.dbias, 0, sizeof(double) * p.parameters);
    for (Size s = 0; s < p.statistics; ++s) {
      double mean = c.mean ? c.mean[s] : 0, rstd = c.rstd ? c.rstd[s] : 0, s1 = 0, s2 = 0;
      Size b = s / p.group, g = s % p.group;
      for (Size o = 0; o < p.outer; ++o) {
        for (Size i = 0; i < p.inner; ++i) {
          Size flat = ((b * p.outer + o) * p.group + g) * p.inner + i;
          double d = load(dy[b * p.dy.batch + o * p.dy.outer + g * p.dy.group + i]);
          double h = x ? (load(x[b * p.x.batch + o * p.x.outer + g * p.x.group + i]) - mean) * rstd
                       : 0;
          double w = weight(c, flat);
          s1 += w * d;
          s2 += w * d * h;
          Size k = flat / p.stretch * p.count + flat / p.span % p.count;
          if (c.dweight) c.dweight[k] += d * h;
          if (c.dbias) c.dbias[k] += d;
        }
      }
      if (c.s1) c.s1[s] = s1;
      if (c.s2) c.s2[s] = s2;
    }
  }

  static void grad_input(const Call& c) {
    const Plan& p = c.plan;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    T* dx = static_cast<T*>(c.out);
#pragma omp parallel for if (p.numel > 100000)
    for (Size s = 0; s < p.statistics; ++s) {
      double mean = c.mean ? c.mean[s] : 0, rstd = c.rstd[s];
      double c1 = c.s1 ? c.s1[s] : 0, c2 = c.s2 ? c.s2[s] : 0;
      Size b = s / p.group, g = s % p.group;
      for (Size o = 0; o < p.outer; ++o) {
        for (Size i = 0; i < p.inner; ++i) {
          Size flat = ((b * p.outer + o) * p.group + g) * p.inner + i;
          double d = load(dy[b * p.dy.batch + o * p.dy.outer + g * p.dy.group + i]);
          double h =
              c.s2 ? (load(x[b * p.x.batch + o * p.x.outer + g * p.x.group + i]) - mean) * rstd : 0;
          store(dx[flat], rstd * (weight(c, flat) * d - c1 - h * c2));
        }
      }
    }
  }

  static std::vector<double> rstd(const Call& c) {
    std::vector<double> result(std::size_t(c.plan.statistics));
    for (Size s = 0; s < c.plan.statistics; ++s) {
      result[std::size_t(s)] = 1 / std::sqrt(c.m2[s] / double(c.plan.values) + c.eps);
    }
    return result;
  }

  static void forward(const Call& call) {
    Call c = call;
    std::vector<double> mean(std::size_t(c.plan.statistics)), m2(mean);
    if (!c.mean) c.mean = mean.data();
    if (!c.m2) c.m2 = m2.data();
    moments(c);
    std::vector<double> r = rstd(c);
    c.rstd = r.data();
    apply(c);
  }

  static void backward(const Call& call) {
    Call c = call;
    std::vector<double> s1(std::size_t(c.plan.statistics)), s2(s1), r = rstd(c);
    c.rstd = r.data();
    c.s1 = s1.data();
    c.s2 = s2.data();
    grad_sums(c);
    for (std::size_t s = 0; s < s1.size(); ++s) {
      s1[s] = c.centered ? s1[s] / double(c.plan.values) : 0;
      s2[s] /= double(c.plan.values);
    }
    if (c.out) grad_input(c);
  }
};

#define EVENORM_VERB(name)                                           \
  void name(const Call& c) {                                         \
    switch (c.dtype) {                                               \
      case Dtype::float32: return Plain<float>::name(c);             \
      case Dtype::float64: return Plain<double>::name(c);            \
      case Dtype::bfloat16: return Plain<Bfloat16>::name(c);         \
      case Dtype::float16: return Plain<Float16>::name(c);           \
    }                                                                \
  }
EVENORM_VERB(moments)
EVENORM_VERB(apply)
EVENORM_VERB(grad_sums)
EVENORM_VERB(grad_input)
EVENORM_VERB(forward)
EVENORM_VERB(backward)

}  // namespace

extern const Verbs baseline_verbs;
const Verbs baseline_verbs{"baseline", moments, apply, grad_sums, grad_input, forward, backward};

}  // namespace evenorm
