// Weight and bias as the kernels read them: in the type that is computed in, offset added, and by element
// where they change too often to be taken one at a time.
#pragma once

#include <algorithm>

#include "buffer.hpp"
#include "call.hpp"
#include "scale.hpp"

namespace evenorm::EVENORM_ISA {

template <class R>
class Parameters {
 public:
  using Value = R;

  explicit Parameters(const Call& c) : Parameters(c, c.plan.by_element) {}

  Parameters(const Call& c, bool by_element)
      : plan_(c.plan), by_element_(by_element && taken(c)), single_(!taken(c)),
        every_run_(by_element_ && plan_.stretch == plan_.numel && plan_.period == plan_.inner),
        entries_(by_element_ ? plan_.numel / plan_.stretch * plan_.period : plan_.parameters),
        weights_(copies(c, c.weight, c.offset) || (!c.weight && by_element_) ? entries_ : 0),
        biases_(copies(c, c.bias, 0) ? entries_ : 0) {
    weight_ = prepare(c, c.weight, c.offset, weights_);
    bias_ = prepare(c, c.bias, 0, biases_);
    if (!c.weight && by_element_) {
      for (Size i = 0; i < entries_; ++i) weights_[i] = 1;
      weight_ = weights_.get();
    }
  }

  // Whether parameters are taken by element; then there is always an array of weights.
  bool by_element() const { return by_element_; }
  Size entries() const { return entries_; }
  const R* weight() const { return weight_; }
  const R* bias() const { return bias_; }
  R weight(Size index) const { return weight_ ? weight_[index] : R(1); }
  R bias(Size index) const { return bias_ ? bias_[index] : R(0); }

  // Of runs from a flat position on, where the plan has them in order.
  Uniforms<R> uniforms(Size flat) const { return uniforms(index(flat), plan_.count > 1); }
  // Of runs whose parameters lie `step` apart, from one on.
  Uniforms<R> uniforms(Size index, Size step) const {
    return {weight_ ? weight_ + index : nullptr, bias_ ? bias_ + index : nullptr, step};
  }

  // Whether all runs of a statistic have one parameter.
  bool same_for_runs() const {
    if (single_ || by_element_) return single_;
    return plan_.stretch == plan_.numel && plan_.span % plan_.inner == 0 &&
           plan_.group * plan_.inner % (plan_.span * plan_.count) == 0;
  }
  // Whether entries are the parameters themselves.
  bool as_they_are() const { return !by_element_ || (plan_.span == 1 && plan_.period == plan_.count); }
  // Whether all rows, where outer is 1, have the same parameters.
  bool same_for_rows() const { return single_ || every_run_; }

  // Index of the parameter, or of the entry, at a flat position.
  Size index(Size flat) const {
    if (single_) return 0;
    Size row = flat / plan_.stretch;
    if (by_element_) return row * plan_.period + flat % plan_.stretch % plan_.period;
    return row * plan_.count + flat / plan_.span % plan_.count;
  }

  // Calls f(start, length, index) for the parts of [flat, flat + n) that one parameter, or one run of
  // entries, covers.
  template <class F>
  void walk(Size flat, Size n, F&& f) const {
    if (single_) return f(Size{0}, n, Size{0});
    if (every_run_ && n == plan_.inner) return f(Size{0}, n, Size{0});
    // No division for each part, of which some are short.
    Size row = flat / plan_.stretch, left = plan_.stretch - flat % plan_.stretch;
    Size each = by_element_ ? plan_.period : plan_.span, used = (by_element_ ? flat % plan_.stretch : flat) % each;
    Size k = by_element_ ? 0 : flat / each % plan_.count;
    for (Size start = 0; start < n;) {
      Size length = std::min({n - start, left, each - used});
      f(start, length, by_element_ ? row * plan_.period + used : row * plan_.count + k);
      start += length, left -= length, used += length;
      if (used == each) {
        used = 0;
        if (!by_element_ && ++k == plan_.count) k = 0;
      }
      if (left == 0) {
        left = plan_.stretch;
        if (by_element_) used = 0;
        ++row;
      }
    }
  }

  // The same where parts of one length that follow one another are taken together: f(start, n, runs, index), each run
  // with the next parameter.
  template <class F>
  void walk_together(Size flat, Size n, F&& f) const {
    Size from = 0, each = 0, runs = 0, first = 0;
    auto flush = [&] {
      if (runs) f(from, each, runs, first);
      runs = 0;
    };
    walk(flat, n, [&](Size start, Size length, Size index) {
      if (by_element_ || length != each || index != first + runs) flush();
      if (!runs) from = start, each = length, first = index;
      ++runs;
    });
    flush();
  }

  // Sums of entries into sums of parameters.
  void collect(const double* entries, double* result) const {
    if (!result) return;
    if (as_they_are()) {
      std::memcpy(result, entries, std::size_t(plan_.parameters) * sizeof(double));
      return;
    }
    for (Size k = 0; k < plan_.parameters; ++k) result[k] = 0;
    each_entry([&](Size entry, Size parameter) { result[parameter] += entries[entry]; });
  }

 private:
  // Sums of the gradient have the same bits whether the parameters' own are wanted or not.
  static bool taken(const Call& c) { return c.weight || c.bias || c.dweight || c.dbias || c.dy; }

  bool copies(const Call& c, const void* source, double offset) const {
    if (!source) return false;
    bool same = c.parameter_dtype == (sizeof(R) == sizeof(float) ? Dtype::float32 : Dtype::float64);
    return !(same && offset == 0 && as_they_are());
  }

  template <class F>
  void each_entry(F&& f) const {
    for (Size row = 0; row < plan_.numel / plan_.stretch; ++row) {
      Size base = row * plan_.count, entry = row * plan_.period;
      for (Size j = 0, k = 0, used = 0; j < plan_.period; ++j) {
        f(entry + j, base + k);
        if (++used == plan_.span) {
          used = 0;
          if (++k == plan_.count) k = 0;
        }
      }
    }
  }

  template <class P>
  void fill(const P* source, double offset, R* to) const {
    if (!as_they_are()) {
      each_entry([&](Size entry, Size k) { to[entry] = R(offset) + R(scalar(source[k])); });
      return;
    }
    Vec<R> shift = splat<R>(R(offset));
    each_vector<R>(entries_, [&](Size i, auto lanes) {
      store<R, R>(to + i, load<R>(source + i, lanes) + shift, lanes);
    });
  }

  const R* prepare(const Call& c, const void* source, double offset, Buffer<R>& buffer) const {
    if (!source) return nullptr;
    if (!buffer.get()) return static_cast<const R*>(source);
    switch (c.parameter_dtype) {
      case Dtype::float32: fill(static_cast<const float*>(source), offset, buffer.get()); break;
      case Dtype::float64: fill(static_cast<const double*>(source), offset, buffer.get()); break;
      case Dtype::bfloat16: fill(static_cast<const Bfloat16*>(source), offset, buffer.get()); break;
      case Dtype::float16: fill(static_cast<const Float16*>(source), offset, buffer.get()); break;
    }
    return buffer.get();
  }

  const Plan& plan_;
  bool by_element_, single_, every_run_;
  Size entries_;
  Buffer<R> weights_, biases_;
  const R* weight_ = nullptr;
  const R* bias_ = nullptr;
};

}  // namespace evenorm::EVENORM_ISA
