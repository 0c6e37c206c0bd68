// The plan: batch x outer x group x inner, of which outer and inner are reduced.
#pragma once

#include <cstdint>

namespace evenorm {

using Size = std::int64_t;

// Strides of the three outer levels of an input, in elements.
struct Strides {
  Size batch, outer, group;
};

// For the flat position f = ((b * outer + o) * group + g) * inner + i of the dense output:
//   statistic = b * group + g
//   parameter = f / stretch * count + f / span % count
struct Plan {
  Size batch, outer, group, inner;
  Size span, count, stretch;
  Strides x, dy, dense;
  Size numel, statistics, values, parameters;

  Plan(Size batch, Size outer, Size group, Size inner, Size span, Size count, Size stretch,
       Strides x_strides, Strides dy_strides);
};

}  // namespace evenorm
