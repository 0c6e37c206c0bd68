// What backward sums read of some runs: the tensors themselves, or copies in which what a mask hides is zero.
#pragma once

#include "apply.hpp"
#include "mask.hpp"

namespace evenorm::EVENORM_ISA {

template <class T>
struct Clean {
  const T* dy;
  const T* x;
  Epilogue<T> epilogue;
  Several several;
  Buffer<T> copies;

  Clean(const T* dy_, const T* x_, const Epilogue<T>& epilogue_, const Several& several_,
        const Window& window, Seen seen)
      : dy(dy_), x(x_), epilogue(epilogue_), several(several_),
        copies(seen == Seen::some ? 3 * window.runs * window.n : 0) {
    if (seen != Seen::some) return;
    T* next = copies.get();
    auto clean = [&](const T* from, Size apart) -> const T* {
      if (!from) return nullptr;
      T* to = next;
      next += window.runs * window.n;
      window.clean(from, apart, to);
      return to;
    };
    dy = clean(dy, several.dy);
    x = clean(x, several.x);
    // Slopes need one of the two.
    epilogue.output = clean(epilogue.output, several.dense);
    epilogue.residual = epilogue.output ? nullptr : clean(epilogue.residual, several.dense);
    several = {window.runs, window.n, window.n, window.n, several.center};
  }
};

}  // namespace evenorm::EVENORM_ISA
