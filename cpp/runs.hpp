// Where inner is long: each statistic is `outer` dense runs. Moments, apply and the input's gradient.
#pragma once

#include "clean.hpp"
#include "gradient.hpp"
#include "moments.hpp"
#include "parameters.hpp"
#include "sum.hpp"
#include "sweep.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class Runs {
 public:
  explicit Runs(const Call& call)
      : call_(call), plan_(call.plan), parameters_(call), epilogue_(call), mask_(call), sum_(call),
        x_(sum_.values()), dy_(static_cast<const T*>(call.dy)),
        out_(static_cast<T*>(call.out)),
        tile_(plan_.outer == 1 && plan_.run.chunks == 1 && plan_.mask.inner == 0 ? tile_of(plan_.inner) : 0) {}

  void moments() {
    if (tile_) return each_tile([&](Size s, Size n, Center* centers) { tile_moments(s, n, centers); });
    sweep<Moments>([&](Size s, Size piece) { return moments(s, piece); },
                   [&](Size s, const Moments& m) { return kept(s, m); },
                   [](Size, Size, const Center&) {});
  }

  void apply() {
    if (tile_) {
      return each_tile([&](Size s, Size n, Center* centers) {
        given(s, n, centers);
        apply(s, n, centers);
      });
    }
    sweep<Nothing>([](Size, Size) { return Nothing{}; }, [&](Size s, Nothing) { return given(s); },
                   [&](Size s, Size piece, const Center& center) { apply(s, piece, center); });
  }

  void forward() {
    if (tile_) {
      return each_tile([&](Size s, Size n, Center* centers) {
        alignas(64) T near[kChunk];
        T* own = sum_ && call_.stream ? near : nullptr;
        sum_.add(s * plan_.inner, n * plan_.inner, own);
        tile_moments(s, n, centers, own);
        apply(s, n, centers, own);
      });
    }
    sweep<Moments>([&](Size s, Size piece) { return moments(s, piece); },
                   [&](Size s, const Moments& m) { return kept(s, m); },
                   [&](Size s, Size piece, const Center& center) { apply(s, piece, center); });
  }

  void grad_input() {
    sweep<Nothing>(
        [](Size, Size) { return Nothing{}; }, [&](Size s, Nothing) { return s; },
        [&](Size s, Size piece, Size) {
          grad_input(s, piece, given(s), {call_.s1 ? call_.s1[s] : 0, call_.s2 ? call_.s2[s] : 0});
        });
  }

 protected:
  using R = Real<T>;

  struct Nothing {
    void merge(Nothing) {}
  };

  // Step by step over several short rows, so that one row's long chains of operations hide behind another's.
  static constexpr Size kTile = 32;
  static Size tile_of(Size length) {
    Size rows = kChunk / length;
    return rows < 1 ? 1 : rows > kTile ? kTile : rows;
  }

  // f(first statistic, count, room for their centers); a mask hides all or none of these.
  template <class F>
  void each_tile(const F& f) const {
    Size together = (kTask / (tile_ * plan_.inner) + 1) * tile_;
    parallel(threads_for(plan_.numel), (plan_.statistics + together - 1) / together,
             [&](Size task, int) {
               Center centers[kTile];
               Size stop = (task + 1) * together;
               if (stop > plan_.statistics) stop = plan_.statistics;
               for (Size s = task * together, count; s < stop; s += count) {
                 count = mask_.alike(s, stop - s < tile_ ? stop - s : tile_);
                 f(s, count, centers);
               }
             });
  }

  // Row r of those from `first` on; they lie in x, or in memory of their own one after the other.
  const T* row(Size first, Size r, const T* own) const {
    return own ? own + r * plan_.inner : x_ + offset(plan_.x, first + r, 0);
  }

  // Rows of a tile that are not there.
  bool hidden(Size first) const { return mask_.seen(first) == Seen::none; }
  void clear(Size first, Size count) const {
    Size flat = first * plan_.inner, n = count * plan_.inner;
    zero(out_ + flat, n);
    if (epilogue_.d_residual) zero(epilogue_.d_residual + flat, n);
  }

  void tile_moments(Size first, Size count, Center* centers, const T* own = nullptr) const {
    for (Size r = 0; hidden(first) && r < count; ++r) centers[r] = kept(first + r, {});
    if (hidden(first)) return;
    auto row = [&](Size r) { return Chunk<T>{this->row(first, r, own), 0, 1, plan_.inner}; };
    double n = double(plan_.values);
    R guess[kTile]{};
    Deviations d[kTile];
    if (plan_.inner <= kShortRow<R>) {
      short_deviations(first, count, own, guess, d);
    } else if (call_.centered) {
      for (Size r = 0; r < count; ++r) guess[r] = R(sum_in(row(r)) / n);
      for (Size r = 0; r < count; ++r) d[r] = deviations_in(row(r), guess[r]);
    } else {
      for (Size r = 0; r < count; ++r) d[r] = {0, squares_in(row(r))};
    }
    double mean[kTile], m2[kTile];
    bool all = true;
    for (Size r = 0; r < count; ++r) {
      double rest = d[r].squares - d[r].sum * d[r].sum / n;
      mean[r] = double(guess[r]) + d[r].sum / n;
      m2[r] = rest < 0 ? 0 : rest;
      all &= std::is_same_v<T, double> || sound(d[r].squares, n, double(guess[r]));
    }
    for (Size r = 0; !all && r < count; ++r) {
      if (sound(d[r].squares, n, double(guess[r]))) continue;
      Moments m = exact_moments(row(r), call_.centered);
      mean[r] = m.mean, m2[r] = m.m2;
    }
    remember(first, count, mean, m2);
    settle(first, count, mean, m2, centers);
  }

  void remember(Size first, Size count, const double* mean, const double* m2) const {
    for (Size r = 0; call_.mean && r < count; ++r) call_.mean[first + r] = mean[r];
    for (Size r = 0; call_.m2 && r < count; ++r) call_.m2[first + r] = m2[r];
  }

  // Rows' statistics as they are applied.
  void settle(Size first, Size count, const double* mean, const double* m2, Center* centers) const {
    if (mask_) {
      for (Size r = 0; r < count; ++r) centers[r] = center(first + r, mean ? mean[r] : 0, m2[r]);
      return;
    }
    double rstd[kTile];
    rstds(m2, count, double(plan_.values), call_.eps, rstd);
    for (Size r = 0; r < count; ++r) centers[r] = {mean ? mean[r] : 0, rstd[r]};
  }

  // Of short rows, around their means or around zero.
  void short_deviations(Size first, Size count, const T* own, R* guess, Deviations* to) const {
    const T* x[kTile];
    double sums[kTile];
    Size n = plan_.inner;
    for (Size r = 0; r < count; ++r) x[r] = row(first, r, own);
    each_beside(call_.centered ? count : 0,
                [&](Size r, auto rows) { sums_beside<rows.value>(x + r, n, sums + r); });
    for (Size r = 0; call_.centered && r < count; ++r) guess[r] = R(sums[r] / double(n));
    each_beside(count, [&](Size r, auto rows) { deviations_beside<rows.value>(x + r, n, guess + r, to + r); });
    for (Size r = 0; !call_.centered && r < count; ++r) to[r].sum = 0;
  }

  void given(Size first, Size count, Center* centers) const {
    if (!call_.rstd) return settle(first, count, call_.mean ? call_.mean + first : nullptr, call_.m2 + first, centers);
    for (Size r = 0; r < count; ++r) centers[r] = given(first + r);
  }

  // Calls f(row, several) for rows of a tile that are worked in one call: all of them, if they lie evenly and
  // share their parameters.
  template <class F>
  void each_rows(Size first, Size count, const F& f, const T* own = nullptr) const {
    bool even = first / plan_.group == (first + count - 1) / plan_.group;
    Size together = even && parameters_.same_for_rows() ? count : 1;
    Several several{together, plan_.x.group, plan_.dy.group, plan_.inner, 1, own ? 0 : count * plan_.inner};
    for (Size r = 0; r < count; r += together) f(r, several);
  }

  // Calls f(start, n, runs, scale) for a row, or rows that share their parameters, cut where the parameter changes.
  template <class F>
  void each_turn(Size flat, const Several& rows, const F& f) const {
    parameters_.walk_together(flat, plan_.inner, [&](Size at, Size n, Size runs, Size index) {
      Several parts = runs > 1 ? Several{runs, n, n, n, 0, rows.later} : rows;
      with_scales(index, runs > 1, [&](const auto& scale) { f(at, n, parts, scale); });
    });
  }

  // Calls f with the scale of runs whose parameters lie `step` apart.
  template <class F>
  void with_scales(Size index, Size step, const F& f) const {
    if (parameters_.by_element()) return with_elements(parameters_, index, f);
    f(parameters_.uniforms(index, step));
  }

  void apply(Size first, Size count, const Center* centers, const T* own = nullptr) const {
    if (hidden(first)) return clear(first, count);
    each_rows(first, count, [&](Size r, const Several& several) {
      const T* x = row(first, r, own);
      Size flat = (first + r) * plan_.inner;
      each_turn(flat, several, [&](Size at, Size n, const Several& runs, const auto& scale) {
        apply_runs(x + at, out_ + flat + at, n, runs, centers + r, scale, epilogue_.at(flat + at), call_.stream);
      });
    }, own);
  }

  void grad_input(Size first, Size count, const Center* centers, const Pull* pulls) const {
    if (hidden(first)) return clear(first, count);
    each_rows(first, count, [&](Size r, const Several& several) {
      const T* dy = dy_ + offset(plan_.dy, first + r, 0);
      const T* x = x_ ? x_ + offset(plan_.x, first + r, 0) : nullptr;
      Size flat = (first + r) * plan_.inner;
      each_turn(flat, several, [&](Size at, Size n, const Several& runs, const auto& scale) {
        grad_input_runs(dy + at, x ? x + at : nullptr, out_ + flat + at, n, runs, centers + r, pulls + r, scale,
                        epilogue_.at(flat + at), call_.stream);
      });
    });
  }

  template <class Partial, class First, class Done, class Second>
  void sweep(const First& first, const Done& done, const Second& second) const {
    sweep_twice<Partial>(plan_.numel, plan_.statistics, plan_.run.pieces, first, done, second);
  }

  Size offset(const Strides& strides, Size s, Size outer) const {
    return s / plan_.group * strides.batch + outer * strides.outer + s % plan_.group * strides.group;
  }

  // Of each of `runs` runs from `outer` on, `length` elements from `start` on.
  struct Portion {
    Size outer, runs, start, length;
  };

  // Calls f(part) for the chunks of a piece.
  template <class F>
  void each_chunk(Size piece, F&& f) const {
    const RunCut& cut = plan_.run;
    Size stop = (piece + 1) * cut.chunks_per_piece;
    if (stop > cut.chunks) stop = cut.chunks;
    for (Size k = piece * cut.chunks_per_piece; k < stop; ++k) {
      if (cut.chunks_per_run > 1) {
        Size start = k % cut.chunks_per_run * cut.length, left = plan_.inner - start;
        f(Portion{k / cut.chunks_per_run, 1, start, left < cut.length ? left : cut.length});
      } else {
        Size outer = k * cut.runs_per_chunk, left = plan_.outer - outer;
        f(Portion{outer, left < cut.runs_per_chunk ? left : cut.runs_per_chunk, 0, plan_.inner});
      }
    }
  }

  // Runs of n elements that share parameters, from these offsets on.
  struct Place {
    Size x, dy, flat, n, index;
    Several several;
    Window window;
    Size step = 0;  // from the parameter of a run to the next one's
  };

  Seen seen(const Place& p) const { return mask_ ? p.window.seen() : Seen::all; }

  // What backward sums read.
  Clean<T> operands(const Place& p, Seen seen) const {
    return {dy_ + p.dy, x_ + p.x, epilogue_.at(p.flat), p.several, p.window, seen};
  }

  // Calls work() where it writes something of a place that is not hidden.
  template <class F>
  void shown(const Place& p, const F& work) const {
    Seen seen = this->seen(p);
    if (seen != Seen::none) work();
    if (seen == Seen::all) return;
    p.window.clear(out_ + p.flat, p.several.dense);
    if (epilogue_.d_residual) p.window.clear(epilogue_.d_residual + p.flat, p.several.dense);
  }

  // Calls f(place) for the runs of a piece, or the parts of runs.
  template <class F>
  void each_place(Size s, Size piece, F&& f) const {
    each_chunk(piece, [&](const Portion& part) { each_place(s, part, f); });
  }

  template <class F>
  void each_place(Size s, const Portion& part, F&& f) const {
    bool together = parameters_.same_for_runs();
    for (Size r = 0; r < part.runs; r += together ? part.runs : 1) {
      Size outer = part.outer + r, start = part.start, n = part.length;
      Size x = offset(plan_.x, s, outer) + start, dy = offset(plan_.dy, s, outer) + start;
      Size flat = offset(plan_.dense, s, outer) + start;
      if (together) {
        // A thread that has one short statistic has the next ones, too.
        Size later = plan_.values < kTask ? kAhead / Size(sizeof(T)) : 0;
        Several several{part.runs, plan_.x.outer, plan_.dy.outer, plan_.dense.outer, 0, later};
        Window flags = window(s, outer, start, part.runs, n);
        f(Place{x, dy, flat, n, parameters_.index(flat), several, flags});
      } else {
        parameters_.walk(flat, n, [&](Size at, Size length, Size index) {
          f(Place{x + at, dy + at, flat + at, length, index, {}, window(s, outer, start + at, 1, length)});
        });
      }
    }
  }

  // The same where runs that have the next parameter each are together, too.
  template <class F>
  void each_stretch(Size s, Size piece, F&& f) const {
    if (mask_ || parameters_.same_for_runs()) return each_place(s, piece, f);
    each_chunk(piece, [&](const Portion& part) {
      for (Size r = 0; r < part.runs; ++r) {
        Size outer = part.outer + r, start = part.start;
        Size x = offset(plan_.x, s, outer) + start, dy = offset(plan_.dy, s, outer) + start;
        Size flat = offset(plan_.dense, s, outer) + start;
        parameters_.walk_together(flat, part.length, [&](Size at, Size n, Size runs, Size index) {
          f(Place{x + at, dy + at, flat + at, n, index, Several{runs, n, n, n, 0}, {}, 1});
        });
      }
    });
  }

  Window window(Size s, Size outer, Size start, Size runs, Size n) const {
    return mask_.window(s / plan_.group, outer, s % plan_.group, start, runs, n);
  }

  Center center(Size s, double mean, double m2) const {
    return mask_.center(s, {mean, 1 / std::sqrt(m2 / mask_.values(s) + call_.eps)});
  }
  Center kept(Size s, const Moments& m) const {
    if (call_.mean) call_.mean[s] = m.mean;
    if (call_.m2) call_.m2[s] = m.m2;
    return center(s, m.mean, m.m2);
  }
  Center given(Size s) const {
    double mean = call_.mean ? call_.mean[s] : 0;
    return call_.rstd ? mask_.center(s, {mean, call_.rstd[s]}) : center(s, mean, call_.m2[s]);
  }

  Moments moments(Size s, Size piece) const {
    Moments sum;
    each_chunk(piece, [&](const Portion& p) {
      Chunk<T> chunk{x_ + offset(plan_.x, s, p.outer) + p.start, plan_.x.outer, p.runs, p.length};
      for (Size r = 0; r < p.runs; ++r) sum_.add(offset(plan_.dense, s, p.outer + r) + p.start, p.length);
      Window window = this->window(s, p.outer, p.start, p.runs, p.length);
      bool whole = !mask_ || window.seen() == Seen::all;
      sum.merge(whole ? moments_of(chunk, call_.centered, sum) : valid_moments(chunk, window, sum));
    });
    return sum;
  }

  // Of what there is of a chunk, laid end to end.
  __attribute__((noinline)) Moments valid_moments(const Chunk<T>& c, const Window& window,
                                                  const Moments& before) const {
    T packed[kChunk + 1];
    Size n = window.pack(c.x, c.pitch, packed);
    return n ? moments_of(Chunk<T>{packed, 0, 1, n}, call_.centered, before) : Moments{};
  }

  void apply(Size s, Size piece, const Center& center) const {
    each_stretch(s, piece, [&](const Place& p) {
      shown(p, [&] {
        with_scales(p.index, p.step, [&](const auto& scale) {
          apply_runs(x_ + p.x, out_ + p.flat, p.n, p.several, &center, scale, epilogue_.at(p.flat),
                     call_.stream);
        });
      });
    });
  }

  void grad_input(Size s, Size piece, const Center& center, const Pull& pull) const {
    each_stretch(s, piece, [&](const Place& p) {
      shown(p, [&] {
        with_scales(p.index, p.step, [&](const auto& scale) {
          grad_input_runs(dy_ + p.dy, x_ ? x_ + p.x : nullptr, out_ + p.flat, p.n, p.several, &center,
                          &pull, scale, epilogue_.at(p.flat), call_.stream);
        });
      });
    });
  }

  const Call& call_;
  const Plan& plan_;
  Parameters<R> parameters_;
  Epilogue<T> epilogue_;
  Mask mask_;
  Sum<T> sum_;
  const T* x_;
  const T* dy_;
  T* out_;
  Size tile_;  // rows that are worked together, if they are short
};

}  // namespace evenorm::EVENORM_ISA
