"""A trace: what the normalizers saw in one pass through the model, and the gradients that came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from evenorm.doctor.excerpt import first_samples
from evenorm.doctor.inputs import Inputs, tensors
from evenorm.doctor.sites import Site, versions

__all__ = ["Call", "FunctionalCall", "Trace", "observed", "trace"]

Excerpt = Callable[[Tensor], Tensor]

FUNCTIONS: dict[Any, str] = {
    functional.batch_norm: "batch_norm",
    functional.instance_norm: "instance_norm",
    functional.layer_norm: "layer_norm",
    functional.group_norm: "group_norm",
    functional.rms_norm: "rms_norm",
    functional.scaled_dot_product_attention: "attention",
}


@dataclass(frozen=True)
class Call:
    """One call of a site.

    Attributes:
        values: values per statistic, if the batch normalizes.
        mean, variance: of the input per channel, axis 1; for batch and instance norms.
        x: an excerpt of the input.
        recomputed: whether it happened in the backward pass (activation checkpointing).
    """

    site: Site
    shape: tuple[int, ...]
    dtype: torch.dtype
    output_dtype: torch.dtype
    values: int
    mean: Tensor | None
    variance: Tensor | None
    x: Tensor
    training: bool
    recomputed: bool


@dataclass(frozen=True)
class FunctionalCall:
    """One call of ``torch.nn.functional``'s batch_norm, layer_norm, …, or of its attention, by a module.

    Attributes:
        path: of the module that called it.
        arguments: as passed, by name; those of a function without a Python source by keyword only.
    """

    name: str
    path: str
    module: nn.Module
    arguments: dict[str, Any]


@dataclass
class Trace:
    """One pass.

    Attributes:
        calls: of sites, in order.
        functional: calls of torch's functions, in order.
        outputs: the model's floating-point outputs, detached.
        updates: how often each site's running statistics moved; sites that did not move are left out.
        gradients: the norm of each parameter's gradient under a random cotangent; empty without a backward.
        failure: what the model raised.
    """

    calls: list[Call] = field(default_factory=list)
    functional: list[FunctionalCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    updates: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None

    def of(self, site: Site) -> list[Call]:
        """The calls of one site, those of a backward's recomputation left out."""
        return [call for call in self.calls if call.site is site and not call.recomputed]


def trace(
    model: nn.Module,
    inputs: Inputs,
    sites: Sequence[Site],
    *,
    backward: bool = False,
    excerpt: Excerpt = first_samples,
) -> Trace:
    """Run the model in the modes that it stands in. The caller restores it."""
    found = Trace()
    phase, before = {"backward": False}, versions(sites)
    with recording(found, model, sites, phase, excerpt):
        try:
            with torch.set_grad_enabled(backward):
                answer = tensors(inputs(model))
            found.outputs = [y.detach() for y in answer if y.is_floating_point()]
            phase["backward"] = True
            if backward:
                found.gradients = _gradients(model, answer)
        except Exception as failure:
            found.failure = failure
    grown = {path: number - before.get(path, number) for path, number in versions(sites).items()}
    found.updates = {path: updates for path, updates in grown.items() if updates}
    return found


@contextmanager
def recording(
    found: Trace, model: nn.Module, sites: Sequence[Site], phase: dict[str, bool], excerpt: Excerpt
) -> Iterator[None]:
    """Hooks on the sites, and a watch over torch's functions, for as long as it lasts."""
    stack: list[tuple[str, nn.Module]] = []
    with ExitStack() as exits:
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            enter = module.register_forward_pre_hook(_pusher(stack, path))
            leave = module.register_forward_hook(_popper(stack), always_call=True)
            exits.callback(enter.remove)
            exits.callback(leave.remove)
        for site in sites:
            if not isinstance(site.module, torch.jit.ScriptModule):
                hook = site.module.register_forward_hook(_recorder(found, site, phase, excerpt), with_kwargs=True)
                exits.callback(hook.remove)
        exits.enter_context(_Watch(found, stack))
        yield


def _pusher(stack: list[tuple[str, nn.Module]], path: str) -> Callable[..., None]:
    def push(module: nn.Module, args: Any) -> None:
        stack.append((path, module))

    return push


def _popper(stack: list[tuple[str, nn.Module]]) -> Callable[..., None]:
    def pop(module: nn.Module, args: Any, output: Any) -> None:
        if stack:
            stack.pop()

    return pop


def _recorder(found: Trace, site: Site, phase: dict[str, bool], excerpt: Excerpt) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = next(iter(tensors((args, kwargs))), None)
        if x is not None and x.is_floating_point():
            found.calls.append(observed(site, x.detach(), output, phase["backward"], excerpt))

    return record


def observed(site: Site, x: Tensor, output: Any, recomputed: bool, excerpt: Excerpt) -> Call:
    """A call of a site, measured."""
    y = next(iter(tensors(output)), x)
    mean = variance = None
    if site.kind in ("batch", "instance") and x.dim() > 1 and x.numel():
        axes = tuple(axis for axis in range(x.dim()) if axis != 1)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(values, axes, correction=0)
    return Call(
        *(site, tuple(x.shape), x.dtype, y.dtype, site.values(tuple(x.shape))),
        *(mean, variance, excerpt(x), site.training, recomputed),
    )


class _Watch(TorchFunctionMode):
    """Notes calls of torch's normalization functions, and by which module."""

    def __init__(self, found: Trace, stack: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._found, self._stack = found, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = FUNCTIONS.get(func)
        if name is not None and self._stack:
            code = getattr(func, "__code__", None)
            names = code.co_varnames[: code.co_argcount] if code else ()
            given = dict(zip(names, args, strict=False)) | kwargs
            given.pop("input", None)
            self._found.functional.append(FunctionalCall(name, *self._stack[-1], given))
        return func(*args, **kwargs)


def _gradients(model: nn.Module, outputs: Sequence[Tensor]) -> dict[str, float]:
    """Norms of the parameters' gradients under a random cotangent; ``.grad`` stays as it is."""
    ends = [y for y in outputs if y.requires_grad and y.is_floating_point()]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not ends or not named:
        return {}
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y) for y in ends]
    grads = torch.autograd.grad(ends, [p for _, p in named], cotangents, allow_unused=True)
    return {name: float(g.norm()) for (name, _), g in zip(named, grads, strict=True) if g is not None}
