// Where inner is long: the backward sums, of statistics and of parameters, and the fused backward.
#pragma once

#include "runs.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class RunGradient : public Runs<T> {
  using Base = Runs<T>;
  using typename Base::R;
  using Base::call_;
  using Base::dy_;
  using Base::epilogue_;
  using Base::given;
  using Base::mask_;
  using Base::offset;
  using Base::out_;
  using Base::parameters_;
  using Base::plan_;
  using Base::tile_;
  using Base::x_;

 public:
  using Base::Base;

  // Sums, and the input's gradient where one is asked for.
  void sums() {
    wants_parameters_ = call_.dweight || call_.dbias;
    if (!parameters_.by_element()) {
      one_by_one();
    } else if (plan_.statistics <= kFew && plan_.outer == 1 && plan_.period % plan_.inner == 0) {
      piece_by_piece();
    } else {
      block_by_block();
    }
  }

 private:
  static constexpr Size kFew = kLinks;

  struct Partial : GradSums {
    void merge(const GradSums& other) { this->add(other); }
  };

  Pull pull(Size s, const GradSums& sums) const {
    if (call_.s1) call_.s1[s] = sums.plain;
    if (call_.s2) call_.s2[s] = sums.normalized;
    double n = mask_.values(s);
    return {call_.centered ? sums.plain / n : 0, sums.normalized / n};
  }

  void input(Size s, Size piece, const Center& center, const Pull& pull) const {
    if (out_) Base::grad_input(s, piece, center, pull);
  }

  // One parameter for long parts of runs: each part's sums have a slot, and parameters collect their slots. Where
  // a statistic has but one parameter, each piece has a slot.
  void one_by_one() {
    bool by_piece = parameters_.same_for_runs();
    Size n = plan_.run.chunks_per_run > 1 ? plan_.run.length : plan_.inner;
    bool single = plan_.span % plan_.inner == 0 ||
                  (plan_.inner % plan_.span == 0 && plan_.span % n == 0 && plan_.stretch % plan_.span == 0);
    Size per_chunk = single ? 1 : n / plan_.span + n / plan_.stretch + 3;
    Size per_run = plan_.run.chunks_per_run * per_chunk;
    Size count = by_piece ? plan_.statistics * plan_.run.pieces : plan_.numel / plan_.inner * per_run;
    Buffer<GradSums> slots(wants_parameters_ ? count : 0);
    auto slot = [&](Size flat) {
      return flat / plan_.inner * per_run + flat % plan_.inner / n * per_chunk;
    };
    this->template sweep<Partial>(
        [&](Size s, Size piece) {
          Partial sum;
          GradSums plain;
          Center center = given(s);
          Size next = 0, chunk = -1;
          this->each_place(s, piece, [&](const auto& p) {
            Uniform<R> scale{parameters_.weight(p.index), parameters_.bias(p.index)};
            GradSums part = uniform(p, center, scale);
            sum.add(part, double(scale.w));
            plain.add(part);
            if (by_piece || !wants_parameters_) return;
            // Slots of a chunk follow one another.
            Size here = slot(p.flat);
            next = here == chunk ? next + 1 : here;
            chunk = here;
            slots[next] = part;
          });
          if (by_piece && wants_parameters_) slots[s * plan_.run.pieces + piece] = plain;
          return sum;
        },
        [&](Size s, const GradSums& sums) { return pull(s, sums); },
        [&](Size s, Size piece, const Pull& p) { input(s, piece, given(s), p); });
    if (!wants_parameters_) return;
    if (by_piece) {
      collect(slots);
    } else {
      collect(slots, n, slot);
    }
  }

  template <class Place>
  GradSums uniform(const Place& p, const Center& center, const Uniform<R>& scale) const {
    Seen seen = this->seen(p);
    if (seen == Seen::none) return {};
    Clean<T> all = this->operands(p, seen);
    Size together = epilogue_.curved() ? 1 : p.several.runs;
    GradSums sum;
    for (Size r = 0; r < p.several.runs; r += together) {
      Several several = all.several;
      several.runs = together;
      const T* dy = all.dy + r * several.dy;
      const T* x = all.x + r * several.x;
      Epilogue<T> epilogue = all.epilogue.at(r * several.dense);
      GradSums part{INFINITY, INFINITY};
      if (center.narrow()) {
        part = with_run_way(x, p.n, center, scale, epilogue, [&](const auto& way) {
          return grad_sums_in(dy, x, p.n, several, center, way);
        });
      }
      if (!part.finite()) {
        part = {};
        for (Size k = 0; k < together; ++k) {
          part.add(exact_grad_sums(dy + k * several.dy, x + k * several.x, p.n, center, scale,
                                   epilogue.at(k * several.dense)));
        }
      }
      sum.add(part);
    }
    return sum;
  }

  // Sums of pieces into those of parameters.
  void collect(Buffer<GradSums>& slots) {
    zero_parameters();
    for (Size s = 0; s < plan_.statistics; ++s) {
      Size index = parameters_.index(offset(plan_.dense, s, 0));
      for (Size piece = 0; piece < plan_.run.pieces; ++piece) {
        const GradSums& sum = slots[s * plan_.run.pieces + piece];
        if (call_.dweight) call_.dweight[index] += sum.normalized;
        if (call_.dbias) call_.dbias[index] += sum.plain;
      }
    }
  }

  void zero_parameters() {
    for (Size k = 0; k < plan_.parameters; ++k) {
      if (call_.dweight) call_.dweight[k] = 0;
      if (call_.dbias) call_.dbias[k] = 0;
    }
  }

  template <class Slot>
  void collect(Buffer<GradSums>& slots, Size chunk, const Slot& slot) {
    double* dw = call_.dweight;
    double* db = call_.dbias;
    zero_parameters();
    for (Size run = 0; run < plan_.numel; run += plan_.inner) {
      for (Size start = 0; start < plan_.inner; start += chunk) {
        Size left = plan_.inner - start, next = slot(run + start);
        parameters_.walk(run + start, left < chunk ? left : chunk, [&](Size, Size, Size index) {
          if (dw) dw[index] += slots[next].normalized;
          if (db) db[index] += slots[next].plain;
          ++next;
        });
      }
    }
  }

  // Sums by element: short chains in R, which a flush adds to float64.
  struct Entries {
    R* dw_chain;
    R* db_chain;
    double* dw;
    double* db;
    Size first;  // entry
  };

  GradSums elementwise(Size s, Size piece, const Center& center, const Entries& to) const {
    if (!center.narrow()) return exactly(s, piece, center, to);
    GradSums total;
    this->each_place(s, piece, [&](const auto& p) {
      Seen seen = this->seen(p);
      if (seen == Seen::none) return;
      GradSums part;
      sums_in(this->operands(p, seen), p.n, p.index, &center, to, &part);
      total.add(part);
    });
    if (total.finite()) return total;
    return exactly(s, piece, center, {nullptr, nullptr, nullptr, nullptr, 0});
  }

  // The same for rows of a tile.
  void elementwise(Size first, Size count, const Center* centers, const Entries& to, GradSums* sums) const {
    bool together = tile_ && parameters_.same_for_rows() && !epilogue_.curved() && !this->hidden(first);
    if (together) {
      this->each_rows(first, count, [&](Size r, const Several& several) {
        Size s = first + r;
        Clean<T> rows(dy_ + offset(plan_.dy, s, 0), x_ + offset(plan_.x, s, 0), epilogue_.at(s * plan_.inner),
                      several, {}, Seen::all);
        sums_in(rows, plan_.inner, 0, centers + r, to, sums + r);
      });
    }
    for (Size r = 0; r < count; ++r) {
      Size s = first + r;
      if (!together || !centers[r].narrow()) {
        sums[r] = elementwise(s, 0, centers[r], to);
        for (Size piece = 1; piece < plan_.run.pieces; ++piece) {
          sums[r].add(elementwise(s, piece, centers[r], to));
        }
      } else if (!sums[r].finite()) {
        sums[r] = exactly(s, 0, centers[r], {nullptr, nullptr, nullptr, nullptr, 0});
      }
    }
  }

  void sums_in(const Clean<T>& runs, Size n, Size index, const Center* centers, const Entries& to,
               GradSums* sums) const {
    with_elements(parameters_, index, [&](const auto& scale) {
      with_run_way(runs.x, n, *centers, scale, runs.epilogue, [&](const auto& way) {
        if (wants_parameters_) {
          R* dw = to.dw_chain + index - to.first;
          R* db = to.db_chain + index - to.first;
          grad_sums_in<true>(runs.dy, runs.x, n, runs.several, centers, scale.w, dw, db, way, sums);
        } else {
          R* none = nullptr;
          grad_sums_in<false>(runs.dy, runs.x, n, runs.several, centers, scale.w, none, none, way, sums);
        }
      });
    });
  }

  GradSums exactly(Size s, Size piece, const Center& center, const Entries& to) const {
    GradSums total;
    this->each_place(s, piece, [&](const auto& p) {
      Seen seen = this->seen(p);
      if (seen == Seen::none) return;
      Clean<T> run = this->operands(p, seen);
      with_elements(parameters_, p.index, [&](const auto& scale) {
        total.add(exact_grad_sums(run.dy, run.x, p.n, center, scale, run.epilogue,
                                  to.dw ? to.dw + p.index - to.first : nullptr,
                                  to.db ? to.db + p.index - to.first : nullptr));
      });
    });
    return total;
  }

  // Adds the chains to the sums and empties them; false, and nothing added, where a chain overflowed.
  bool flush(const Entries& to, Size n) const {
    bool sound = true;
    for (Size i = 0; i < n; ++i) {
      sound &= (to.dw_chain[i] - to.dw_chain[i] == 0) & (to.db_chain[i] - to.db_chain[i] == 0);
    }
    if (sound) {
      for (Size i = 0; i < n; ++i) to.dw[i] += double(to.dw_chain[i]);
      for (Size i = 0; i < n; ++i) to.db[i] += double(to.db_chain[i]);
    }
    clear(to.dw_chain, n);
    clear(to.db_chain, n);
    return sound;
  }

  // What overflowed in float32, in float64; what was added in float64 at once is not added again.
  void redo(Size first, Size stop, const Entries& to) const {
    for (Size s = first; s < stop; ++s) {
      Center center = given(s);
      if (!center.narrow()) continue;
      for (Size piece = 0; piece < plan_.run.pieces; ++piece) exactly(s, piece, center, to);
    }
  }

  template <class V>
  static void clear(V* values, Size n) {
    if (n > 0) std::memset(static_cast<void*>(values), 0, std::size_t(n) * sizeof(V));
  }

  void block_by_block() {
    Size inside = plan_.stretch / (plan_.outer * plan_.inner);
    if (inside < 1 || inside > plan_.statistics) inside = plan_.statistics;
    Size rows = rows_per_block(inside);
    Size per_stretch = (inside + rows - 1) / rows, blocks = plan_.statistics / inside * per_stretch;
    int threads = threads_for(plan_.numel);
    Size n = wants_parameters_ ? plan_.period : 0;
    Buffer<R> chains(threads * 2 * n);
    Buffer<double> sums(blocks * 2 * n);
    clear(chains.get(), threads * 2 * n);
    parallel(threads, blocks, [&](Size block, int thread) {
      Size stretch = block / per_stretch, first = stretch * inside + block % per_stretch * rows;
      Size stop = first + rows < (stretch + 1) * inside ? first + rows : (stretch + 1) * inside;
      R* chain = chains.get() + thread * 2 * n;
      double* sum = sums.get() + block * 2 * n;
      clear(sum, 2 * n);
      run_block(first, stop, {chain, chain + n, sum, sum + n, stretch * plan_.period});
    });
    if (!wants_parameters_) return;
    Buffer<double> total(2 * parameters_.entries());
    clear(total.get(), 2 * parameters_.entries());
    for (Size block = 0; block < blocks; ++block) {
      double* dw = total.get() + block / per_stretch * n;
      double* db = dw + parameters_.entries();
      const double* sum = sums.get() + block * 2 * n;
      for (Size i = 0; i < n; ++i) dw[i] += sum[i];
      for (Size i = 0; i < n; ++i) db[i] += sum[n + i];
    }
    parameters_.collect(total.get(), call_.dweight);
    parameters_.collect(total.get() + parameters_.entries(), call_.dbias);
  }

  // Long blocks, so that their sums are few; as many as may keep a machine's threads busy.
  static Size rows_per_block(Size rows) {
    Size thirty_second = (rows + 31) / 32;
    return thirty_second < 16 ? 16 : thirty_second > 128 ? 128 : thirty_second;
  }

  void run_block(Size first, Size stop, const Entries& to) const {
    Center centers[Base::kTile];
    Pull pulls[Base::kTile];
    GradSums sums[Base::kTile];
    // A gradient written in place destroys what a redo would read.
    bool at_once = out_ == dy_ || out_ == x_;
    Size tile = tile_ ? tile_ : 1, flushed = first, links = 0;
    auto empty = [&](Size s) {
      if (wants_parameters_ && !flush(to, plan_.period)) redo(flushed, s, to);
      flushed = s;
      links = 0;
    };
    for (Size s = first, count; s < stop; s += count) {
      count = mask_.alike(s, stop - s < tile ? stop - s : tile);
      if (links + count * plan_.values > kLinks * plan_.period) empty(s);
      links += count * plan_.values;
      this->given(s, count, centers);
      elementwise(s, count, centers, to, sums);
      for (Size r = 0; r < count; ++r) pulls[r] = pull(s + r, sums[r]);
      if (at_once || s + count == stop) empty(s + count);
      if (out_ && tile_) {
        Base::grad_input(s, count, centers, pulls);
        continue;
      }
      for (Size r = 0; out_ && r < count; ++r) {
        for (Size piece = plan_.run.pieces; piece-- > 0;) {
          Base::grad_input(s + r, piece, centers[r], pulls[r]);
        }
      }
    }
  }

  // Few but long rows: threads share each row, and every entry belongs to one piece.
  void piece_by_piece() {
    Size n = wants_parameters_ ? parameters_.entries() : 0, pieces = plan_.run.pieces;
    int threads = threads_for(plan_.numel);
    Buffer<R> chains(2 * n);
    Buffer<double> sums(2 * n);
    Buffer<GradSums> partials(plan_.statistics * pieces);
    Buffer<Pull> pulls(plan_.statistics);
    clear(chains.get(), 2 * n);
    clear(sums.get(), 2 * n);
    Entries to{chains.get(), chains.get() + n, sums.get(), sums.get() + n, 0};
    parallel(threads, pieces, [&](Size piece, int) {
      for (Size s = 0; s < plan_.statistics; ++s) {
        partials[s * pieces + piece] = elementwise(s, piece, given(s), to);
      }
    });
    if (wants_parameters_) {
      if (!flush(to, n)) redo(0, plan_.statistics, to);
      parameters_.collect(to.dw, call_.dweight);
      parameters_.collect(to.db, call_.dbias);
    }
    for (Size s = 0; s < plan_.statistics; ++s) {
      Partial sum;
      for (Size piece = 0; piece < pieces; ++piece) sum.merge(partials[s * pieces + piece]);
      pulls[s] = pull(s, sum);
    }
    if (!out_) return;
    parallel(threads, plan_.statistics * pieces, [&](Size task, int) {
      Size s = task / pieces;
      input(s, task % pieces, given(s), pulls[s]);
    });
  }

  bool wants_parameters_ = false;
};

}  // namespace evenorm::EVENORM_ISA
