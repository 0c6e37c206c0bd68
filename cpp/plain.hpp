// Any plan whatever, one element at a time in float64: for parameters that follow neither runs nor columns.
#pragma once

#include "buffer.hpp"
#include "call.hpp"
#include "element.hpp"
#include "gradient.hpp"
#include "mask.hpp"
#include "threads.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class Plain {
 public:
  explicit Plain(const Call& call)
      : call_(call), plan_(call.plan), epilogue_(call), mask_(call), x_(static_cast<const T*>(call.x)),
        dy_(static_cast<const T*>(call.dy)), out_(static_cast<T*>(call.out)) {}

  void moments() {
    each_statistic([&](Size s) { moments(s); });
  }

  void apply() {
    each_statistic([&](Size s) { apply(s, given(s)); });
  }

  void forward() {
    each_statistic([&](Size s) { apply(s, moments(s)); });
  }

  void grad_input() {
    each_statistic([&](Size s) {
      grad_input(s, {call_.s1 ? call_.s1[s] : 0, call_.s2 ? call_.s2[s] : 0});
    });
  }

  // Sums, and the input's gradient where one is asked for; on one thread, since parameters are shared.
  void sums() {
    for (Size k = 0; k < plan_.parameters; ++k) {
      if (call_.dweight) call_.dweight[k] = 0;
      if (call_.dbias) call_.dbias[k] = 0;
    }
    for (Size s = 0; s < plan_.statistics; ++s) {
      Center center = given(s);
      GradSums sum;
      each_element(s, [&](Size x, Size dy, Size flat) {
        double xhat = center.xhat(double(scalar(x_[x])));
        Size k = index(flat);
        double d = epilogue_.dz(double(scalar(dy_[dy])), xhat, scale(k), flat);
        sum.add({d, d * xhat}, weight(k));
        if (call_.dweight) call_.dweight[k] += d * xhat;
        if (call_.dbias) call_.dbias[k] += d;
      });
      if (call_.s1) call_.s1[s] = sum.plain;
      if (call_.s2) call_.s2[s] = sum.normalized;
      if (!out_) continue;
      double n = mask_.values(s);
      // Given statistics do not depend on the input.
      grad_input(s, call_.rstd ? Pull{} : Pull{call_.centered ? sum.plain / n : 0, sum.normalized / n});
    }
  }

 private:
  template <class F>
  void each_statistic(const F& f) const {
    parallel(threads_for(plan_.numel), plan_.statistics, [&](Size s, int) { f(s); });
  }

  // Calls f with an element's offset in x and in dy and its flat position; hidden(flat) where there is none.
  template <class F, class Hidden>
  void each_element(Size s, F&& f, Hidden&& hidden) const {
    Size b = s / plan_.group, g = s % plan_.group;
    for (Size o = 0; o < plan_.outer; ++o) {
      Window window = mask_.window(b, o, g, 0, 1, plan_.inner);
      for (Size i = 0; i < plan_.inner; ++i) {
        if (mask_ && !window.at(i)) {
          hidden(((b * plan_.outer + o) * plan_.group + g) * plan_.inner + i);
          continue;
        }
        f(b * plan_.x.batch + o * plan_.x.outer + g * plan_.x.group + i,
          b * plan_.dy.batch + o * plan_.dy.outer + g * plan_.dy.group + i,
          ((b * plan_.outer + o) * plan_.group + g) * plan_.inner + i);
      }
    }
  }
  template <class F>
  void each_element(Size s, F&& f) const {
    each_element(s, f, [](Size) {});
  }

  void clear(Size flat) const {
    out_[flat] = T{};
    if (epilogue_.d_residual) epilogue_.d_residual[flat] = T{};
  }

  Size index(Size flat) const {
    return flat / plan_.stretch * plan_.count + flat / plan_.span % plan_.count;
  }
  double read(const void* source, Size k) const {
    switch (call_.parameter_dtype) {
      case Dtype::float32: return static_cast<const float*>(source)[k];
      case Dtype::float64: return static_cast<const double*>(source)[k];
      case Dtype::bfloat16: return double(scalar(static_cast<const Bfloat16*>(source)[k]));
      default: return double(scalar(static_cast<const Float16*>(source)[k]));
    }
  }
  double weight(Size k) const { return call_.weight ? call_.offset + read(call_.weight, k) : 1; }
  Uniform<double> scale(Size k) const {
    return {weight(k), call_.bias ? read(call_.bias, k) : 0};
  }

  Center center(Size s, double mean, double m2) const {
    return {mean, 1 / std::sqrt(m2 / mask_.values(s) + call_.eps)};
  }
  Center given(Size s) const {
    double mean = call_.mean ? call_.mean[s] : 0;
    return call_.rstd ? Center{mean, call_.rstd[s]} : center(s, mean, call_.m2[s]);
  }

  Center moments(Size s) const {
    double mean = 0, rest = 0, m2 = 0, n = mask_.values(s);
    if (call_.centered) {
      each_element(s, [&](Size x, Size, Size) { mean += double(scalar(x_[x])); });
      mean /= n;
    }
    each_element(s, [&](Size x, Size, Size) {
      double d = double(scalar(x_[x])) - mean;
      rest += d;
      m2 += d * d;
    });
    if (call_.centered) {
      mean += rest / n;
      m2 -= rest * rest / n;
    }
    if (call_.mean) call_.mean[s] = mean;
    if (call_.m2) call_.m2[s] = m2;
    return center(s, mean, m2);
  }

  void apply(Size s, const Center& center) const {
    auto normalize = [&](Size x, Size, Size flat) {
      double xhat = center.xhat(double(scalar(x_[x])));
      out_[flat] = rounded<T>(epilogue_.value(epilogue_.z(xhat, scale(index(flat)), flat)));
    };
    each_element(s, normalize, [&](Size flat) { clear(flat); });
  }

  void grad_input(Size s, const Pull& pull) const {
    Center center = given(s);
    auto pull_one = [&](Size x, Size dy, Size flat) {
      double xhat = x_ ? center.xhat(double(scalar(x_[x]))) : 0;
      Uniform<double> scaled = scale(index(flat));
      double dz = epilogue_.dz(double(scalar(dy_[dy])), xhat, scaled, flat);
      if (epilogue_.d_residual) epilogue_.d_residual[flat] = rounded<T>(dz);
      out_[flat] = rounded<T>((dz * scaled.w - pull.c1 - xhat * pull.c2) * center.rstd);
    };
    each_element(s, pull_one, [&](Size flat) { clear(flat); });
  }

  const Call& call_;
  const Plan& plan_;
  Epilogue<T> epilogue_;
  Mask mask_;
  const T* x_;
  const T* dy_;
  T* out_;
};

}  // namespace evenorm::EVENORM_ISA
