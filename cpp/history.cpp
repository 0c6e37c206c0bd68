#include "history.hpp"

#include <cmath>

namespace evenorm {
namespace {

// f(mean, variance) with the averages in their own type
template <class F>
void typed(const History& history, const F& f) {
  if (history.dtype == Dtype::float64) {
    f(static_cast<double*>(history.mean), static_cast<double*>(history.variance));
  } else {
    f(static_cast<float*>(history.mean), static_cast<float*>(history.variance));
  }
}

// As torch.lerp has it: exact at both ends.
double between(double from, double to, double share) {
  return share < 0.5 ? from + share * (to - from) : to - (to - from) * (1 - share);
}

}  // namespace

void recall(const History& history, double eps, double* mean, double* rstd) {
  typed(history, [&](const auto* running_mean, const auto* running_variance) {
    for (Size s = 0; s < history.count; ++s) {
      mean[s] = running_mean[s];
      rstd[s] = 1 / std::sqrt(double(running_variance[s]) + eps);
    }
  });
}

bool absorb(const History& history, const double* mean, const double* m2, double divisor,
            double share) {
  double total = 0;
  for (Size s = 0; s < history.count; ++s) total += m2[s] / divisor;
  if (!std::isfinite(total)) return false;
  typed(history, [&](auto* running_mean, auto* running_variance) {
    for (Size s = 0; s < history.count; ++s) {
      running_mean[s] = between(running_mean[s], mean[s], share);
      running_variance[s] = between(running_variance[s], m2[s] / divisor, share);
    }
  });
  return true;
}

void round_sums(const double* sums, Size count, float* rounded) {
  for (Size k = 0; k < count; ++k) rounded[k] = float(sums[k]);
}

}  // namespace evenorm
