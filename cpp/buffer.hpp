// Memory that lasts for one call.
#pragma once

#include <cstdlib>
#include <new>

#include "plan.hpp"

namespace evenorm::EVENORM_ISA {

template <class V>
class Buffer {
 public:
  explicit Buffer(Size count) {
    if (count <= 0) return;
    // Whole cache lines, so that threads do not share one.
    std::size_t bytes = (std::size_t(count) * sizeof(V) + 63) / 64 * 64;
    data_ = static_cast<V*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
  }
  ~Buffer() {
    if (data_) std::free(data_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  V* get() { return data_; }
  const V* get() const { return data_; }
  V& operator[](Size i) { return data_[i]; }
  const V& operator[](Size i) const { return data_[i]; }

 private:
  V* data_ = nullptr;
};

}  // namespace evenorm::EVENORM_ISA
