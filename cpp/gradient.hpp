// The way back on a dense run, and the gradient of the input.
#pragma once

#include "apply.hpp"

namespace evenorm::EVENORM_ISA {

// The way back for a run of at most a chunk.
template <class T, class Scale, class Back>
inline auto with_run_way(const T* x, Size n, const Center& center, const Scale& scale,
                         const Epilogue<T>& epilogue, const Back& back) {
  alignas(64) Real<T> scratch[kChunk];
  auto loop = [&](auto* to, const auto& finish, Storing how) {
    standardize_runs(x, to, n, Several{}, &center, scale, finish, how);
  };
  return with_way(epilogue, n, scratch, loop, back);
}

// What is subtracted from w*dz: c1 + xhat*c2.
struct Pull {
  double c1 = 0, c2 = 0;

  // Whether float32 can hold what it comes to with a narrow center.
  bool narrow(const Center& center) const {
    double slope = std::fabs(c2) * center.rstd * center.rstd;
    return (std::fabs(c1) <= 0x1p60) & (slope <= 0x1p100) & ((slope >= 0x1p-120) | (slope == 0));
  }
  // Of the deviation, and of 1: -rstd * (c1 + xhat*c2) = slope * d + level.
  double slope(const Center& center) const { return -center.rstd * center.rstd * c2; }
  double level(const Center& center, double high) const {
    return -center.rstd * (c1 + (high - center.mean) * center.rstd * c2);
  }
};

// The gradients of one element.
template <class T>
struct InputGradient {
  T dx, dz;
};

// In float64; `x` may be null.
template <class T, class Scale>
inline InputGradient<T> exact_grad_input(const T* dy, const T* x, const Center& center,
                                         const Pull& pull, const Scale& scale,
                                         const Epilogue<T>& epilogue, Size i) {
  double xhat = x ? center.xhat(double(scalar(x[i]))) : 0;
  double dz = epilogue.dz(double(scalar(dy[i])), xhat, scale, i);
  double d = dz * scale.weight(i) - pull.c1 - xhat * pull.c2;
  double more = epilogue.carried ? double(scalar(epilogue.carried[i])) : 0;
  return {rounded<T>(d * center.rstd + more), rounded<T>(dz)};
}

// Whether two arrays are aligned alike; then both are streamed or none.
template <class T>
inline bool alike(const T* one, const T* other) {
  return (reinterpret_cast<std::uintptr_t>(one) - reinterpret_cast<std::uintptr_t>(other)) % 64 == 0;
}

// dx, and dz where it is wanted.
template <class R>
struct GradVectors {
  Vec<R> dx, dz;
};
template <class R, class T>
inline auto put_gradients(T* dx, T* dz) {
  return [=](Size i, const GradVectors<R>& d, auto lanes) {
    if (dz) store<T, R>(dz + i, d.dz, lanes);
    store<T, R>(dx + i, d.dx, lanes);
  };
}

// Whether vectors in R hold the way back of a run.
template <class Scale>
inline bool narrow(const Center& center, const Pull& pull, const Scale& scale) {
  return center.narrow() & pull.narrow(center) & scale.narrow();
}

// dx = rstd * (w*dz - c1 - xhat*c2) + carried. A run that float32 cannot hold is left out; returns how many were.
template <class T, class Scale, class Way>
EVENORM_LOOP Size pull_runs(const T* dy, const T* x, const T* carried, T* dx, T* dz, Size n, Several several,
                            const Center* centers, const Pull* pulls, Scale scale, Way way, bool stream) {
  using R = Real<T>;
  constexpr Size next = kAhead / Size(sizeof(T));
  Size left = 0;
  for (Size r = 0; r < several.runs; ++r) {
    const Center& center = centers[r * several.center];
    const Pull& pull = pulls[r * several.center];
    auto own = scale.at(r);
    if (!narrow(center, pull, own)) {
      ++left;
    } else {
      Line<R, decltype(own)> line(center, own);
      auto at = way.at(r * several.dense);
      Vec<R> slope = splat<R>(R(pull.slope(center))), level = splat<R>(R(pull.level(center, double(R(center.mean)))));
      each_stored<R>(dx, n, stream, [&](Size i, auto lanes) {
        if (!stream) foresee_store(dx + i + next);
        Vec<R> d = x ? line.deviation(load<R>(x + i, lanes), i, lanes) : Vec<R>{};
        Vec<R> dz = at(load<R>(dy + i, lanes), d, line, i, lanes), rest = level;
        if (x) rest = multiply_add(d, slope, rest);
        if (carried) rest += load<R>(carried + i, lanes);
        return GradVectors<R>{line.weighed(dz, rest, i, lanes), dz};
      }, put_gradients<R>(dx, dz));
    }
    dy += several.dy;
    dx += several.dense;
    if (x) x += several.x;
    if (carried) carried += several.dense;
    if (dz) dz += several.dense;
  }
  return left;
}

template <class T, class Scale>
inline void exact_pull_run(const T* dy, const T* x, T* dx, Size n, const Center& center,
                           const Pull& pull, const Scale& scale, const Epilogue<T>& epilogue) {
  for (Size i = 0; i < n; ++i) {
    InputGradient<T> d = exact_grad_input(dy, x, center, pull, scale, epilogue, i);
    dx[i] = d.dx;
    if (epilogue.d_residual) epilogue.d_residual[i] = d.dz;
  }
}

// Runs of at most a chunk each.
template <class T, class Scale>
inline void grad_input_runs(const T* dy, const T* x, T* dx, Size n, const Several& several,
                            const Center* centers, const Pull* pulls, const Scale& scale,
                            const Epilogue<T>& epilogue, bool stream) {
  Size together = epilogue.curved() ? 1 : several.runs;
  for (Size r = 0; r < several.runs; r += together) {
    Several part = several;
    part.runs = together;
    const Center* center = centers + r * several.center;
    const T* from = x ? x + r * several.x : nullptr;
    T* to = dx + r * several.dense;
    Epilogue<T> e = epilogue.at(r * several.dense);
    auto own = scale.from(r);
    with_run_way(from, n, *center, own, e, [&](const auto& way) {
      auto used = way.scale(own);
      const T* dy0 = dy + r * several.dy;
      const Pull* pull = pulls + r * several.center;
      Size left = pull_runs(dy0, from, e.carried, to, e.d_residual, n, part, center, pull, used, way,
                            stream && (!e.d_residual || alike(to, e.d_residual)));
      for (Size k = 0; left && k < together; ++k) {
        Size s = k * several.center;
        if (narrow(center[s], pull[s], used.at(k))) continue;
        exact_pull_run(dy0 + k * several.dy, from ? from + k * several.x : nullptr, to + k * several.dense, n,
                       center[s], pull[s], own.at(k), e.at(k * several.dense));
      }
    });
  }
}

}  // namespace evenorm::EVENORM_ISA
