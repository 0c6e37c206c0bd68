#include "history.hpp"

#include <algorithm>
#include <cmath>

// The element types in their portable form: no instruction set beyond the compiler's own is asked for here.
#define EVENORM_ISA portable
#include "element.hpp"

namespace evenorm {
namespace {

using namespace portable;

// f(a null pointer to the type)
template <class F>
void typed(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32: return f(static_cast<float*>(nullptr));
    case Dtype::float64: return f(static_cast<double*>(nullptr));
    case Dtype::bfloat16: return f(static_cast<Bfloat16*>(nullptr));
    case Dtype::float16: return f(static_cast<Float16*>(nullptr));
  }
}

// f(mean, variance) with the averages in their own type
template <class F>
void averages(const History& history, const F& f) {
  typed(history.dtype, [&](auto* type) {
    f(static_cast<decltype(type)>(history.mean), static_cast<decltype(type)>(history.variance));
  });
}

// As torch rounds: to half precision by way of float32.
template <class T>
void round_all(const double* values, Size count, T* rounded) {
  if constexpr (std::is_floating_point_v<T>) {
    for (Size k = 0; k < count; ++k) rounded[k] = T(values[k]);
  } else {
    each_vector<float>(count, [&](Size first, auto lanes) {
      Vec<float> v{};
      int some = int(std::min<Size>(count - first, kLanes<float>));
      for (int lane = 0; lane < some; ++lane) v[lane] = float(values[first + lane]);
      store<T, float>(rounded + first, v, lanes);
    });
  }
}

// As torch.lerp has it: exact at both ends.
double between(double from, double to, double share) {
  return share < 0.5 ? from + share * (to - from) : to - (to - from) * (1 - share);
}

}  // namespace

void recall(const History& history, double eps, double* mean, double* rstd) {
  averages(history, [&](const auto* running_mean, const auto* running_variance) {
    for (Size s = 0; s < history.count; ++s) {
      mean[s] = scalar(running_mean[s]);
      rstd[s] = 1 / std::sqrt(double(scalar(running_variance[s])) + eps);
    }
  });
}

bool absorb(const History& history, const double* mean, const double* m2, double divisor,
            double share) {
  double total = 0;
  for (Size s = 0; s < history.count; ++s) total += m2[s] / divisor;
  if (!std::isfinite(total)) return false;
  averages(history, [&](auto* running_mean, auto* running_variance) {
    for (Size s = 0; s < history.count; ++s) {
      double new_mean = between(scalar(running_mean[s]), mean[s], share);
      double new_variance = between(scalar(running_variance[s]), m2[s] / divisor, share);
      round_all(&new_mean, 1, running_mean + s);
      round_all(&new_variance, 1, running_variance + s);
    }
  });
  return true;
}

void round_sums(const double* sums, Size count, Dtype dtype, void* rounded) {
  typed(dtype, [&](auto* type) {
    round_all(sums, count, static_cast<decltype(type)>(rounded));
  });
}

}  // namespace evenorm
