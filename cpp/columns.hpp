// Where inner is short: dense rows, reduced column by column; columns then merge into groups.
#pragma once

#include <algorithm>

#include "clean.hpp"
#include "column_moments.hpp"
#include "column_rows.hpp"
#include "column_sweep.hpp"
#include "parameters.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class Columns : protected ColumnSweep<Real<T>> {
  using Base = ColumnSweep<Real<T>>;

 public:
  explicit Columns(const Call& call)
      : Base(call.plan, call.rstd ? call.plan.given_column : call.plan.column), call_(call),
        by_run_(plan_.in_order && cut_.fold == 1), parameters_(call, plan_.by_element && !(by_run_ && !call.dy)),
        run_parameters_(call, false), epilogue_(call), mask_(call),
        valid_rows_(mask_ && plan_.mask.group == 0 ? plan_.batch * plan_.outer : 0),
        x_(static_cast<const T*>(call.x)), dy_(static_cast<const T*>(call.dy)),
        out_(static_cast<T*>(call.out)), row_(plan_.group * plan_.inner),
        tail_(plan_.outer % cut_.fold) {
    if (valid_rows_.get()) list_rows();
  }

  void moments() {
    sweep(nullptr, [&](const Place& p, Size piece, Work& work) { moments(p, piece, work); },
          [&](const Place& p, Work& work) { finish_moments(p, work.slab); }, nullptr);
  }

  void apply() {
    sweep([&](const Place& p, Work& work) { given(p, work.slab, false); }, nullptr, nullptr,
          [&](const Place& p, Size piece, Work& work) { apply(p, piece, work); });
  }

  void forward() {
    sweep(nullptr, [&](const Place& p, Size piece, Work& work) { moments(p, piece, work); },
          [&](const Place& p, Work& work) { finish_moments(p, work.slab); },
          [&](const Place& p, Size piece, Work& work) { apply(p, piece, work); });
  }

  void grad_input() {
    sweep([&](const Place& p, Work& work) { given(p, work.slab, true); }, nullptr, nullptr,
          [&](const Place& p, Size piece, Work& work) { grad_input(p, piece, work); });
  }

 protected:
  using R = Real<T>;
  using typename Base::Place;
  using typename Base::Range;
  using typename Base::Work;
  using Base::cut_;
  using Base::plan_;
  using Base::prepared;
  using Base::rows;
  using Base::sweep;

  Size offset(const Strides& strides, const Place& p, Size row) const {
    return p.batch * strides.batch + row * cut_.fold * strides.outer + p.first;
  }

  // The parameter of a row, or the entry of its first column.
  Size index(const Place& p, Size row) const {
    Size flat = offset(plan_.dense, p, row);
    if (!parameters_.by_element()) return parameters_.index(flat);
    return flat / plan_.stretch * plan_.period + p.first;
  }

  // Calls f(row, width) for rows, after the last one for the short rest of folding.
  template <class F>
  void each_row(const Place& p, const Range& range, F&& f) const {
    for (Size r = range.first; r < range.stop; ++r) f(r, p.width);
    if (tail_ && range.stop == cut_.rows) f(cut_.rows, tail_ * row_);
  }

  // Calls f(statistic, group) for the groups of a slab.
  template <class F>
  void each_group(const Place& p, F&& f) const {
    Size first = p.first / plan_.inner, count = p.width / cut_.fold / plan_.inner;
    for (Size g = 0; g < count; ++g) f(p.batch * plan_.group + first + g, g);
  }

  void set(Slab& slab, Size group, const Center& center, const Pull& pull) const {
    if (by_run_) slab.centers[group] = center, slab.pulls[group] = pull;
    if (by_run_ && !call_.dy) return;
    for (Size f = 0; f < cut_.fold; ++f) {
      for (Size i = 0; i < plan_.inner; ++i) {
        Size k = f * row_ + group * plan_.inner + i;
        slab.mean[k] = center.mean;
        slab.rstd[k] = center.rstd;
        slab.c1[k] = pull.c1;
        slab.c2[k] = pull.c2;
      }
    }
  }

  // For each batch index the rows that are there, in order; the rest of its room points beyond them.
  void list_rows() {
    for (Size b = 0; b < plan_.batch; ++b) {
      Size* list = valid_rows_.get() + b * plan_.outer;
      Size count = 0;
      for (Size row = 0; row < plan_.outer; ++row) {
        if (mask_.window(b, row, 0, 0, 1, 1).at(0)) list[count++] = row;
      }
      std::fill(list + count, list + plan_.outer, plan_.outer);
    }
  }

  // The rows of a piece that are there; where a mask hides columns, all of them.
  Rows<T> valid_rows(const Place& p, Size piece) const {
    Range range = rows(piece);
    Size pitch = cut_.fold * plan_.x.outer;
    if (!valid_rows_.get()) {
      return {x_ + offset(plan_.x, p, range.first), pitch, range.stop - range.first};
    }
    const Size* list = valid_rows_.get() + p.batch * plan_.outer;
    const Size* first = std::lower_bound(list, list + plan_.outer, range.first);
    const Size* stop = std::lower_bound(first, list + plan_.outer, range.stop);
    return {x_ + offset(plan_.x, p, 0), pitch, stop - first, first};
  }

  // The flags of a row: one, or one for each column.
  Window window(const Place& p, Size row, Size width) const {
    if (plan_.mask.group == 0) return mask_.window(p.batch, row, 0, 0, 1, width);
    Window columns = mask_.window(p.batch, row, p.first, 0, 1, width);
    columns.step = 1;
    return columns;
  }
  Seen seen(const Window& window) const { return mask_ ? window.seen() : Seen::all; }

  // Calls work(flat) for a row that is written, unless it is hidden.
  template <class F>
  void shown(const Place& p, Size row, Size width, const F& work) const {
    Size flat = offset(plan_.dense, p, row);
    Window window = this->window(p, row, width);
    Seen seen = this->seen(window);
    if (seen != Seen::none) work(flat);
    if (seen == Seen::all) return;
    window.clear(out_ + flat, 0);
    if (epilogue_.d_residual) window.clear(epilogue_.d_residual + flat, 0);
  }

  Center center(Size s, double mean, double m2) const {
    return mask_.center(s, {mean, 1 / std::sqrt(m2 / mask_.values(s) + call_.eps)});
  }
  Center given(Size s) const {
    double mean = call_.mean ? call_.mean[s] : 0;
    return call_.rstd ? mask_.center(s, {mean, call_.rstd[s]}) : center(s, mean, call_.m2[s]);
  }
  void given(const Place& p, Slab& slab, bool pulled) const {
    if (cut_.fold * plan_.inner == 1 && !mask_) return given_columns(p, slab, pulled);
    each_group(p, [&](Size s, Size g) {
      Pull pull;
      if (pulled) pull = {call_.s1 ? call_.s1[s] : 0, call_.s2 ? call_.s2[s] : 0};
      set(slab, g, given(s), pull);
    });
  }

  // The same where every column is a statistic.
  void given_columns(const Place& p, Slab& slab, bool pulled) const {
    Size first = p.batch * plan_.group + p.first;
    auto copy = [&](const double* from, double* to) {
      for (Size k = 0; k < p.width; ++k) to[k] = from ? from[first + k] : 0;
    };
    copy(call_.mean, slab.mean);
    if (call_.rstd) {
      copy(call_.rstd, slab.rstd);
    } else {
      rstds(call_.m2 + first, p.width, double(plan_.values), call_.eps, slab.rstd);
    }
    copy(pulled ? call_.s1 : nullptr, slab.c1);
    copy(pulled ? call_.s2 : nullptr, slab.c2);
  }

  void moments(const Place& p, Size piece, const Work& work) const {
    column_moments(valid_rows(p, piece), p.width, call_.centered, work.lines, partial(p, work.slab, piece));
  }

  ColumnMoments partial(const Place& p, const Slab& slab, Size piece) const {
    double* memory = slab.partial + 2 * piece * slab.room;
    return {double(valid_rows(p, piece).count), memory, memory + slab.room};
  }

  void finish_moments(const Place& p, Slab& slab) const {
    ColumnMoments all = partial(p, slab, 0);
    for (Size piece = 1; piece < cut_.pieces; ++piece) {
      merge_columns(partial(p, slab, piece), p.width, all);
    }
    each_group(p, [&](Size s, Size g) {
      Moments m = mask_.seen(s) == Seen::none ? Moments{} : group_moments(p, all, g);
      if (call_.mean) call_.mean[s] = m.mean;
      if (call_.m2) call_.m2[s] = m.m2;
      set(slab, g, center(s, m.mean, m.m2), {});
    });
  }

  // Columns of equal counts: the M2 of their means times the count, and the sum of theirs.
  Moments group_moments(const Place& p, const ColumnMoments& all, Size group) const {
    Size at = group * plan_.inner;
    Moments m{all.count, all.mean[at], all.m2[at]};
    if (plan_.inner * cut_.fold > 1) {
      Chunk<double> means{all.mean + at, row_, cut_.fold, plan_.inner};
      Chunk<double> m2s{all.m2 + at, row_, cut_.fold, plan_.inner};
      m = centered_moments(means, {});
      m = {all.count * m.count, m.mean, m.m2 * all.count + sum_in(m2s)};
    }
    if (tail_) {
      const T* x = x_ + offset(plan_.x, p, cut_.rows) + at;
      m.merge(moments_of(Chunk<T>{x, row_, tail_, plan_.inner}, call_.centered, m));
    }
    return m;
  }

  void apply(const Place& p, Size piece, Work& work) const {
    Range range = rows(piece);
    if (by_run_) {
      return each_row(p, range, [&](Size r, Size width) {
        Size flat = offset(plan_.dense, p, r), n = plan_.inner;
        apply_runs(x_ + offset(plan_.x, p, r), out_ + flat, n, Several{width / n, n, n, n, 1}, work.slab.centers,
                   run_parameters_.uniforms(flat), epilogue_.at(flat), call_.stream);
      });
    }
    prepared(p, piece, work, [&](Lines<R>& lines) { lines.prepare(work.slab, p.width, folded(p, piece)); });
    each_scaled_rows(p, piece, range, work, [&](Size r, Size rows, Size width, const auto& scale) {
      shown(p, r, width, [&](Size flat) {
        apply_rows(x_ + offset(plan_.x, p, r), out_ + flat, width, several(rows), work.slab, work.lines, scale,
                   epilogue_.at(flat), call_.stream);
      });
    });
  }

  void grad_input(const Place& p, Size piece, Work& work) const {
    if (!by_run_) prepare_back(p, piece, work);
    grad_input(p, piece, rows(piece), work, x_);
  }

  void prepare_back(const Place& p, Size piece, Work& work) const {
    prepared(p, piece, work, [&](Lines<R>& lines) { lines.prepare_back(work.slab, p.width, folded(p, piece)); });
  }

  // Of some rows of a piece for which lines were prepared; `x` is null where nothing depends on it.
  void grad_input(const Place& p, Size piece, const Range& range, Work& work, const T* x) const {
    if (by_run_) {
      return each_row(p, range, [&](Size r, Size width) {
        Size flat = offset(plan_.dense, p, r), n = plan_.inner;
        grad_input_runs(dy_ + offset(plan_.dy, p, r), x ? x + offset(plan_.x, p, r) : nullptr, out_ + flat,
                        n, Several{width / n, n, n, n, 1}, work.slab.centers, work.slab.pulls,
                        run_parameters_.uniforms(flat), epilogue_.at(flat), call_.stream);
      });
    }
    each_scaled_rows(p, piece, range, work, [&](Size r, Size rows, Size width, const auto& scale) {
      shown(p, r, width, [&](Size flat) {
        grad_input_rows(dy_ + offset(plan_.dy, p, r), x ? x + offset(plan_.x, p, r) : nullptr, out_ + flat, width,
                        several(rows), work.slab, work.lines, scale, epilogue_.at(flat), call_.stream);
      });
    });
  }

  // The parameters that lines hold for a piece: all, unless each row has its own or xhat is rounded before.
  Folded<R> folded(const Place& p, Size piece) const {
    if (!parameters_.by_element() || epilogue_.round_normalized) return {};
    const R* b = parameters_.bias();
    Size index = this->index(p, rows(piece).first);
    return {parameters_.weight() + index, b ? b + index : b};
  }

  Uniform<R> uniform(const Place& p, Size row) const {
    Size index = this->index(p, row);
    return {parameters_.weight(index), parameters_.bias(index)};
  }

  // Calls f with the scale of a piece's rows, where these do not have one each.
  template <class F>
  void with_piece_scale(const Place& p, Size piece, F&& f) const {
    if (!epilogue_.round_normalized) return f(folded(p, piece));
    with_scale(parameters_, index(p, rows(piece).first), f);
  }

  // Rows of a piece, as they lie.
  Several several(Size rows) const {
    return {rows, cut_.fold * plan_.x.outer, cut_.fold * plan_.dy.outer, cut_.fold * plan_.dense.outer, 0};
  }

  // Calls f(row, rows, width, scale) for rows of a piece, several at once where no mask tells them apart.
  template <class F>
  void each_scaled_rows(const Place& p, Size piece, const Range& range, const Work& work, F&& f) const {
    Size most = mask_ || !several_at_once(work.lines, epilogue_) ? 1 : kLinks;
    for (Size r = range.first; r < range.stop; r += most) {
      scaled_rows(p, piece, r, r + most < range.stop ? most : range.stop - r, p.width, f);
    }
    if (tail_ && range.stop == cut_.rows) scaled_rows(p, piece, cut_.rows, 1, tail_ * row_, f);
  }

  template <class F>
  void scaled_rows(const Place& p, Size piece, Size row, Size rows, Size width, F&& f) const {
    if (!plan_.by_row) return with_piece_scale(p, piece, [&](const auto& scale) { f(row, rows, width, scale); });
    R w[kLinks], b[kLinks];
    for (Size r = 0; r < rows; ++r) {
      Uniform<R> own = uniform(p, row + r);
      w[r] = own.w, b[r] = own.b;
    }
    f(row, rows, width, Uniforms<R>{w, b, 1});
  }

  const Call& call_;
  bool by_run_;  // results are written run by run
  Parameters<R> parameters_, run_parameters_;
  Epilogue<T> epilogue_;
  Mask mask_;
  Buffer<Size> valid_rows_;
  const T* x_;
  const T* dy_;
  T* out_;
  Size row_, tail_;
};

}  // namespace evenorm::EVENORM_ISA
