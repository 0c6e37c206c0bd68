#include "plan.hpp"

#include <stdexcept>
#include <string>

namespace evenorm {
namespace {

void expect(bool holds, const char* what, Size came) {
  if (!holds) {
    throw std::invalid_argument(std::string("Plan: expected ") + what + ", got " +
                                std::to_string(came));
  }
}

}  // namespace

Plan::Plan(Size batch_, Size outer_, Size group_, Size inner_, Size span_, Size count_,
           Size stretch_, Strides x_strides, Strides dy_strides)
    : batch(batch_), outer(outer_), group(group_), inner(inner_), span(span_), count(count_),
      stretch(stretch_), x(x_strides), dy(dy_strides) {
  for (Size size : {batch, outer, group, inner}) expect(size >= 0, "a size >= 0", size);
  for (Size size : {span, count, stretch}) expect(size >= 1, "span, count, stretch >= 1", size);
  expect(stretch % span == 0, "a stretch that span divides", stretch);
  values = outer * inner;
  statistics = batch * group;
  numel = statistics * values;
  expect(numel % stretch == 0, "a stretch that divides the number of elements", stretch);
  parameters = numel / stretch * count;
  dense = {outer * group * inner, group * inner, inner};
}

}  // namespace evenorm
