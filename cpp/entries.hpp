// Sums by element over many rows: short chains in R, which a flush adds to float64.
#pragma once

#include "vector.hpp"

namespace evenorm::EVENORM_ISA {

// Chains from an entry on; what they hold counts unless they are new.
template <class R>
struct EntryChains {
  R* dw;
  R* db;
  bool fresh;
};

template <class R>
class Entries {
 public:
  // Reals that the chains of n entries take: a vector may reach beyond the last one.
  static Size room(Size n) { return n ? 2 * ((n + 2 * 16 - 1) / 16 * 16) : 0; }

  // Entries [first, first + count); either sum may be absent.
  Entries(R* chains, Size first, Size count, double* dw, double* db)
      : first_(first), count_(count), chains_(chains), dw_(dw), db_(db) {}

  // The chains of n entries.
  EntryChains<R> chains(Size index, Size n) {
    bool fresh = empty_ && index == first_ && n == count_;
    if (empty_ && !fresh) clear(chains_, room(count_));
    empty_ = false;
    return {dw_chain() + (index - first_), db_chain() + (index - first_), fresh};
  }

  // Adds the chains to the sums and empties them; false, and nothing added, where a chain overflowed.
  bool flush() {
    if (empty_) return settle(), true;
    bool sound = fresh_ ? put(dw_chain(), dw_) & put(db_chain(), db_) : finite(dw_chain()) && finite(db_chain());
    if (!fresh_ && sound) more(dw_chain(), dw_), more(db_chain(), db_);
    if (sound) fresh_ = false;
    empty_ = true;
    return sound;
  }

  // Adds to an entry's sums at once.
  void add(Size index, double normalized, double plain) {
    settle();
    if (dw_) dw_[index - first_] += normalized;
    if (db_) db_[index - first_] += plain;
  }

 private:
  R* dw_chain() const { return chains_; }
  R* db_chain() const { return chains_ + room(count_) / 2; }

  // Sums to which may be added.
  void settle() {
    if (fresh_ && dw_) clear(dw_, count_);
    if (fresh_ && db_) clear(db_, count_);
    fresh_ = false;
  }

  // v - v is 0 where v is finite.
  bool finite(const R* chain) const {
    Size wrong = 0;
    for (Size i = 0; i < count_; ++i) wrong += !(chain[i] - chain[i] == 0);
    return wrong == 0;
  }
  // Writes the sums, finite or not.
  bool put(const R* chain, double* to) const {
    if (!to) return finite(chain);
    Vec<double> rest{};
    each_vector<R>(count_, [&](Size i, auto lanes) {
      Vec<R> v = keep<R>(read<Vec<R>>(chain + i), lanes);
      for (int which = 0; which < kHalves<R>; ++which) {
        Vec<double> wide = half(v, which);
        rest += wide - wide;
        put(to, i + which * kLanes<double>, wide, lanes);
      }
    });
    double sum = 0;
    for (int k = 0; k < kLanes<double>; ++k) sum += rest[k];
    return sum == 0;
  }
  void put(double* to, Size i, Vec<double> v, Full) const { write(to + i, v); }
  void put(double* to, Size i, Vec<double> v, Part) const {
    for (int k = 0; k < kLanes<double> && i + k < count_; ++k) to[i + k] = v[k];
  }
  void more(const R* chain, double* to) const {
    for (Size i = 0; to && i < count_; ++i) to[i] += double(chain[i]);
  }

  Size first_, count_;
  R* chains_;
  double* dw_;
  double* db_;
  bool fresh_ = true, empty_ = true;
};

}  // namespace evenorm::EVENORM_ISA
