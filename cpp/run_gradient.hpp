// Where inner is long: the backward sums, of statistics and of parameters, and the fused backward.
#pragma once

#include "entry_gradient.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
class RunGradient : public EntryGradient<T> {
  using Base = EntryGradient<T>;
  using typename Base::Partial;
  using typename Base::Place;
  using typename Base::Portion;
  using typename Base::R;
  using Base::call_;
  using Base::dy_;
  using Base::epilogue_;
  using Base::given;
  using Base::input;
  using Base::mask_;
  using Base::offset;
  using Base::out_;
  using Base::parameters_;
  using Base::plan_;
  using Base::pull;
  using Base::tile_;
  using Base::wants_parameters_;
  using Base::x_;

 public:
  using Base::Base;

  // Sums, and the input's gradient where one is asked for.
  void sums() {
    if (parameters_.by_element()) return this->by_element();
    tile_ && spans() ? row_by_row() : one_by_one();
  }

 private:
  // Runs of one parameter each that are worked together: four chunks hold no more, since shorter ones are taken by
  // element.
  static constexpr Size kRuns = 512;

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
    bool by_span = !by_piece && plan_.span < n && spans();
    Buffer<GradSums> slots(wants_parameters_ ? count : 0);
    auto slot = [&](Size flat) {
      return flat / plan_.inner * per_run + flat % plan_.inner / n * per_chunk;
    };
    auto piece_sums = [&](Size s, Size piece, const Center& center) {
      if (by_span) {
        return span_sums(s, piece, center, [&](Size flat) { return slots.get() ? &slots[slot(flat)] : nullptr; });
      }
      Partial sum;
      GradSums plain;
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
    };
    auto done = [&](Size s, const GradSums& sums) { return pull(s, sums); };
    if (call_.rstd) {
      // The input's gradient depends on no sum.
      this->template sweep<Partial>(
          [&](Size s, Size piece) {
            Center center = given(s);
            Partial sum = piece_sums(s, piece, center);
            input(s, piece, center, {});
            return sum;
          },
          done, [](Size, Size, const Pull&) {});
    } else {
      this->template sweep<Partial>([&](Size s, Size piece) { return piece_sums(s, piece, given(s)); }, done,
                                    [&](Size s, Size piece, const Pull& p) { input(s, piece, given(s), p); });
    }
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
      GradSums part = kUnsound;
      if (center.narrow() && scale.narrow()) {
        part = with_run_way(x, p.n, center, scale, epilogue, [&](const auto& way) {
          return grad_sums_in(dy, x, p.n, several, center, way.scale(scale), way);
        });
      }
      if (!part.finite()) {
        part = {};
        for (Size k = 0; k < together; ++k) {
          part.add(exact_grad_sums(dy + k * several.dy, x + k * several.x, p.n, center, scale,
                                   epilogue.at(k * several.dense), [](Size, double, double) { return 1; }));
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

  // Whether dz is dy, and one parameter after the other belongs to `span` elements each.
  bool spans() const {
    bool nested = plan_.inner % plan_.span == 0 || plan_.span % plan_.inner == 0;
    return nested && plan_.outer == 1 && plan_.stretch == plan_.numel && !mask_ && !epilogue_.bent();
  }

  // The parameters of runs of n elements, one after the other.
  class Turn {
   public:
    Turn(const Plan& plan, Size flat, Size n)
        : each_(plan.span / n), used_(flat / n % each_), count_(plan.count), index_(flat / plan.span % count_) {}
    Size next() {
      Size index = index_;
      if (++used_ == each_) {
        used_ = 0;
        if (++index_ == count_) index_ = 0;
      }
      return index;
    }

   private:
    Size each_, used_, count_, index_;
  };

  // Sums of the runs of n elements, or less at either end, into which [flat, flat + length) is cut; returns how many.
  Size run_sums(const T* dy, const T* x, Size flat, Size length, Size n, const Center* centers, Size step,
                GradSums* to) const {
    Size runs = 0;
    auto work = [&](Size at, Size each, Size count) {
      Several several{count, each, each, each, step};
      const Center* from = centers + runs * step;
      grad_sums_of(dy + at, x + at, each, several, from, to + runs);
      for (Size r = 0; r < count; ++r, at += each, ++runs) {
        if (!to[runs].finite()) to[runs] = exact(dy + at, x + at, each, from[r * step]);
      }
    };
    Size head = flat % n ? n - flat % n : 0;
    if (head > length) head = length;
    Size full = (length - head) / n, tail = (length - head) % n;
    if (head) work(0, head, 1);
    if (full) work(head, n, full);
    if (tail) work(length - tail, tail, 1);
    return runs;
  }

  GradSums exact(const T* dy, const T* x, Size n, const Center& center) const {
    return exact_grad_sums(dy, x, n, center, Uniform<R>{1, 0}, epilogue_, [](Size, double, double) { return 1; });
  }

  // A piece of a statistic of several parameters; slots(flat) is where the sums of a chunk's runs are kept, if at all.
  template <class Slots>
  Partial span_sums(Size s, Size piece, const Center& center, const Slots& slots) const {
    Partial sum;
    this->each_chunk(piece, [&](const Portion& p) {
      GradSums own[kRuns];
      Size flat = s * plan_.inner + p.start;
      GradSums* to = wants_parameters_ ? slots(flat) : own;
      Size runs = run_sums(dy_ + offset(plan_.dy, s, 0) + p.start, x_ + offset(plan_.x, s, 0) + p.start, flat,
                           p.length, plan_.span, &center, 0, to);
      Turn turn(plan_, flat, plan_.span);
      for (Size r = 0; r < runs; ++r) sum.add(to[r], double(parameters_.weight(turn.next())));
    });
    return sum;
  }

  // Rows of one chunk each, several of them at once.
  void row_by_row() {
    Size n = plan_.span < plan_.inner ? plan_.span : plan_.inner, each = plan_.inner / n, tile = this->rows_together();
    Buffer<GradSums> slots(wants_parameters_ ? plan_.numel / n : 0);
    parallel(threads_for(plan_.numel), (plan_.statistics + tile - 1) / tile, [&](Size task, int) {
      Center centers[Base::kTile], expanded[kRuns];
      Pull pulls[Base::kTile];
      GradSums own[kRuns];
      Size first = task * tile, left = plan_.statistics - first, count = left < tile ? left : tile;
      GradSums* sums = wants_parameters_ ? slots.get() + first * each : own;
      this->given(first, count, centers);
      for (Size r = 0; r < count * each; ++r) expanded[r] = centers[r / each];
      bool dense = plan_.x.group == plan_.inner && plan_.dy.group == plan_.inner &&
                   first / plan_.group == (first + count - 1) / plan_.group;
      for (Size r = 0, together = dense ? count : 1; r < count; r += together) {
        Size s = first + r;
        run_sums(dy_ + offset(plan_.dy, s, 0), x_ + offset(plan_.x, s, 0), s * plan_.inner,
                 together * plan_.inner, n, expanded + r * each, 1, sums + r * each);
      }
      Turn turn(plan_, first * plan_.inner, n);
      for (Size r = 0; r < count; ++r) {
        GradSums sum;
        for (Size k = 0; k < each; ++k) sum.add(sums[r * each + k], double(parameters_.weight(turn.next())));
        pulls[r] = pull(first + r, sum);
      }
      if (out_) Base::grad_input(first, count, centers, pulls);
    });
    if (!wants_parameters_) return;
    zero_parameters();
    Turn turn(plan_, 0, n);
    for (Size run = 0; run < plan_.numel / n; ++run) {
      Size index = turn.next();
      if (call_.dweight) call_.dweight[index] += slots[run].normalized;
      if (call_.dbias) call_.dbias[index] += slots[run].plain;
    }
  }
};

}  // namespace evenorm::EVENORM_ISA
