// x + addend, rounded to the element type: a residual that is added before anything else.
#pragma once

#include "call.hpp"
#include "threads.hpp"
#include "vector.hpp"

namespace evenorm::EVENORM_ISA {

// Elements that a task adds up.
constexpr Size kAdded = 16384;

// To `total`, past the caches where the sum is kept `near`, too; the next elements are asked for.
template <class T>
EVENORM_LOOP void add_run(const T* x, const T* addend, T* total, T* near, Size n) {
  using R = Real<T>;
  auto make = [&](Size i, auto lanes) {
    foresee(x + i + n), foresee(addend + i + n);
    return load<R>(x + i, lanes) + load<R>(addend + i, lanes);
  };
  each_stored<R>(total, n, near, make, [&](Size i, Vec<R> v, auto lanes) {
    store<T, R>(total + i, v, lanes);
    if constexpr (std::is_same_v<decltype(lanes), Streamed>) {
      store<T, R>(near + i, v, Full{});
    } else if (near) {
      store<T, R>(near + i, v, lanes);
    }
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

  explicit operator bool() const { return addend_; }

  // Elements [flat, flat + n), before they are read.
  void add(Size flat, Size n, T* near = nullptr) const {
    if (addend_) add_run(x_ + flat, addend_ + flat, total_ + flat, near, n);
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
    add_run<T>(x + first, addend + first, total + first, nullptr, left < kAdded ? left : kAdded);
  });
}

}  // namespace evenorm::EVENORM_ISA
