// The mask: which elements are there. What it hides is computed like the rest and cleared where an element's
// result is its own, and is left out, or read as zero, where values meet in sums.
#pragma once

#include "apply.hpp"
#include "buffer.hpp"

namespace evenorm::EVENORM_ISA {

using Flag = std::uint8_t;

// How much of some runs there is.
enum class Seen { none, some, all };

template <class T>
using WordOf = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;

// A stretch of flags of one kind, found by the word. Where it is of some, there may be others besides.
class Stretch {
 public:
  Seen seen;
  Size stop;

  // From i on.
  Stretch(const Flag* valid, Size i, Size n) : seen(kind(valid, i, n)), stop(i + kWord) {
    while (stop + kWords <= n && four(valid + stop, seen)) stop += kWords;
    while (stop < n && kind(valid, stop, n) == seen) stop += kWord;
    if (stop > n) stop = n;
  }

 private:
  static constexpr Size kWord = 8, kWords = 4 * kWord;
  static constexpr std::uint64_t kOnes = 0x0101010101010101;

  static bool four(const Flag* valid, Seen seen) {
    std::uint64_t w[4];
    std::memcpy(w, valid, sizeof w);
    return seen == Seen::all ? (w[0] & w[1] & w[2] & w[3]) == kOnes
                             : seen == Seen::none && (w[0] | w[1] | w[2] | w[3]) == 0;
  }
  static Seen kind(const Flag* valid, Size i, Size n) {
    std::uint64_t word = valid[i] * kOnes;
    if (i + kWord <= n) {
      std::memcpy(&word, valid + i, sizeof word);
    } else {
      for (; i < n; ++i) {
        if (valid[i] * kOnes != word) return Seen::some;
      }
    }
    return word == kOnes ? Seen::all : word == 0 ? Seen::none : Seen::some;
  }
};

template <class T>
inline void keep_one(Flag valid, const T* from, T* to) {
  WordOf<T> word;
  std::memcpy(&word, from, sizeof word);
  word &= WordOf<T>(-WordOf<T>(valid != 0));
  std::memcpy(static_cast<void*>(to), &word, sizeof word);
}

template <class T>
inline void zero(T* to, Size n) {
  std::memset(static_cast<void*>(to), 0, std::size_t(n) * sizeof(T));
}

template <class T>
inline void copy(const T* from, T* to, Size n) {
  std::memcpy(static_cast<void*>(to), from, std::size_t(n) * sizeof(T));
}

// `to` is `from`, and zero where there is no flag.
template <class T>
EVENORM_LOOP void keep_valid(const Flag* valid, const T* from, T* to, Size n) {
  for (Size i = 0; i < n;) {
    Stretch s(valid, i, n);
    if (s.seen == Seen::all) copy(from + i, to + i, s.stop - i);
    if (s.seen == Seen::none) zero(to + i, s.stop - i);
    for (; s.seen == Seen::some && i < s.stop; ++i) keep_one(valid[i], from + i, to + i);
    i = s.stop;
  }
}

// The same in place.
template <class T>
EVENORM_LOOP void keep_valid(const Flag* valid, T* values, Size n) {
  for (Size i = 0; i < n;) {
    Stretch s(valid, i, n);
    if (s.seen == Seen::none) zero(values + i, s.stop - i);
    for (; s.seen == Seen::some && i < s.stop; ++i) keep_one(valid[i], values + i, values + i);
    i = s.stop;
  }
}

// Elements that have a flag, end to end; returns their number. `to` has room for one more.
template <class T>
EVENORM_LOOP Size pack_valid(const Flag* valid, const T* from, T* to, Size n) {
  Size kept = 0;
  for (Size i = 0; i < n;) {
    Stretch s(valid, i, n);
    if (s.seen == Seen::all) {
      copy(from + i, to + kept, s.stop - i);
      kept += s.stop - i;
    }
    for (; s.seen == Seen::some && i < s.stop; ++i) {
      to[kept] = from[i];
      kept += valid[i] != 0;
    }
    i = s.stop;
  }
  return kept;
}

// The flags of runs of n elements, `pitch` apart: one for each element, or one for a run, where the step is 0.
struct Window {
  const Flag* valid;
  Size runs, pitch, n, step;

  bool at(Size i) const { return valid[i * step] != 0; }

  Seen seen() const {
    Seen first = seen(valid);
    for (Size r = 1; r < runs && first != Seen::some; ++r) {
      if (seen(valid + r * pitch) != first) return Seen::some;
    }
    return first;
  }

  // What is valid of runs that are `apart`, end to end; returns its number.
  template <class T>
  Size pack(const T* from, Size apart, T* to) const {
    Size kept = 0;
    for (Size r = 0; r < runs; ++r, from += apart) {
      const Flag* flags = valid + r * pitch;
      if (step) {
        kept += pack_valid(flags, from, to + kept, n);
      } else if (*flags) {
        copy(from, to + kept, n);
        kept += n;
      }
    }
    return kept;
  }

  // The runs as they are, n apart, with zeros for what is hidden.
  template <class T>
  void clean(const T* from, Size apart, T* to) const {
    for (Size r = 0; r < runs; ++r, to += n) {
      const Flag* flags = valid + r * pitch;
      if (step) {
        keep_valid(flags, from + r * apart, to, n);
      } else if (*flags) {
        copy(from + r * apart, to, n);
      } else {
        zero(to, n);
      }
    }
  }

  // Zeros for what is hidden of results.
  template <class T>
  void clear(T* to, Size apart) const {
    for (Size r = 0; r < runs; ++r, to += apart) {
      const Flag* flags = valid + r * pitch;
      if (step) {
        keep_valid(flags, to, n);
      } else if (!*flags) {
        zero(to, n);
      }
    }
  }

 private:
  Seen seen(const Flag* flags) const {
    if (!step) return *flags ? Seen::all : Seen::none;
    Stretch first(flags, 0, n);
    return first.stop == n ? first.seen : Seen::some;
  }
};

// The mask of a call, if it has one, and how many values it leaves each statistic.
class Mask {
 public:
  explicit Mask(const Call& c)
      : plan_(c.plan), flags_(static_cast<const Flag*>(c.mask)),
        counts_(flags_ ? plan_.statistics : 0) {
    for (Size s = 0; flags_ && s < plan_.statistics; ++s) {
      Size b = s / plan_.group, g = s % plan_.group;
      if (b > 0 && plan_.mask.batch == 0) {
        counts_[s] = counts_[s - plan_.group];
      } else if (g > 0 && plan_.mask.group == 0) {
        counts_[s] = counts_[s - 1];
      } else {
        counts_[s] = count(b, g);
      }
    }
  }

  explicit operator bool() const { return flags_; }

  Seen seen(Size s) const {
    if (!flags_ || counts_[s] == plan_.values) return Seen::all;
    return counts_[s] == 0 ? Seen::none : Seen::some;
  }
  // What sums are divided by to be means.
  double values(Size s) const {
    if (!flags_) return double(plan_.values);
    return counts_[s] ? double(counts_[s]) : 1;
  }
  // How many statistics from s on are as s is, at most n.
  Size alike(Size s, Size n) const {
    if (!flags_) return n;
    Size k = 1;
    while (k < n && seen(s + k) == seen(s)) ++k;
    return k;
  }

  // Standardizes to numbers what will be cleared: without eps the rstd of nothing is infinite.
  Center center(Size s, const Center& center) const {
    return seen(s) == Seen::none ? Center{0, 1} : center;
  }

  // The flags of runs of n elements from these indices on.
  Window window(Size batch, Size outer, Size group, Size inner, Size runs, Size n) const {
    const MaskStrides& m = plan_.mask;
    Size offset = batch * m.batch + outer * m.outer + group * m.group + inner * m.inner;
    return {flags_ ? flags_ + offset : nullptr, runs, m.outer, n, m.inner};
  }

 private:
  Size count(Size b, Size g) const {
    Size rows = plan_.mask.outer ? plan_.outer : 1, n = plan_.mask.inner ? plan_.inner : 1, sum = 0;
    const Flag* flags = flags_ + b * plan_.mask.batch + g * plan_.mask.group;
    for (Size o = 0; o < rows; ++o, flags += plan_.mask.outer) {
      for (Size i = 0; i < n; ++i) sum += flags[i] != 0;
    }
    return sum * (plan_.outer / rows) * (plan_.inner / n);
  }

  const Plan& plan_;
  const Flag* flags_;
  Buffer<Size> counts_;
};

}  // namespace evenorm::EVENORM_ISA
