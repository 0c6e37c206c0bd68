// What follows the affine, and the way back: z = xhat*w + b + residual, y = activation(z).
#pragma once

#include "call.hpp"
#include "curves.hpp"
#include "scale.hpp"

namespace evenorm::EVENORM_ISA {

// How results are stored: normalized values rounded to the element type, too; past the caches.
struct Storing {
  bool round_normalized, stream;
};

// The operands, from some element of the dense output on. In the backward pass the output may stand for the
// residual, where slopes can be read from it.
template <class T>
struct Epilogue {
  Activation activation;
  double slope;
  const T* residual;
  const T* output;
  T* d_residual;
  const T* carried;
  const T* cotangent;
  bool round_normalized;

  explicit Epilogue(const Call& c)
      : activation(c.activation), slope(c.slope), residual(static_cast<const T*>(c.residual)),
        output(static_cast<const T*>(c.output)), d_residual(static_cast<T*>(c.d_residual)),
        carried(static_cast<const T*>(c.carried)), cotangent(static_cast<const T*>(c.cotangent)),
        round_normalized(c.round_normalized) {}

  Epilogue at(Size i) const {
    Epilogue e = *this;
    if (e.residual) e.residual += i;
    if (e.output) e.output += i;
    if (e.d_residual) e.d_residual += i;
    if (e.carried) e.carried += i;
    if (e.cotangent) e.cotangent += i;
    return e;
  }

  bool bare() const { return activation == Activation::identity && !residual; }
  bool bent() const { return activation != Activation::identity; }
  // Whether z is left in scratch memory, which has room for one run.
  bool curved() const { return bent() && (!clamps(activation) || round_normalized); }

  // One element in float64.
  template <class Scale>
  double z(double xhat, const Scale& scale, Size i) const {
    if (output) return double(scalar(output[i]));
    if (round_normalized) xhat = double(scalar(rounded<T>(xhat)));
    double z = scale.affine(xhat, i);
    return residual ? z + double(scalar(residual[i])) : z;
  }
  double value(double z) const {
    if (bent()) take_values(activation, slope, &z, 1);
    return z;
  }
  template <class Scale>
  double dz(double dy, double xhat, const Scale& scale, Size i) const {
    if (!bent()) return dy;
    double factor = z(xhat, scale, i);
    take_slopes(activation, slope, &factor, 1);
    return factor == 0 ? 0 : dy * factor;
  }
};

// What a loop does with z before it is stored.
struct Bare {
  Bare at(Size) const { return {}; }

  template <class V, class Lanes>
  V operator()(V z, Size, Lanes) const {
    return z;
  }
  double operator()(double z, Size) const { return z; }
};

template <class T>
struct Clamped {
  using R = Real<T>;
  Clamp<R> clamp;
  const T* residual;

  Clamped at(Size i) const { return {clamp, residual ? residual + i : nullptr}; }

  template <class Lanes>
  Vec<R> operator()(Vec<R> z, Size i, Lanes lanes) const {
    if (residual) z += load<R>(residual + i, lanes);
    return clamp.value(z);
  }
  double operator()(double z, Size i) const {
    if (residual) z += double(scalar(residual[i]));
    return z < clamp.floor ? clamp.floor : z > clamp.ceiling ? clamp.ceiling : z;
  }
};

// What a loop does with dy to get dz, from the deviation and the line that makes z of it; at(i) is the way from
// element i on, and scale(s) what it needs of a scale.
struct Straight {
  Straight at(Size) const { return {}; }
  template <class Scale>
  auto scale(const Scale& s) const {
    return s.weights();
  }

  template <class V, class Line, class Lanes>
  V operator()(V dy, V, const Line&, Size, Lanes) const {
    return dy;
  }
};

// Through where z is neither below nor above.
template <class T>
struct Gate {
  using R = Real<T>;
  Clamp<R> clamp;
  const T* residual;
  const T* output;

  Gate at(Size i) const { return {clamp, residual ? residual + i : nullptr, output ? output + i : nullptr}; }
  template <class Scale>
  Scale scale(const Scale& s) const {
    return s;
  }

  template <class Line, class Lanes>
  Vec<R> operator()(Vec<R> dy, Vec<R> d, const Line& line, Size i, Lanes lanes) const {
    Vec<R> z;
    if (output) {
      z = load<R>(output + i, lanes);
    } else {
      z = line.z(d, i, lanes);
      if (residual) z += load<R>(residual + i, lanes);
    }
    return clamp.inside(z) ? dy : Vec<R>{};
  }
};

// By slopes that have been computed.
template <class R>
struct Slopes {
  const R* slope;

  Slopes at(Size i) const { return {slope + i}; }
  template <class Scale>
  auto scale(const Scale& s) const {
    return s.weights();
  }

  template <class Line, class Lanes>
  Vec<R> operator()(Vec<R> dy, Vec<R>, const Line&, Size i, Lanes lanes) const {
    return dy * load<R>(slope + i, lanes);
  }
};

// Widens a run, or narrows it.
template <class T>
EVENORM_LOOP void widen_run(const T* from, Real<T>* to, Size n) {
  using R = Real<T>;
  each_vector<R>(n, [&](Size i, auto lanes) { store<R, R>(to + i, load<R>(from + i, lanes), lanes); });
}

template <class T>
EVENORM_LOOP void narrow_run(const Real<T>* from, T* to, Size n, bool stream) {
  using R = Real<T>;
  each_stored<R>(to, n, stream, [&](Size i, auto lanes) { return load<R>(from + i, lanes); },
                 [&](Size i, Vec<R> v, auto lanes) { store<T, R>(to + i, v, lanes); });
}

// dz by slopes that have been computed.
template <class T>
EVENORM_LOOP void multiply_run(const T* dy, const Real<T>* slope, T* dz, Size n, bool stream) {
  using R = Real<T>;
  each_stored<R>(dz, n, stream, [&](Size i, auto lanes) { return load<R>(dy + i, lanes) * load<R>(slope + i, lanes); },
                 [&](Size i, Vec<R> v, auto lanes) { store<T, R>(dz + i, v, lanes); });
}

// Calls loop(to, finish, how) so that y, or dz, is written in the end: a curve takes values that the loop has left in
// `scratch`, n of them.
template <class T, class Loop>
inline void finished(const Epilogue<T>& e, T* y, Size n, bool stream, Real<T>* scratch,
                     const Loop& loop) {
  using R = Real<T>;
  Storing how{e.round_normalized, stream};
  if (e.bare()) return loop(y, Bare{}, how);
  if (clamps(e.activation)) return loop(y, Clamped<T>{clamp_of<R>(e.activation), e.residual}, how);
  how.stream = false;
  loop(scratch, Clamped<T>{clamp_of<R>(Activation::identity), e.residual}, how);
  if (e.cotangent) {
    take_slopes(e.activation, e.slope, scratch, n);
    return multiply_run(e.cotangent, scratch, y, n, stream);
  }
  take_values(e.activation, e.slope, scratch, n);
  narrow_run<T>(scratch, y, n, stream);
}

// Calls back(way) with the way from dy to dz; for the slopes of a curve loop(to, finish, how) computes z into
// `scratch`, as above.
template <class T, class Loop, class Back>
inline auto with_way(const Epilogue<T>& e, Size n, Real<T>* scratch, const Loop& loop, const Back& back) {
  using R = Real<T>;
  if (!e.bent()) return back(Straight{});
  if (!e.curved()) return back(Gate<T>{clamp_of<R>(e.activation), e.residual, e.output});
  if (e.output) {
    widen_run(e.output, scratch, n);
  } else {
    Storing how{e.round_normalized, false};
    loop(scratch, Clamped<T>{clamp_of<R>(Activation::identity), e.residual}, how);
  }
  take_slopes(e.activation, e.slope, scratch, n);
  return back(Slopes<R>{scratch});
}

}  // namespace evenorm::EVENORM_ISA
