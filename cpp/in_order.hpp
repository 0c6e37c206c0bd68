// Apply and the input's gradient where statistics are given and runs are many: memory is passed once, from end to
// end, and not statistic by statistic.
#pragma once

#include "gradient.hpp"
#include "parameters.hpp"
#include "sweep.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class InOrder {
 public:
  explicit InOrder(const Call& call)
      : call_(call), plan_(call.plan), parameters_(call, false), epilogue_(call),
        x_(static_cast<const T*>(call.x)), dy_(static_cast<const T*>(call.dy)),
        out_(static_cast<T*>(call.out)), centers_(plan_.statistics),
        pulls_(call.dy ? plan_.statistics : 0) {
    for (Size s = 0; s < plan_.statistics; ++s) centers_[s] = {call.mean ? call.mean[s] : 0, call.rstd[s]};
    for (Size s = 0; call.dy && s < plan_.statistics; ++s) {
      pulls_[s] = {call.s1 ? call.s1[s] : 0, call.s2 ? call.s2[s] : 0};
    }
  }

  void apply() {
    each_part([&](const Place& p) {
      apply_runs(x_ + p.x, out_ + p.flat, p.n, p.several, centers_.get() + p.statistic,
                 parameters_.uniforms(p.flat), epilogue_.at(p.flat), call_.stream);
    });
  }

  void grad_input() {
    each_part([&](const Place& p) {
      grad_input_runs(dy_ + p.dy, x_ ? x_ + p.x : nullptr, out_ + p.flat, p.n, p.several,
                      centers_.get() + p.statistic, pulls_.get() + p.statistic,
                      parameters_.uniforms(p.flat), epilogue_.at(p.flat), call_.stream);
    });
  }

 private:
  using R = Real<T>;

  // Runs of n elements from these offsets on.
  struct Place {
    Size x, dy, flat, statistic, n;
    Several several;
  };

  template <class F>
  void each_part(const F& f) const {
    Size together = kTask / plan_.inner + 1, blocks = (plan_.group + together - 1) / together;
    parallel(threads_for(plan_.numel), plan_.batch * plan_.outer * blocks, [&](Size task, int) {
      Size row = task / blocks, first = task % blocks * together, left = plan_.group - first;
      Size b = row / plan_.outer, o = row % plan_.outer;
      auto offset = [&](const Strides& s) { return b * s.batch + o * s.outer + first * s.group; };
      Several several{left < together ? left : together, plan_.x.group, plan_.dy.group, plan_.dense.group, 1};
      Place p{offset(plan_.x), offset(plan_.dy), offset(plan_.dense), b * plan_.group + first, plan_.inner,
              several};
      if (plan_.inner <= kChunk) return f(p);
      each_chunk(p, f);
    });
  }

  // The same for runs that are longer than a chunk.
  template <class F>
  void each_chunk(Place p, const F& f) const {
    Size runs = p.several.runs;
    p.several.runs = 1;
    for (Size r = 0; r < runs; ++r, ++p.statistic) {
      Place part = p;
      part.x += r * plan_.x.group, part.dy += r * plan_.dy.group, part.flat += r * plan_.dense.group;
      for (Size start = 0; start < plan_.inner; start += part.n) {
        part.n = std::min(plan_.run.length, plan_.inner - start);
        f(part);
        part.x += part.n, part.dy += part.n, part.flat += part.n;
      }
    }
  }

  const Call& call_;
  const Plan& plan_;
  Parameters<R> parameters_;
  Epilogue<T> epilogue_;
  const T* x_;
  const T* dy_;
  T* out_;
  Buffer<Center> centers_;
  Buffer<Pull> pulls_;
};

}  // namespace evenorm::EVENORM_ISA
