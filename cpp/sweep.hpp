// Two sweeps over slabs that are cut into pieces: the first gives partial results that merge, the second
// uses them. A slab's sweeps follow one another while it lies in the cache, unless there are too few slabs
// for the threads; partial results merge in the order of the pieces either way.
#pragma once

#include "buffer.hpp"
#include "threads.hpp"

namespace evenorm::EVENORM_ISA {

constexpr Size kTask = 16384;         // elements that a task has at least
constexpr Size kSlabsPerThread = 4;

// first(slab, piece) -> Partial; done(slab, partial) -> what second(slab, piece, done) is given.
template <class Partial, class First, class Done, class Second>
void sweep_twice(Size elements, Size slabs, Size pieces, const First& first, const Done& done,
                 const Second& second) {
  int threads = threads_for(elements);
  auto whole_slab = [&](Size slab) {
    Partial sum = first(slab, 0);
    for (Size piece = 1; piece < pieces; ++piece) sum.merge(first(slab, piece));
    auto result = done(slab, sum);
    // Backwards: what was read last is still in the cache.
    for (Size piece = pieces; piece-- > 0;) second(slab, piece, result);
  };
  if (threads == 1 || pieces == 1 || slabs >= kSlabsPerThread * threads) {
    Size together = kTask * slabs / elements + 1;
    parallel(threads, (slabs + together - 1) / together, [&](Size task, int) {
      Size stop = (task + 1) * together < slabs ? (task + 1) * together : slabs;
      for (Size slab = task * together; slab < stop; ++slab) whole_slab(slab);
    });
  } else {
    using Result = decltype(done(Size{0}, std::declval<const Partial&>()));
    Buffer<Partial> partials(slabs * pieces);
    Buffer<Result> results(slabs);
    parallel(threads, slabs * pieces, [&](Size task, int) {
      new (&partials[task]) Partial(first(task / pieces, task % pieces));
    });
    for (Size slab = 0; slab < slabs; ++slab) {
      Partial sum = partials[slab * pieces];
      for (Size piece = 1; piece < pieces; ++piece) sum.merge(partials[slab * pieces + piece]);
      new (&results[slab]) Result(done(slab, sum));
    }
    parallel(threads, slabs * pieces, [&](Size task, int) {
      Size back = slabs * pieces - 1 - task;
      second(back / pieces, back % pieces, results[back / pieces]);
    });
  }
}

}  // namespace evenorm::EVENORM_ISA
