"""Activations and their derivatives, on a tile."""

import triton
import triton.language as tl

__all__ = ["activated", "slope_at"]

ROOT_HALF = tl.constexpr(0.7071067811865476)
NORMAL = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
TANH_SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _sigmoid(z: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _tanh(u: tl.tensor) -> tl.tensor:
    # The absolute error counts here: 1 is added to it.
    return 1.0 - 2.0 / (tl.exp(2.0 * u) + 1.0)


@triton.jit
def activated(z: tl.tensor, FINISH: tl.constexpr) -> tl.tensor:
    """The activation; comparisons are such that NaN stays NaN."""
    y = z
    if FINISH.activation == "relu":
        y = tl.where(z < 0, 0.0, z)
    elif FINISH.activation == "relu6":
        y = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif FINISH.activation == "leaky_relu":
        y = tl.where(z > 0, z, z * FINISH.slope)
    elif FINISH.activation == "silu":
        y = z * _sigmoid(z)
    elif FINISH.activation == "hardswish":
        y = tl.where(z <= -3, 0.0, tl.where(z >= 3, z, z * (z + 3.0) / 6.0))
    elif FINISH.activation == "gelu":
        y = 0.5 * z * (1.0 + tl.erf(z * ROOT_HALF))
    elif FINISH.activation == "gelu_tanh":
        y = 0.5 * z * (1.0 + _tanh((z + z * z * z * TANH_CUBIC) * TANH_SCALE))
    return y


@triton.jit
def slope_at(z: tl.tensor, FINISH: tl.constexpr) -> tl.tensor:
    """The derivative at the activation's input; for the piecewise linear ones its output serves as well."""
    one = tl.zeros_like(z) + 1.0
    d = one
    if FINISH.activation == "relu":
        d = tl.where(z > 0, 1.0, 0.0 * one)
    elif FINISH.activation == "relu6":
        d = tl.where((z > 0) & (z < 6), 1.0, 0.0 * one)
    elif FINISH.activation == "leaky_relu":
        d = tl.where(z > 0, 1.0, one * FINISH.slope)
    elif FINISH.activation == "silu":
        share = _sigmoid(z)
        d = share * (1.0 + z * (1.0 - share))
    elif FINISH.activation == "hardswish":
        d = tl.where(z <= -3, 0.0, tl.where(z >= 3, 1.0, z / 3.0 + 0.5))
    elif FINISH.activation == "gelu":
        d = 0.5 * (1.0 + tl.erf(z * ROOT_HALF)) + z * NORMAL * tl.exp(-0.5 * z * z)
    elif FINISH.activation == "gelu_tanh":
        t = _tanh((z + z * z * z * TANH_CUBIC) * TANH_SCALE)
        d = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * TANH_SCALE * (1.0 + z * z * 3.0 * TANH_CUBIC)
    return d
