// A history between calls: what it gives to a call, and how it takes a batch in; and sums in a parameter's type.
#pragma once

#include "call.hpp"

namespace evenorm {

// The running averages of `count` statistics.
struct History {
  void* mean;
  void* variance;
  Dtype dtype;
  Size count;
};

// mean and 1 / sqrt(variance + eps), as float64.
void recall(const History& history, double eps, double* mean, double* rstd);

// running <- running + share * (new - running), the new variance being M2 / divisor.
// Where a number is not finite nothing is written, and the answer is false.
bool absorb(const History& history, const double* mean, const double* m2, double divisor,
            double share);

// float64 to a parameter's type.
void round_sums(const double* sums, Size count, Dtype dtype, void* rounded);

}  // namespace evenorm
