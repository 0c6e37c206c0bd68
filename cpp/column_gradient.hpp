// Where inner is short: the backward sums, of statistics and of parameters, and the fused backward.
#pragma once

#include "column_sums.hpp"
#include "columns.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class ColumnGradient : public Columns<T> {
  using Base = Columns<T>;
  using typename Base::Place;
  using typename Base::R;
  using typename Base::Range;
  using typename Base::Work;
  using Base::by_run_;
  using Base::call_;
  using Base::cut_;
  using Base::dy_;
  using Base::epilogue_;
  using Base::mask_;
  using Base::offset;
  using Base::out_;
  using Base::parameters_;
  using Base::plan_;
  using Base::row_;
  using Base::tail_;
  using Base::x_;

 public:
  explicit ColumnGradient(const Call& call)
      : Base(call), wants_parameters_(call.dweight || call.dbias),
        in_passing_(out_ && call.rstd &&
                    !(tail_ && (out_ == dy_ || out_ == x_ || epilogue_.d_residual == dy_))),
        parts_(cut_.pieces / cut_.pieces_per_part), room_(Slab::rounded(cut_.block)),
        by_row_(wants_parameters_ && plan_.by_row ? plan_.batch * plan_.outer * cut_.blocks : 0),
        at_once_(wants_parameters_ && !plan_.by_row && plan_.batch * parts_ == 1 && parameters_.as_they_are()),
        by_column_(wants_parameters_ && !plan_.by_row && !at_once_
                       ? plan_.batch * cut_.blocks * parts_ * 2 * room_
                       : 0) {}

  // Sums, and the input's gradient where one is asked for.
  void sums() {
    auto prepare = [&](const Place& p, Work& work) { this->given(p, work.slab, false); };
    auto first = [&](const Place& p, Size piece, Work& work) { sums(p, piece, work); };
    auto done = [&](const Place& p, Work& work) { finish(p, work.slab); };
    if (out_ && !in_passing_) {
      this->sweep(prepare, first, done,
                  [&](const Place& p, Size piece, Work& work) { Base::grad_input(p, piece, work); });
    } else {
      this->sweep(prepare, first, done, nullptr);
    }
    if (wants_parameters_ && !at_once_) plan_.by_row ? collect_rows() : collect_columns();
  }

 private:
  void sums(const Place& p, Size piece, Work& work) {
    Slab& slab = work.slab;
    Lines<R>& lines = work.lines;
    Range range = this->rows(piece);
    double* plain = slab.partial + 2 * piece * slab.room;
    clear(plain, 2 * slab.room);
    prepare(p, piece, work);
    for (Size r = range.first; r < range.stop; r += kLinks) {
      Range tile{r, r + kLinks < range.stop ? r + kLinks : range.stop};
      lines.clear_chains();
      add(p, piece, tile, work);
      flush_chains(p.width, slab, lines, plain, plain + slab.room,
                   [&](Size k) { return column(p, tile, slab, k); });
      if (in_passing_) Base::grad_input(p, piece, tile, work, epilogue_.bent() ? x_ : nullptr);
    }
  }

  // As little as the sums need, and the input's gradient where it is found in passing.
  void prepare(const Place& p, Size piece, Work& work) const {
    bool scaled = epilogue_.bent() || plan_.by_row;
    if (in_passing_ && !by_run_) {
      this->prepare_back(p, piece, work);
    } else {
      this->prepared(p, piece, work, [&](Lines<R>& lines) {
        scaled ? lines.prepare(work.slab, p.width, this->folded(p, piece))
               : lines.prepare_deviations(work.slab, p.width);
      });
    }
  }

  // Adds at most kLinks rows of a piece to the chains.
  void add(const Place& p, Size piece, const Range& tile, Work& work) {
    Several several = this->several(tile.stop - tile.first);
    const T* dy = dy_ + offset(plan_.dy, p, tile.first);
    const T* x = x_ + offset(plan_.x, p, tile.first);
    Epilogue<T> epilogue = epilogue_.at(offset(plan_.dense, p, tile.first));
    if (mask_ || epilogue.curved() || (plan_.by_row && epilogue.bent())) {
      for (Size row = tile.first; row < tile.stop; ++row) add(p, piece, row, work);
    } else if (plan_.by_row) {
      add_weighted(p, tile, dy, x, several, work);
    } else {
      Folded<R> scale = this->folded(p, piece);
      with_row_way(x, p.width, work.slab, work.lines, scale, epilogue, [&](const auto& way) {
        add_rows(dy, x, p.width, several, work.lines, way.scale(scale), way);
      });
    }
  }

  void add_weighted(const Place& p, const Range& tile, const T* dy, const T* x, const Several& several,
                    Work& work) {
    R w[kLinks]{};
    GradSums sums[kLinks];
    for (Size r = 0; r < several.runs; ++r) w[r] = this->uniform(p, tile.first + r).w;
    add_weighted_rows(dy, x, p.width, several, work.lines, w, sums);
    for (Size r = 0; wants_parameters_ && r < several.runs; ++r) {
      if (work.lines.odds || !sums[r].finite()) {
        sums[r] = exact_row(dy + r * several.dy, x + r * several.x, p.width, work.slab, Uniform<R>{w[r], 0},
                            epilogue_);
      }
      *row_sums(p, tile.first + r) = sums[r];
    }
  }

  GradSums* row_sums(const Place& p, Size row) {
    return &by_row_[(p.batch * plan_.outer + row) * cut_.blocks + p.number % cut_.blocks];
  }

  void add(const Place& p, Size piece, Size row, Work& work) {
    Window window = this->window(p, row, p.width);
    Seen seen = this->seen(window);
    GradSums* by_row = wants_parameters_ && plan_.by_row ? row_sums(p, row) : nullptr;
    if (by_row) *by_row = {};
    if (seen == Seen::none) return;
    Clean<T> clean(dy_ + offset(plan_.dy, p, row), x_ + offset(plan_.x, p, row),
                   epilogue_.at(offset(plan_.dense, p, row)), {}, window, seen);
    if (plan_.by_row) {
      GradSums sum = add_uniform_row(clean.dy, clean.x, p.width, work.slab, work.lines, this->uniform(p, row),
                                     clean.epilogue);
      if (by_row) *by_row = sum;
      return;
    }
    this->with_piece_scale(p, piece, [&](const auto& scale) {
      with_row_way(clean.x, p.width, work.slab, work.lines, scale, clean.epilogue, [&](const auto& way) {
        add_row(clean.dy, clean.x, p.width, work.lines, way.scale(scale), way);
      });
    });
  }

  // A column in float64.
  GradSums column(const Place& p, const Range& tile, const Slab& slab, Size k) const {
    GradSums sum;
    for (Size row = tile.first; row < tile.stop; ++row) {
      double w = plan_.by_row ? double(this->uniform(p, row).w) : 1;
      sum.add(exact(p, row, slab, k), w);
    }
    return sum;
  }

  GradSums exact(const Place& p, Size row, const Slab& slab, Size k) const {
    if (mask_ && !this->window(p, row, p.width).at(k)) return {};
    return with_scale(parameters_, this->index(p, row), [&](const auto& scale) {
      return exact_terms(dy_ + offset(plan_.dy, p, row), x_ + offset(plan_.x, p, row), k, slab, scale,
                         epilogue_.at(offset(plan_.dense, p, row)));
    });
  }

  // Sums of pieces into those of parts and of statistics.
  void finish(const Place& p, Slab& slab) {
    Size each = cut_.pieces_per_part;
    for (Size part = 0; part < parts_; ++part) {
      double* total = slab.partial + 2 * part * each * slab.room;
      for (Size piece = 1; piece < each; ++piece) {
        const double* more = total + 2 * piece * slab.room;
        for (Size k = 0; k < 2 * slab.room; ++k) total[k] += more[k];
      }
      if (tail_ && part + 1 == parts_) add_tail(p, slab, total);
      if (at_once_) {
        put(total, p, call_.dbias);
        put(total + slab.room, p, call_.dweight);
      } else if (wants_parameters_ && !plan_.by_row) {
        double* kept = by_column_.get() + (p.number * parts_ + part) * 2 * room_;
        for (Size k = 0; k < 2 * slab.room; ++k) kept[k] = total[k];
      }
    }
    weigh(p, slab);
    Size first = p.batch * plan_.group + p.first / plan_.inner;
    if (cut_.fold * plan_.inner == 1) {
      settle(first, p.width, slab.c1, slab.c2);
    } else {
      this->each_group(p, [&](Size s, Size g) {
        GradSums sum = group_sums(slab, g);
        settle(s, 1, &sum.plain, &sum.normalized);
        this->set(slab, g, slab.center(g * plan_.inner), {sum.plain, sum.normalized});
      });
    }
  }

  // The sums of statistics are kept, and made means; given statistics do not depend on the input.
  void settle(Size first, Size count, double* plain, double* normalized) const {
    if (call_.s1) std::memcpy(call_.s1 + first, plain, std::size_t(count) * sizeof(double));
    if (call_.s2) std::memcpy(call_.s2 + first, normalized, std::size_t(count) * sizeof(double));
    for (Size k = 0; k < count; ++k) {
      double n = mask_.values(first + k);
      plain[k] = call_.centered && !call_.rstd ? plain[k] / n : 0;
      normalized[k] = call_.rstd ? 0 : normalized[k] / n;
    }
  }

  // c1 and c2 are the sums of columns, weights included.
  void weigh(const Place& p, Slab& slab) const {
    clear(slab.c1, p.width);
    clear(slab.c2, p.width);
    for (Size part = 0; part < parts_; ++part) {
      const double* total = slab.partial + 2 * part * cut_.pieces_per_part * slab.room;
      const R* w = parameters_.by_element() ? parameters_.weight() + this->index(p, part * cut_.part) : nullptr;
      if (w) {
        for (Size k = 0; k < p.width; ++k) slab.c1[k] += double(w[k]) * total[k];
        for (Size k = 0; k < p.width; ++k) slab.c2[k] += double(w[k]) * total[slab.room + k];
      } else {
        for (Size k = 0; k < p.width; ++k) slab.c1[k] += total[k];
        for (Size k = 0; k < p.width; ++k) slab.c2[k] += total[slab.room + k];
      }
    }
  }

  // Sums of columns that are those of parameters.
  void put(const double* total, const Place& p, double* to) const {
    if (to) std::memcpy(to + this->index(p, 0), total, std::size_t(p.width) * sizeof(double));
  }

  void add_tail(const Place& p, const Slab& slab, double* total) const {
    for (Size k = 0; k < tail_ * row_; ++k) {
      GradSums terms = exact(p, cut_.rows, slab, k);
      total[k] += terms.plain;
      total[slab.room + k] += terms.normalized;
    }
  }

  GradSums group_sums(const Slab& slab, Size group) const {
    GradSums sum;
    for (Size f = 0; f < cut_.fold; ++f) {
      Size k = f * row_ + group * plan_.inner;
      for (Size stop = k + plan_.inner; k < stop; ++k) sum.add({slab.c1[k], slab.c2[k]});
    }
    return sum;
  }

  void collect_columns() {
    Size n = parameters_.entries();
    Buffer<double> entries(2 * n);
    for (Size k = 0; k < 2 * n; ++k) entries[k] = 0;
    for (Size number = 0; number < plan_.batch * cut_.blocks; ++number) {
      Place p = this->place(number);
      for (Size part = 0; part < parts_; ++part) {
        const double* total = by_column_.get() + (number * parts_ + part) * 2 * room_;
        Size index = this->index(p, part * cut_.part);
        for (Size k = 0; k < p.width; ++k) entries[index + k] += total[room_ + k];
        for (Size k = 0; k < p.width; ++k) entries[n + index + k] += total[k];
      }
    }
    parameters_.collect(entries.get(), call_.dweight);
    parameters_.collect(entries.get() + n, call_.dbias);
  }

  void collect_rows() {
    double* dw = call_.dweight;
    double* db = call_.dbias;
    for (Size k = 0; k < plan_.parameters; ++k) {
      if (dw) dw[k] = 0;
      if (db) db[k] = 0;
    }
    for (Size row = 0; row < plan_.batch * plan_.outer; ++row) {
      Size index = parameters_.index(row * row_);
      for (Size block = 0; block < cut_.blocks; ++block) {
        const GradSums& sum = by_row_[row * cut_.blocks + block];
        if (dw) dw[index] += sum.normalized;
        if (db) db[index] += sum.plain;
      }
    }
  }

  bool wants_parameters_;
  bool in_passing_;  // the input's gradient depends on no sum, and destroys no operand of one
  Size parts_, room_;
  Buffer<GradSums> by_row_;
  bool at_once_;  // every column is a parameter
  Buffer<double> by_column_;
};

}  // namespace evenorm::EVENORM_ISA
