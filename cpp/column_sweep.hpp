// How the columns of a plan are swept: slabs of them, and pieces of their rows.
#pragma once

#include "column_rows.hpp"
#include "sweep.hpp"

namespace evenorm::EVENORM_ISA {

constexpr Size kFewColumns = 1024;

template <class V>
constexpr bool is_null = std::is_same_v<V, std::nullptr_t>;

template <class R>
class ColumnSweep {
 protected:
  // A thread's own lines, and for which part of which slab this step has prepared them.
  struct Own {
    Lines<R> lines;
    Size prepared = -1;
  };
  // What a step is given.
  struct Work {
    Slab slab;
    Own& own;
    Lines<R>& lines = own.lines;
  };

  // A slab: columns [first, first + width) of the folded rows of one batch index.
  struct Place {
    Size number, batch, first, width;
  };
  struct Range {
    Size first, stop;
  };

  Place place(Size number) const {
    Size first = number % cut_.blocks * cut_.block, left = cut_.width - first;
    return {number, number / cut_.blocks, first, left < cut_.block ? left : cut_.block};
  }

  // Rows of a piece.
  Range rows(Size piece) const {
    Size part = piece / cut_.pieces_per_part;
    Size first = part * cut_.part + piece % cut_.pieces_per_part * cut_.piece;
    Size stop = (part + 1) * cut_.part;
    if (stop > cut_.rows) stop = cut_.rows;
    return {first, first + cut_.piece < stop ? first + cut_.piece : stop};
  }

  ColumnSweep(const Plan& plan, const ColumnCut& cut) : plan_(plan), cut_(cut) {}

  // prepare(place, work), first(place, piece, work), done(place, work), second(place, piece, work), each of
  // which may be null. A slab's steps follow one another while it lies in the cache, unless there are too
  // few slabs for the threads.
  template <class Prepare, class First, class Done, class Second>
  void sweep(const Prepare& prepare, const First& first, const Done& done, const Second& second) const {
    int threads = threads_for(plan_.numel);
    Size slabs = plan_.batch * cut_.blocks, pieces = cut_.pieces;
    bool whole = threads == 1 || slabs >= kSlabsPerThread * threads;
    Size partials = is_null<First> ? 0 : pieces;
    Size shared = Slab::doubles(cut_.block, partials), lines = Lines<R>::doubles(cut_.block);
    Buffer<double> slab_memory((whole ? threads : slabs) * shared), thread_memory(threads * lines);
    Buffer<Own> owns(threads);
    for (int t = 0; t < threads; ++t) new (&owns[t]) Own{Lines<R>(thread_memory.get() + t * lines, cut_.block)};
    auto work_at = [&](Size index, int thread) {
      return Work{Slab(slab_memory.get() + index * shared, cut_.block, partials), owns[thread]};
    };
    if (whole) {
      Size together = kTask * slabs / plan_.numel + 1;
      parallel(threads, (slabs + together - 1) / together, [&](Size task, int thread) {
        Size stop = (task + 1) * together < slabs ? (task + 1) * together : slabs;
        Work work = work_at(thread, thread);
        for (Size number = task * together; number < stop; ++number) {
          Place p = place(number);
          work.own.prepared = -1;
          call(prepare, p, work);
          for (Size piece = 0; piece < pieces; ++piece) call(first, p, piece, work);
          call(done, p, work);
          work.own.prepared = -1;
          // Backwards: what was read last is still in the cache.
          for (Size piece = pieces; piece-- > 0;) call(second, p, piece, work);
        }
      });
      return;
    }
    auto each_slab = [&](const auto& step) {
      if constexpr (is_null<std::decay_t<decltype(step)>>) return;
      // Few columns are not worth another thread's waking.
      parallel(slabs * cut_.block <= kFewColumns ? 1 : threads, slabs, [&](Size number, int thread) {
        Work work = work_at(number, thread);
        call(step, place(number), work);
      });
    };
    auto each_piece = [&](const auto& step) {
      if constexpr (is_null<std::decay_t<decltype(step)>>) return;
      for (int t = 0; t < threads; ++t) owns[t].prepared = -1;
      parallel(threads, slabs * pieces, [&](Size task, int thread) {
        Work work = work_at(task / pieces, thread);
        call(step, place(task / pieces), task % pieces, work);
      });
    };
    each_slab(prepare);
    each_piece(first);
    each_slab(done);
    each_piece(second);
  }

  // Calls prepare(lines) where they are not yet those of the piece's part.
  template <class Prepare>
  void prepared(const Place& p, Size piece, const Work& work, const Prepare& prepare) const {
    Size wanted = p.number * cut_.pieces + piece / cut_.pieces_per_part;
    if (work.own.prepared == wanted) return;
    prepare(work.lines);
    work.own.prepared = wanted;
  }

 private:
  template <class Step, class... Arguments>
  static void call(const Step& step, Arguments&&... arguments) {
    if constexpr (!is_null<Step>) step(arguments...);
  }

 protected:
  const Plan& plan_;
  const ColumnCut& cut_;
};

}  // namespace evenorm::EVENORM_ISA
