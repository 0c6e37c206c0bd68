// x + addend, rounded to the element type: a residual that is added before anything else.
#pragma once

#include "call.hpp"
#include "threads.hpp"
#include "vector.hpp"

namespace evenorm::EVENORM_ISA {

// Elements that a task adds up.
constexpr Size kAdded = 16384;

template <class T>
EVENORM_LOOP void add_run(const T* x, const T* addend, T* total, Size n) {
  using R = Real<T>;
  each_vector<R>(n, [&](Size i, auto lanes) {
    store<T, R>(total + i, load<R>(x + i, lanes) + load<R>(addend + i, lanes), lanes);
  });
}

// The sum of a call, part by part.
template <class T>
class Sum {
 public:
  explicit Sum(const Call& c)
      : x_(static_cast<const T*>(c.x)), addend_(static_cast<const T*>(c.addend)), total_(static_cast<T*>(c.total)) {}

  // What the verbs read.
  const T* values() const { return addend_ ? total_ : x_; }

  // Elements [flat, flat + n), before they are read.
  void add(Size flat, Size n) const {
    if (addend_) add_run(x_ + flat, addend_ + flat, total_ + flat, n);
  }

 private:
  const T* x_;
  const T* addend_;
  T* total_;
};

template <class T>
void add_all(const T* x, const T* addend, T* total, Size count) {
  parallel(threads_for(count), (count + kAdded - 1) / kAdded, [&](Size task, int) {
    Size first = task * kAdded, left = count - first;
    add_run(x + first, addend + first, total + first, left < kAdded ? left : kAdded);
  });
}

}  // namespace evenorm::EVENORM_ISA
