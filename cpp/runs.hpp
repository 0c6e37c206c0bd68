// Where inner is long: each statistic is `outer` dense runs. Moments, apply and the input's gradient.
#pragma once

#include "gradient.hpp"
#include "moments.hpp"
#include "parameters.hpp"
#include "sweep.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class Runs {
 public:
  explicit Runs(const Call& call)
      : call_(call), plan_(call.plan), parameters_(call), x_(static_cast<const T*>(call.x)),
        dy_(static_cast<const T*>(call.dy)), out_(static_cast<T*>(call.out)) {}

  void moments() {
    sweep<Moments>([&](Size s, Size piece) { return moments(s, piece); },
                   [&](Size s, const Moments& m) { return kept(s, m); },
                   [](Size, Size, const Center&) {});
  }

  void apply() {
    sweep<Nothing>([](Size, Size) { return Nothing{}; }, [&](Size s, Nothing) { return given(s); },
                   [&](Size s, Size piece, const Center& center) { apply(s, piece, center); });
  }

  void forward() {
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

  template <class Partial, class First, class Done, class Second>
  void sweep(const First& first, const Done& done, const Second& second) const {
    sweep_twice<Partial>(plan_.numel, plan_.statistics, plan_.run.pieces, first, done, second);
  }

  Size offset(const Strides& strides, Size s, Size outer) const {
    return s / plan_.group * strides.batch + outer * strides.outer + s % plan_.group * strides.group;
  }

  // Calls f(outer, runs, start, length) for the chunks of a piece.
  template <class F>
  void each_chunk(Size piece, F&& f) const {
    const RunCut& cut = plan_.run;
    Size stop = (piece + 1) * cut.chunks_per_piece;
    if (stop > cut.chunks) stop = cut.chunks;
    for (Size k = piece * cut.chunks_per_piece; k < stop; ++k) {
      if (cut.chunks_per_run > 1) {
        Size start = k % cut.chunks_per_run * cut.length, left = plan_.inner - start;
        f(k / cut.chunks_per_run, Size{1}, start, left < cut.length ? left : cut.length);
      } else {
        Size outer = k * cut.runs_per_chunk, left = plan_.outer - outer;
        f(outer, left < cut.runs_per_chunk ? left : cut.runs_per_chunk, Size{0}, plan_.inner);
      }
    }
  }

  // Calls f(outer, start, length) for the runs of a piece, or the parts of runs.
  template <class F>
  void each_run(Size piece, F&& f) const {
    each_chunk(piece, [&](Size outer, Size runs, Size start, Size length) {
      for (Size r = 0; r < runs; ++r) f(outer + r, start, length);
    });
  }

  Center center(double mean, double m2) const {
    return {mean, 1 / std::sqrt(m2 / double(plan_.values) + call_.eps)};
  }
  Center kept(Size s, const Moments& m) const {
    if (call_.mean) call_.mean[s] = m.mean;
    if (call_.m2) call_.m2[s] = m.m2;
    return center(m.mean, m.m2);
  }
  Center given(Size s) const {
    double mean = call_.mean ? call_.mean[s] : 0;
    return call_.rstd ? Center{mean, call_.rstd[s]} : center(mean, call_.m2[s]);
  }

  Moments moments(Size s, Size piece) const {
    Moments sum;
    each_chunk(piece, [&](Size outer, Size runs, Size start, Size length) {
      const T* x = x_ + offset(plan_.x, s, outer) + start;
      sum.merge(moments_of(Chunk<T>{x, plan_.x.outer, runs, length}, call_.centered));
    });
    return sum;
  }

  void apply(Size s, Size piece, const Center& center) const {
    if (center.narrow()) {
      apply_in<R>(s, piece, center);
    } else {
      apply_in<double>(s, piece, center);
    }
  }

  void grad_input(Size s, Size piece, const Center& center, const Pull& pull) const {
    if (center.narrow() && pull.narrow()) {
      grad_input_in<R>(s, piece, center, pull);
    } else {
      grad_input_in<double>(s, piece, center, pull);
    }
  }

  const Call& call_;
  const Plan& plan_;
  Parameters<R> parameters_;
  const T* x_;
  const T* dy_;
  T* out_;

 private:
  template <class C>
  void apply_in(Size s, Size piece, const Center& center) const {
    each_run(piece, [&](Size outer, Size start, Size length) {
      const T* x = x_ + offset(plan_.x, s, outer) + start;
      Size flat = offset(plan_.dense, s, outer) + start;
      parameters_.walk(flat, length, [&](Size at, Size n, Size index) {
        with_scale<C>(parameters_, index, [&](const auto& scale) {
          apply_run<C>(x + at, out_ + flat + at, n, center, scale, call_.round_normalized);
        });
      });
    });
  }

  template <class C>
  void grad_input_in(Size s, Size piece, const Center& center, const Pull& pull) const {
    each_run(piece, [&](Size outer, Size start, Size length) {
      const T* dy = dy_ + offset(plan_.dy, s, outer) + start;
      const T* x = x_ ? x_ + offset(plan_.x, s, outer) + start : nullptr;
      Size flat = offset(plan_.dense, s, outer) + start;
      parameters_.walk(flat, length, [&](Size at, Size n, Size index) {
        with_scale<C>(parameters_, index, [&](const auto& scale) {
          grad_input_run<C>(dy + at, x ? x + at : nullptr, out_ + flat + at, n, center, pull, scale);
        });
      });
    });
  }
};

}  // namespace evenorm::EVENORM_ISA
