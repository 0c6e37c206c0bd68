// Where outer is 1 and inner tiny (layer norm over three features): tiles of rows are turned, so that each
// row is a column.
#pragma once

#include "column_moments.hpp"
#include "column_sums.hpp"
#include "mask.hpp"
#include "parameters.hpp"
#include "threads.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class TinyRows {
 public:
  explicit TinyRows(const Call& call)
      : call_(call), plan_(call.plan), parameters_(call), epilogue_(call), mask_(call),
        x_(static_cast<const T*>(call.x)), dy_(static_cast<const T*>(call.dy)),
        out_(static_cast<T*>(call.out)) {}

  void moments() {
    each_tile([&](Tile& t, Size) { moments(t); });
  }

  void apply() {
    each_tile([&](Tile& t, Size) {
      given(t, false);
      apply(t);
    });
  }

  void forward() {
    each_tile([&](Tile& t, Size) {
      moments(t);
      apply(t);
    });
  }

  void grad_input() {
    each_tile([&](Tile& t, Size) {
      given(t, true);
      grad_input(t);
    });
  }

  // Sums, and the input's gradient where one is asked for.
  void sums() {
    bool wanted = call_.dweight || call_.dbias;
    Buffer<GradSums> by_block(wanted ? blocks() * plan_.inner : 0);
    for (Size k = 0; k < (wanted ? blocks() * plan_.inner : 0); ++k) by_block[k] = {};
    each_tile([&](Tile& t, Size block) {
      given(t, false);
      sums(t, wanted ? by_block.get() + block * plan_.inner : nullptr);
      if (out_) grad_input(t);
    });
    if (wanted) collect(by_block);
  }

 private:
  using R = Real<T>;
  static constexpr Size kRows = 64, kInner = kTurnedRow, kTilesPerBlock = 64;

  // Rows [first, first + count) of one batch index, and what is known of them; row i of x is element i of
  // each.
  struct Tile {
    Tile(Size batch_, double* memory)
        : batch(batch_), slab(memory, kRows, 1), lines(memory + Slab::doubles(kRows, 1), kRows) {}

    Size batch, first = 0, count = 0;
    Slab slab;
    Lines<R> lines;
    T x[kRows * kInner], dy[kRows * kInner], out[kRows * kInner];
    T residual[kRows * kInner], d_residual[kRows * kInner];
  };

  Size tiles() const { return (plan_.group + kRows - 1) / kRows; }
  Size blocks() const { return plan_.batch * ((tiles() + kTilesPerBlock - 1) / kTilesPerBlock); }

  template <class F>
  void each_tile(const F& f) const {
    Size per_batch = blocks() / plan_.batch;
    parallel(threads_for(plan_.numel), blocks(), [&](Size block, int) {
      alignas(64) double memory[kRows * 40];
      Tile tile(block / per_batch, memory);
      Size first = block % per_batch * kTilesPerBlock, stop = first + kTilesPerBlock;
      if (stop > tiles()) stop = tiles();
      for (Size t = first; t < stop; ++t) {
        tile.first = t * kRows;
        tile.count = plan_.group - tile.first < kRows ? plan_.group - tile.first : kRows;
        if (x_) turn(x_, plan_.x, tile, tile.x);
        if (dy_) turn(dy_, plan_.dy, tile, tile.dy);
        if (const T* r = epilogue_.output ? epilogue_.output : epilogue_.residual) {
          turn(r, plan_.dense, tile, tile.residual);
        }
        each_hidden(tile, [&](Size r) {
          for (Size i = r; i < plan_.inner * kRows; i += kRows) tile.x[i] = tile.dy[i] = tile.residual[i] = {};
        });
        f(tile, block);
      }
    });
  }

  void turn(const T* from, const Strides& strides, const Tile& t, T* to) const {
    from += t.batch * strides.batch + t.first * strides.group;
    for (Size i = 0; i < plan_.inner; ++i) {
      for (Size r = 0; r < t.count; ++r) to[i * kRows + r] = from[r * strides.group + i];
    }
  }

  void turn_back(const Tile& t, const T* from, T* to) const {
    to += (t.batch * plan_.group + t.first) * plan_.inner;
    for (Size i = 0; i < plan_.inner; ++i) {
      for (Size r = 0; r < t.count; ++r) to[r * plan_.inner + i] = from[i * kRows + r];
    }
    each_hidden(t, [&](Size r) { zero(to + r * plan_.inner, plan_.inner); });
  }

  // Calls f(row) for the rows that a mask hides.
  template <class F>
  void each_hidden(const Tile& t, const F& f) const {
    for (Size r = 0; mask_ && r < t.count; ++r) {
      if (mask_.seen(statistic(t, r)) == Seen::none) f(r);
    }
  }

  void settle(Tile& t) const {
    each_hidden(t, [&](Size r) { t.slab.mean[r] = 0, t.slab.rstd[r] = 1; });
  }

  // The epilogue of element i of a tile's rows.
  Epilogue<T> epilogue(Tile& t, Size i) const {
    Epilogue<T> e = epilogue_;
    if (e.residual) e.residual = t.residual + i * kRows;
    if (e.output) e.output = t.residual + i * kRows;
    if (e.d_residual) e.d_residual = t.d_residual + i * kRows;
    return e;
  }

  Size statistic(const Tile& t, Size row) const { return t.batch * plan_.group + t.first + row; }

  void given(Tile& t, bool pulled) const {
    Size s = statistic(t, 0);
    auto copy = [&](const double* from, double* to) {
      for (Size r = 0; r < t.count; ++r) to[r] = from ? from[s + r] : 0;
    };
    copy(call_.mean, t.slab.mean);
    if (call_.rstd) {
      copy(call_.rstd, t.slab.rstd);
    } else {
      rstds(call_.m2 + s, t.count, double(plan_.values), call_.eps, t.slab.rstd);
    }
    copy(pulled ? call_.s1 : nullptr, t.slab.c1);
    copy(pulled ? call_.s2 : nullptr, t.slab.c2);
    settle(t);
  }

  void moments(Tile& t) const {
    ColumnMoments to{0, t.slab.partial, t.slab.partial + kRows};
    column_moments(Rows<T>{t.x, kRows, plan_.inner}, t.count, call_.centered, t.lines, to);
    Size s = statistic(t, 0);
    if (call_.mean) std::memcpy(call_.mean + s, to.mean, std::size_t(t.count) * sizeof(double));
    if (call_.m2) std::memcpy(call_.m2 + s, to.m2, std::size_t(t.count) * sizeof(double));
    std::memcpy(t.slab.mean, to.mean, std::size_t(t.count) * sizeof(double));
    rstds(to.m2, t.count, double(plan_.values), call_.eps, t.slab.rstd);
    for (Size r = 0; r < t.count; ++r) t.slab.c1[r] = t.slab.c2[r] = 0;
    settle(t);
  }

  Uniform<R> scale(Size i) const {
    return {parameters_.weight(i), parameters_.bias(i)};
  }

  // Calls f(i, several, scale) for the elements of a tile's rows, all of them at once or one by one.
  template <class F>
  void each_element(const Tile& t, const F& f) const {
    Uniforms<R> scale{parameters_.weight(), parameters_.bias(), 1};
    Size most = several_at_once(t.lines, epilogue_) ? plan_.inner : 1;
    for (Size i = 0; i < plan_.inner; i += most) f(i, Several{most, kRows, kRows, kRows, 0}, scale.from(i));
  }

  void apply(Tile& t) const {
    t.lines.prepare(t.slab, t.count, {});
    each_element(t, [&](Size i, const Several& several, const Uniforms<R>& scale) {
      apply_rows(t.x + i * kRows, t.out + i * kRows, t.count, several, t.slab, t.lines, scale, epilogue(t, i), false);
    });
    turn_back(t, t.out, out_);
  }

  void grad_input(Tile& t) const {
    t.lines.prepare_back(t.slab, t.count, {});
    each_element(t, [&](Size i, const Several& several, const Uniforms<R>& scale) {
      grad_input_rows(t.dy + i * kRows, x_ ? t.x + i * kRows : nullptr, t.out + i * kRows, t.count, several, t.slab,
                      t.lines, scale, epilogue(t, i), false);
    });
    turn_back(t, t.out, out_);
    if (epilogue_.d_residual) turn_back(t, t.d_residual, epilogue_.d_residual);
  }

  void sums(Tile& t, GradSums* by_parameter) const {
    t.lines.prepare(t.slab, t.count, {});
    t.lines.clear_chains();
    double* plain = t.slab.partial;
    double* normalized = plain + kRows;
    clear(plain, 2 * kRows);
    for (Size i = 0; i < plan_.inner; ++i) {
      GradSums sum = add_uniform_row(t.dy + i * kRows, t.x + i * kRows, t.count, t.slab, t.lines, scale(i),
                                     epilogue(t, i));
      if (by_parameter) by_parameter[i].add(sum);
    }
    flush_chains(t.count, t.slab, t.lines, plain, normalized, [&](Size r) {
      GradSums sum;
      for (Size i = 0; i < plan_.inner; ++i) {
        GradSums terms = exact_terms(t.dy + i * kRows, t.x + i * kRows, r, t.slab, scale(i), epilogue(t, i));
        sum.add(terms, double(parameters_.weight(i)));
      }
      return sum;
    });
    double n = double(plan_.values);
    Size s = statistic(t, 0);
    for (Size r = 0; r < t.count; ++r) {
      if (call_.s1) call_.s1[s + r] = plain[r];
      if (call_.s2) call_.s2[s + r] = normalized[r];
      bool pulled = !call_.rstd;
      t.slab.c1[r] = pulled && call_.centered ? plain[r] / n : 0;
      t.slab.c2[r] = pulled ? normalized[r] / n : 0;
    }
  }

  void collect(Buffer<GradSums>& by_block) const {
    Size n = plan_.inner;
    Buffer<double> entries(2 * n);
    for (Size i = 0; i < n; ++i) {
      GradSums sum;
      for (Size block = 0; block < blocks(); ++block) sum.add(by_block[block * n + i]);
      entries[i] = sum.normalized;
      entries[n + i] = sum.plain;
    }
    parameters_.collect(entries.get(), call_.dweight);
    parameters_.collect(entries.get() + n, call_.dbias);
  }

  const Call& call_;
  const Plan& plan_;
  Parameters<R> parameters_;
  Epilogue<T> epilogue_;
  Mask mask_;
  const T* x_;
  const T* dy_;
  T* out_;
};

}  // namespace evenorm::EVENORM_ISA
