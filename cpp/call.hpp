// What the verbs are called with, and the table of verbs that each instruction set offers.
#pragma once

#include "plan.hpp"

namespace evenorm {

enum class Dtype { float32, float64, bfloat16, float16 };
enum class Activation { identity, relu, relu6, leaky_relu, silu, hardswish, gelu, gelu_tanh };

// Absent operands are null. Statistics and the sums are float64.
struct Call {
  const Plan& plan;
  Dtype dtype;
  const void* x = nullptr;
  const void* addend = nullptr;  // x + addend is what is normalized, and written to `total`; then x is dense
  void* total = nullptr;
  const void* dy = nullptr;
  void* out = nullptr;
  bool centered = true;
  double eps = 0;
  double* mean = nullptr;
  double* m2 = nullptr;
  const double* rstd = nullptr;
  Dtype parameter_dtype = Dtype::float32;
  const void* weight = nullptr;
  const void* bias = nullptr;
  double offset = 0;
  bool round_normalized = false;
  Activation activation = Activation::identity;
  double slope = 0;  // of a leaky ReLU
  const void* residual = nullptr;
  const void* output = nullptr;  // y, for the residual, where the activation's slope can be read from it
  void* d_residual = nullptr;
  const void* carried = nullptr;  // the gradient that the total has by other ways: the input's has it added
  const void* cotangent = nullptr;  // of y: then not y is written but dz
  double* s1 = nullptr;
  double* s2 = nullptr;
  double* dweight = nullptr;
  double* dbias = nullptr;
  const void* mask = nullptr;  // a flag for each element of the levels in which the mask varies
  bool stream = false;  // store the output past the caches
};

struct Verbs {
  void (*moments)(const Call&);
  void (*apply)(const Call&);
  void (*grad_sums)(const Call&);
  void (*grad_input)(const Call&);
  void (*forward)(const Call&);
  void (*backward)(const Call&);
};

}  // namespace evenorm
