// The verbs for every layout and element type. This text is compiled once for each instruction set, whose
// name EVENORM_ISA is.
#include "cache.hpp"
#include "call.hpp"
#include "column_gradient.hpp"
#include "plain.hpp"
#include "run_gradient.hpp"
#include "tiny_rows.hpp"

namespace evenorm::EVENORM_ISA {
namespace {

void fill_zeros(double* values, Size count) {
  for (Size k = 0; values && k < count; ++k) values[k] = 0;
}

void zero_moments(const Call& c) {
  fill_zeros(c.mean, c.plan.statistics);
  fill_zeros(c.m2, c.plan.statistics);
}

void zero_sums(const Call& c) {
  fill_zeros(c.s1, c.plan.statistics);
  fill_zeros(c.s2, c.plan.statistics);
  fill_zeros(c.dweight, c.plan.parameters);
  fill_zeros(c.dbias, c.plan.parameters);
}

template <class T, class F>
void with_layout(Call c, const F& f) {
  // What a mask hides is cleared after a run was stored.
  c.stream = !c.mask && c.plan.numel * Size(sizeof(T)) >= stream_bytes();
  switch (c.plan.layout) {
    case Layout::empty: return;
    case Layout::plain: return f(Plain<T>(c));
    case Layout::runs: return f(RunGradient<T>(c));
    case Layout::columns: return f(ColumnGradient<T>(c));
    case Layout::rows: return f(TinyRows<T>(c));
  }
}

template <class F>
void with_kernel(const Call& c, const F& f) {
  switch (c.dtype) {
    case Dtype::float32: return with_layout<float>(c, f);
    case Dtype::float64: return with_layout<double>(c, f);
    case Dtype::bfloat16: return with_layout<Bfloat16>(c, f);
    case Dtype::float16: return with_layout<Float16>(c, f);
  }
}

void moments(const Call& c) {
  if (c.plan.layout == Layout::empty) zero_moments(c);
  with_kernel(c, [](auto&& kernel) { kernel.moments(); });
}
void apply(const Call& c) {
  with_kernel(c, [](auto&& kernel) { kernel.apply(); });
}
void grad_sums(const Call& c) {
  if (c.plan.layout == Layout::empty) zero_sums(c);
  with_kernel(c, [](auto&& kernel) { kernel.sums(); });
}
void grad_input(const Call& c) {
  with_kernel(c, [](auto&& kernel) { kernel.grad_input(); });
}
void forward(const Call& c) {
  if (c.plan.layout == Layout::empty) zero_moments(c);
  with_kernel(c, [](auto&& kernel) { kernel.forward(); });
}
// Sums for which there is an output to go on to.
void backward(const Call& c) { grad_sums(c); }

}  // namespace

extern const Verbs verbs;
const Verbs verbs{moments, apply, grad_sums, grad_input, forward, backward};

}  // namespace evenorm::EVENORM_ISA
