// Where inner is long and parameters change by element: the backward sums and the fused backward.
#pragma once

#include "entries.hpp"
#include "gradient_sums.hpp"
#include "runs.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class EntryGradient : public Runs<T> {
  using Base = Runs<T>;

 public:
  explicit EntryGradient(const Call& call) : Base(call), wants_parameters_(call.dweight || call.dbias) {}

 protected:
  using typename Base::R;
  using typename Base::Place;
  using typename Base::Portion;
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

  // Few rows: all of them are worked chunk by chunk.
  static constexpr Size kFew = Base::kTile;

  struct Partial : GradSums {
    void merge(const GradSums& other) { this->add(other); }
  };

  Pull pull(Size s, const GradSums& sums) const {
    if (call_.s1) call_.s1[s] = sums.plain;
    if (call_.s2) call_.s2[s] = sums.normalized;
    // Given statistics do not depend on the input.
    if (call_.rstd) return {};
    double n = mask_.values(s);
    return {call_.centered ? sums.plain / n : 0, sums.normalized / n};
  }

  void input(Size s, Size piece, const Center& center, const Pull& pull) const {
    if (out_) Base::grad_input(s, piece, center, pull);
  }

  // As many rows as lie in the second cache, with their gradients.
  Size rows_together() const {
    Size rows = 4 * kChunk / plan_.inner;
    return rows < 1 ? 1 : rows > Base::kTile ? Base::kTile : rows;
  }

  // Sums where parameters are taken by element, and the input's gradient where one is asked for.
  void by_element() {
    if (plan_.statistics <= kFew && plan_.outer == 1 && parameters_.same_for_rows()) {
      piece_by_piece();
    } else {
      block_by_block();
    }
  }

  const bool wants_parameters_;

 private:
  // Sums of a chunk of some rows.
  void sums_by_element(Size first, Size count, const Portion& part, const Center* centers, Entries<R>& to,
                       GradSums* sums) const {
    bool together = plan_.outer == 1 && parameters_.same_for_rows() && !mask_ && !epilogue_.curved();
    if (together) {
      this->each_rows(first, count, [&](Size r, const Several& several) {
        Size s = first + r;
        Clean<T> rows(dy_ + offset(plan_.dy, s, 0) + part.start, x_ + offset(plan_.x, s, 0) + part.start,
                      epilogue_.at(s * plan_.inner + part.start), several, {}, Seen::all);
        sums_in(rows, part.length, part.start, centers + r, to, sums + r);
      });
    }
    for (Size r = 0; r < count; ++r) {
      if (together && sums[r].finite()) continue;
      bool added = together && centers[r].narrow();
      sums[r] = added ? exact_row(first + r, part, centers[r]) : row_by_element(first + r, part, centers[r], to);
    }
  }

  // Of a row that the entries have already.
  GradSums exact_row(Size s, const Portion& part, const Center& center) const {
    GradSums total;
    this->each_place(s, part, [&](const Place& p) { total.add(exactly(p, Seen::all, center, nullptr)); });
    return total;
  }

  // The same of one row; where float32 cannot hold a part, in float64.
  GradSums row_by_element(Size s, const Portion& part, const Center& center, Entries<R>& to) const {
    GradSums total;
    this->each_place(s, part, [&](const Place& p) {
      Seen seen = this->seen(p);
      if (seen == Seen::none) return;
      GradSums sum = kUnsound;
      if (center.narrow()) sums_in(this->operands(p, seen), p.n, p.index, &center, to, &sum);
      if (!sum.finite()) sum = exactly(p, seen, center, center.narrow() ? nullptr : &to);
      total.add(sum);
    });
    return total;
  }

  void sums_in(const Clean<T>& runs, Size n, Size index, const Center* centers, Entries<R>& to,
               GradSums* sums) const {
    with_elements(parameters_, index, [&](const auto& scale) {
      with_run_way(runs.x, n, *centers, scale, runs.epilogue, [&](const auto& way) {
        auto own = way.scale(scale);
        if (wants_parameters_) {
          grad_sums_in<true>(runs.dy, runs.x, n, runs.several, centers, own, to.chains(index, n), way, sums);
        } else {
          grad_sums_in<false>(runs.dy, runs.x, n, runs.several, centers, own, EntryChains<R>{}, way, sums);
        }
      });
    });
  }

  GradSums exactly(const Place& p, Seen seen, const Center& center, Entries<R>* to) const {
    Clean<T> run = this->operands(p, seen);
    return with_elements(parameters_, p.index, [&](const auto& scale) {
      return exact_grad_sums(run.dy, run.x, p.n, center, scale, run.epilogue, [&](Size i, double dw, double db) {
        if (to && wants_parameters_) to->add(p.index + i, dw, db);
        return scale.weight(i);
      });
    });
  }

  // What overflowed in float32, in float64; what was added in float64 at once is not added again.
  void redo(Size first, Size stop, const Portion& part, Entries<R>& to) const {
    for (Size s = first; s < stop; ++s) {
      Center center = given(s);
      if (!center.narrow()) continue;
      this->each_place(s, part, [&](const Place& p) {
        Seen seen = this->seen(p);
        if (seen != Seen::none) exactly(p, seen, center, &to);
      });
    }
  }

  void block_by_block() {
    Size inside = plan_.stretch / (plan_.outer * plan_.inner);
    if (inside < 1 || inside > plan_.statistics) inside = plan_.statistics;
    Size rows = rows_per_block(inside);
    Size per_stretch = (inside + rows - 1) / rows, blocks = plan_.statistics / inside * per_stretch;
    int threads = threads_for(plan_.numel);
    Size n = wants_parameters_ ? plan_.period : 0, room = Entries<R>::room(n);
    bool at_once = blocks == 1 && parameters_.as_they_are();
    Buffer<R> chains(threads * room);
    Buffer<double> sums(at_once ? 0 : 2 * blocks * n);
    parallel(threads, blocks, [&](Size block, int thread) {
      Size stretch = block / per_stretch, first = stretch * inside + block % per_stretch * rows;
      Size stop = first + rows < (stretch + 1) * inside ? first + rows : (stretch + 1) * inside;
      double* dw = at_once ? call_.dweight : sums.get() + block * n;
      double* db = at_once ? call_.dbias : sums.get() + (blocks + block) * n;
      Entries<R> to(chains.get() + thread * room, stretch * plan_.period, n, dw, db);
      run_block(first, stop, to);
    });
    if (at_once || !wants_parameters_) return;
    collect(sums.get(), n, blocks, per_stretch, call_.dweight);
    collect(sums.get() + blocks * n, n, blocks, per_stretch, call_.dbias);
  }

  // Sums of blocks into those of parameters.
  void collect(const double* sums, Size n, Size blocks, Size per_stretch, double* result) const {
    if (!result) return;
    bool whole = parameters_.as_they_are();
    Buffer<double> total(whole ? 0 : parameters_.entries());
    double* entries = whole ? result : total.get();
    for (Size block = 0; block < blocks; ++block) {
      double* to = entries + block / per_stretch * n;
      const double* from = sums + block * n;
      if (block % per_stretch == 0) {
        for (Size i = 0; i < n; ++i) to[i] = from[i];
      } else {
        for (Size i = 0; i < n; ++i) to[i] += from[i];
      }
    }
    if (!whole) parameters_.collect(entries, result);
  }

  // Long blocks, so that their sums are few; as many as may keep a machine's threads busy.
  Size rows_per_block(Size rows) const {
    Size wanted = (rows + 31) / 32, most = 2 * kTask / plan_.inner;
    if (most < 128) most = 128;
    return wanted < 32 ? 32 : wanted > most ? most : wanted;
  }

  void run_block(Size first, Size stop, Entries<R>& to) const {
    Center centers[Base::kTile];
    Pull pulls[Base::kTile];
    // A gradient written in place destroys what a redo would read.
    bool at_once = out_ == dy_ || out_ == x_ || epilogue_.d_residual == dy_;
    Size tile = rows_together(), flushed = first, links = 0;
    auto empty = [&](Size s) {
      if (wants_parameters_ && !to.flush()) {
        for (Size piece = 0; piece < plan_.run.pieces; ++piece) {
          this->each_chunk(piece, [&](const Portion& part) { redo(flushed, s, part, to); });
        }
      }
      flushed = s;
      links = 0;
    };
    for (Size s = first, count; s < stop; s += count) {
      count = mask_.alike(s, stop - s < tile ? stop - s : tile);
      if (links + count * plan_.values > kLinks * plan_.period) empty(s);
      links += count * plan_.values;
      this->given(s, count, centers);
      GradSums sums[Base::kTile];
      for (Size piece = 0; piece < plan_.run.pieces; ++piece) add_piece(s, count, piece, centers, to, sums);
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

  void add_piece(Size first, Size count, Size piece, const Center* centers, Entries<R>& to, GradSums* sums) const {
    GradSums whole[Base::kTile];
    this->each_chunk(piece, [&](const Portion& part) {
      GradSums some[Base::kTile];
      sums_by_element(first, count, part, centers, to, some);
      for (Size r = 0; r < count; ++r) whole[r].add(some[r]);
    });
    for (Size r = 0; r < count; ++r) sums[r].add(whole[r]);
  }

  // Few rows: threads share each of them, and a chunk of all rows is done with its entries.
  void piece_by_piece() {
    Size rows = plan_.statistics, pieces = plan_.run.pieces, room = Entries<R>::room(kChunk);
    int threads = threads_for(plan_.numel);
    bool at_once = parameters_.as_they_are();
    Size entries = at_once || !wants_parameters_ ? 0 : parameters_.entries();
    Buffer<double> sums(2 * entries);
    double* dw = at_once ? call_.dweight : sums.get();
    double* db = at_once ? call_.dbias : sums.get() + entries;
    Buffer<R> chains(threads * room);
    Buffer<GradSums> partials(rows * pieces);
    Buffer<Center> centers(rows);
    this->given(0, rows, centers.get());
    parallel(threads, pieces, [&](Size piece, int thread) {
      GradSums whole[kFew];
      this->each_chunk(piece, [&](const Portion& part) {
        Entries<R> to(chains.get() + thread * room, part.start, wants_parameters_ ? part.length : 0,
                      dw ? dw + part.start : nullptr, db ? db + part.start : nullptr);
        GradSums some[kFew];
        sums_by_element(0, rows, part, centers.get(), to, some);
        for (Size s = 0; s < rows; ++s) whole[s].add(some[s]);
        if (wants_parameters_ && !to.flush()) redo(0, rows, part, to);
      });
      for (Size s = 0; s < rows; ++s) partials[s * pieces + piece] = whole[s];
    });
    if (entries) {
      parameters_.collect(dw, call_.dweight);
      parameters_.collect(db, call_.dbias);
    }
    Buffer<Pull> pulls(rows);
    for (Size s = 0; s < rows; ++s) {
      Partial sum;
      for (Size piece = 0; piece < pieces; ++piece) sum.merge(partials[s * pieces + piece]);
      pulls[s] = pull(s, sum);
    }
    if (!out_) return;
    parallel(threads, rows * pieces, [&](Size task, int) {
      Size s = task / pieces;
      input(s, task % pieces, centers[s], pulls[s]);
    });
  }
};

}  // namespace evenorm::EVENORM_ISA
