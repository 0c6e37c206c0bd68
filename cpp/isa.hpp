// The instruction set in use: the best that this processor has, unless another is set.
#pragma once

#include <string>
#include <vector>

#include "call.hpp"

namespace evenorm {

std::vector<std::string> isas();
std::string isa();
void set_isa(const std::string& name);
const Verbs& verbs();

}  // namespace evenorm
