"""The second family: normalization of weights, as parametrizations.

Both keep torch's state dict keys, so a checkpoint of ``torch.nn.utils.parametrizations`` loads unchanged.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evenorm.functional import normalize
from evenorm.pattern import Pattern

__all__ = ["SpectralNorm", "WeightNorm", "spectral_norm", "weight_norm"]

Module = TypeVar("Module", bound=nn.Module)


def _weight_of(caller: str, module: nn.Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{caller}: {type(module).__name__} has no parameter {name!r}; it has {_parameters(module)}")
    if not weight.is_floating_point():
        raise TypeError(
            f"{caller}: expected floating-point weights, got {weight.dtype} in {type(module).__name__}.{name}"
        )
    return weight


def _check_axis(caller: str, weight: Tensor, name: str, dim: int | None) -> None:
    if dim is not None and not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"{caller}: dim must name an axis of {name} {tuple(weight.shape)}, got {dim}")


def _parameters(module: nn.Module) -> str:
    return ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"


class WeightNorm(nn.Module):
    r"""The parametrization behind :func:`weight_norm`: magnitude ``original0``, direction ``original1``."""

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """w = g · v / ‖v‖."""
        # The norm is √count times the root mean square, which the engine divides by.
        pattern = self._pattern(direction.dim())
        count = direction.numel() // max(magnitude.numel(), 1)
        return normalize(direction, pattern, centered=False, eps=0.0) * (magnitude * count**-0.5)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude and direction of a weight."""
        binding = self._pattern(weight.dim()).bind(weight.shape)
        norm = torch.linalg.vector_norm(weight, dim=binding.reduced, keepdim=True)
        return (norm.reshape(()) if self.dim is None else norm), weight

    def _pattern(self, axes: int) -> Pattern:
        names = [f"a{k}" for k in range(axes)]
        kept = None if self.dim is None else self.dim % axes
        return Pattern.parse(" ".join(n if k == kept else f"[{n}]" for k, n in enumerate(names)))


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    r"""Separate the length of each output's weights from their direction.

    .. math:: w = g \frac{v}{\lVert v \rVert}

    The pattern is ``o [...]``, not centered, without eps.

    Args:
        module: the layer whose weight is normalized; it is changed in place.
        name: the parameter.
        dim: the axis that keeps a length of its own; ``None`` gives the whole weight one length.

    Returns:
        The module, with parameters ``parametrizations.weight.original0`` (g) and ``original1`` (v).

    Raises:
        ValueError: there is no such parameter, it has no such axis, or one of its rows is zero and has no direction.

    Source:
        Salimans & Kingma, "Weight Normalization" (2016), eq. 2.

    >>> layer = weight_norm(nn.Linear(3, 2))
    >>> bool(torch.allclose(layer.weight.norm(dim=1), layer.parametrizations.weight.original0.flatten()))
    True
    """
    weight = _weight_of("weight_norm", module, name)
    _check_axis("weight_norm", weight, name, dim)
    norm = WeightNorm(dim)
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"weight_norm: {type(module).__name__}.{name} is parametrized already; remove that first")
    # On the meta device there are no values to ask.
    if not weight.is_meta and (norm.right_inverse(weight.detach().double())[0] == 0).any():
        raise ValueError(
            f"weight_norm: a row of {type(module).__name__}.{name} is zero and has no direction; initialize it first"
        )
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    return module


class SpectralNorm(nn.Module):
    r"""The parametrization behind :func:`spectral_norm`, with the singular vectors ``_u`` and ``_v`` as buffers."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        self.dim, self.n_power_iterations, self.eps = dim, n_power_iterations, eps
        if weight.dim() > 1:
            matrix = self._matrix(weight.detach())
            u, v = (torch.randn(size, dtype=weight.dtype, device=weight.device) for size in matrix.shape)
            self.register_buffer("_u", self._unit(u))
            self.register_buffer("_v", self._unit(v))
            # Start near the leading singular vectors, so that the first step is already normalized.
            self._iterate(matrix, 15)

    def forward(self, weight: Tensor) -> Tensor:
        """w / σ(w); each call in training takes power iterations first."""
        if weight.dim() == 1:
            return weight / torch.linalg.vector_norm(weight).clamp_min(self.eps)
        matrix = self._matrix(weight)
        if self.training:
            self._iterate(matrix.detach(), self.n_power_iterations)
        # A copy, since the next call overwrites the buffers that backward still needs.
        u, v = self._u.clone(), self._v.clone()
        return weight / torch.dot(u, torch.mv(matrix, v))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself: assigning to the parametrized weight assigns what is divided."""
        return weight

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, steps: int) -> None:
        for _ in range(steps):
            self._u.copy_(self._unit(torch.mv(matrix, self._v)))
            self._v.copy_(self._unit(torch.mv(matrix.mT, self._u)))

    def _unit(self, vector: Tensor) -> Tensor:
        return nn.functional.normalize(vector, dim=0, eps=self.eps)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1)


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    r"""Divide a weight by its largest singular value, so that the layer's Lipschitz constant is at most 1.

    .. math:: w = \frac{w}{\sigma(w)}, \qquad \sigma(w) = \max_{h \ne 0} \frac{\lVert w h \rVert}{\lVert h \rVert}

    σ is estimated by power iteration on the weight as a matrix, ``n_power_iterations`` for each use in training.

    Args:
        module: the layer whose weight is normalized; it is changed in place.
        name: the parameter.
        n_power_iterations: steps per use in training.
        eps: the least length that a vector is divided by.
        dim: the axis of outputs; 0 unless given, 1 for transposed convolutions.

    Returns:
        The module, with the parameter ``parametrizations.weight.original`` and buffers ``_u``, ``_v``.

    Raises:
        ValueError: there is no such parameter or axis, or fewer than one power iteration.

    Source:
        Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (2018), algorithm 1.

    >>> layer = spectral_norm(nn.Linear(8, 4), n_power_iterations=50)
    >>> bool(abs(torch.linalg.matrix_norm(layer.weight, 2) - 1) < 1e-3)
    True
    """
    weight = _weight_of("spectral_norm", module, name)
    if n_power_iterations < 1:
        raise ValueError(f"spectral_norm: expected at least one power iteration, got {n_power_iterations}")
    if dim is None:
        dim = 1 if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 0
    _check_axis("spectral_norm", weight, name, dim)
    parametrize.register_parametrization(module, name, SpectralNorm(weight, n_power_iterations, dim, eps))
    return module
