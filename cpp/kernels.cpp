// The verbs for every layout and element type. This text is compiled once for each instruction set, whose
// name EVENORM_ISA is.
#include "cache.hpp"
#include "call.hpp"
#include "column_gradient.hpp"
#include "in_order.hpp"
#include "plain.hpp"
#include "run_gradient.hpp"
#include "sum.hpp"
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
void with_layout(const Call& c, const F& f) {
  switch (c.plan.layout) {
    case Layout::empty: return;
    case Layout::plain: return f(Plain<T>(c));
    case Layout::runs: return f(RunGradient<T>(c));
    case Layout::columns: return f(ColumnGradient<T>(c));
    case Layout::rows: return f(TinyRows<T>(c));
  }
}

// Calls f(call, T{}).
template <class F>
void with_type(Call c, const F& f) {
  auto go = [&](auto type) {
    // What a mask hides is cleared after a run was stored.
    c.stream = !c.mask && c.plan.numel * Size(sizeof type) >= stream_bytes();
    f(c, type);
  };
  switch (c.dtype) {
    case Dtype::float32: return go(float{});
    case Dtype::float64: return go(double{});
    case Dtype::bfloat16: return go(Bfloat16{});
    case Dtype::float16: return go(Float16{});
  }
}

template <class F>
void with_kernel(const Call& c, const F& f) {
  with_type(c, [&](const Call& call, auto type) { with_layout<decltype(type)>(call, f); });
}

// The same where statistics are given.
template <class F>
void with_given(const Call& c, const F& f) {
  with_type(c, [&](const Call& call, auto type) {
    using T = decltype(type);
    c.plan.in_order ? f(InOrder<T>(call)) : with_layout<T>(call, f);
  });
}

// Whether the verbs add what they are given to add while a chunk is in the first cache.
bool adds_on_the_way(const Call& c) { return c.plan.layout == Layout::runs && !c.mask && !c.rstd; }

void add(const Call& c, const void* x, const void* addend, void* total) {
  with_type(c, [&](const Call&, auto type) {
    using T = decltype(type);
    add_all(static_cast<const T*>(x), static_cast<const T*>(addend), static_cast<T*>(total), c.plan.numel);
  });
}

void moments(const Call& c) {
  if (c.plan.layout == Layout::empty) zero_moments(c);
  with_kernel(c, [](auto&& kernel) { kernel.moments(); });
}
void apply(const Call& c) {
  with_given(c, [](auto&& kernel) { kernel.apply(); });
}
void grad_sums(const Call& c) {
  if (c.plan.layout == Layout::empty) zero_sums(c);
  with_kernel(c, [](auto&& kernel) { kernel.sums(); });
}
void grad_input(const Call& given) {
  Call c = given;
  // What is subtracted alone asks for xhat, and so does a bend in the way back.
  bool constant = !c.s1 && !c.s2 && c.activation == Activation::identity;
  if (constant) c.x = nullptr;
  with_given(c, [](auto&& kernel) { kernel.grad_input(); });
}
void forward(const Call& given) {
  Call c = given;
  if (c.addend && !adds_on_the_way(c)) {
    add(c, c.x, c.addend, c.total);
    c.x = c.total;
    c.addend = nullptr;
  }
  if (c.plan.layout == Layout::empty) zero_moments(c);
  with_kernel(c, [](auto&& kernel) { kernel.forward(); });
}

// Whether slopes are dear enough to be found once, and dz has room in the input's gradient until this is found. Not
// where statistics are given, whose sums have the same bits with and without the input's gradient.
bool keeps_slopes(const Call& c) {
  bool dear = c.activation == Activation::silu || c.activation == Activation::gelu ||
              c.activation == Activation::gelu_tanh;
  bool whole = c.dtype == Dtype::float32 || c.dtype == Dtype::float64;
  bool lies = c.plan.layout == Layout::runs || c.plan.layout == Layout::columns;
  return dear && whole && lies && c.out && c.out != c.x && !c.mask && !c.rstd && c.plan.dy_is_dense();
}

// Sums for which there is an output to go on to.
void backward(const Call& c) {
  if (c.carried && !adds_on_the_way(c)) {
    Call bare = c;
    bare.carried = nullptr;
    backward(bare);
    return add(c, c.out, c.carried, c.out);
  }
  if (!keeps_slopes(c)) return grad_sums(c);
  Call slopes = c;
  slopes.cotangent = c.dy;
  slopes.dy = nullptr;
  slopes.dweight = slopes.dbias = nullptr;
  slopes.d_residual = nullptr;
  with_kernel(slopes, [](auto&& kernel) { kernel.apply(); });
  Call straight = c;
  straight.dy = c.out;
  straight.activation = Activation::identity;
  straight.residual = nullptr;
  grad_sums(straight);
}

}  // namespace

extern const Verbs verbs;
const Verbs verbs{moments, apply, grad_sums, grad_input, forward, backward};

}  // namespace evenorm::EVENORM_ISA
