"""recalibrate(): running statistics that are the data's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from evenorm.layers import Layer
from evenorm.layers.remembering import BatchLayer
from evenorm.moments import Moments
from evenorm.statistics import Frozen
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.snapshot import atomic, untouched

__all__ = ["recalibrate"]

Call = Callable[[nn.Module, Any], Any]


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    call: Call | None = None,
    *,
    process_group: Any = None,
    progress: bool = True,
    inplace: bool = True,
    report: bool = False,
) -> Any:
    r"""Set the running statistics of batch normalizations to the moments of a whole data set.

    .. math:: \mu = \frac{1}{N} \sum x, \qquad \sigma^2 = \frac{1}{N - 1} \sum (x - \mu)^2

    over all values of all batches together, merged exactly whatever their sizes. Batch normalizations normalize
    with each batch while the data runs through, as in training; everything else is in evaluation, so dropout is off.
    Afterwards every module is in the mode it was in. Where torch.distributed is initialized the moments of all ranks
    are merged, in rank order.

    Layers that are frozen stay: by :func:`freeze`, by momentum 0, or in evaluation inside a model in training.
    A layer that no batch reaches keeps what it had.

    Args:
        model: any module.
        loader: batches.
        call: how a model is called with a batch; ``model(**batch)`` for mappings, ``model(batch[0])`` for tuples and
            lists, ``model(batch)`` for the rest, on the model's device, unless given.
        process_group: whose ranks are merged; all unless given.
        progress: whether a bar is shown on the error stream, if that is a terminal.
        inplace: whether the model itself is changed, or a copy.
        report: whether ``(model, SurgeryReport)`` is returned; its rows say how far the statistics moved.

    Returns:
        The model.

    Raises:
        ValueError: the loader is empty.
        FloatingPointError: a layer was given values that are not finite. The model is as it was, as it is after any
            other exception.

    Source:
        Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> model = recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]] * 4)])
    >>> round(model[0].running_mean.item(), 4), round(model[0].running_var.item(), 4)
    (4.0, 2.8)
    """
    found = SurgeryReport("recalibrate")
    target = model if inplace else copy.deepcopy(model)
    layers = {layer: path for path, layer in target.named_modules() if _is_recalibrated(layer, path, target, found)}
    seen: dict[nn.Module, Moments] = {}
    batches: dict[nn.Module, int] = dict.fromkeys(layers, 0)

    def observe(layer: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0].detach()
        moments = Moments.of(x.movedim(1, -1).flatten(0, -2) if x.dim() > 2 else x)
        if not bool(torch.isfinite(moments.M2).all()):
            raise FloatingPointError(
                f"recalibrate: {layers[layer] or type(layer).__name__} was given values that are not finite, or too "
                f"large to square; the model is as it was"
            )
        seen[layer] = seen[layer].merge(moments) if layer in seen else moments
        batches[layer] += 1

    failure: Exception | None = None
    count = 0
    try:
        with untouched(target):
            target.eval()
            for layer in layers:
                layer.train()
                layer.register_forward_pre_hook(observe)
            count = _run(target, loader, call or _call, progress)
    except Exception as fault:
        # The other ranks are told first: they would wait.
        failure = fault
    counts, merged = _merged(layers, seen, -1 if failure else count, process_group)
    if failure is not None:
        raise failure
    if min(counts) < 0:
        raise RuntimeError(f"recalibrate: it failed on rank {counts.index(-1)}; the model is as it was")
    if not sum(counts):
        raise ValueError("recalibrate: the loader gave no batch; the model is as it was")
    new = {layer: (moments.mean, moments.unbiased) for layer, moments in merged.items() if _count(moments) > 1}
    with torch.no_grad(), atomic(target, values=True):
        for layer, path in layers.items():
            if layer in new:
                found.did(path, type(layer).__name__, _drift(layer, *new[layer]), "recalibrated")
                _write(layer, *new[layer], batches[layer])
            else:
                found.refuse(path, type(layer).__name__, "no batch reached it with two values or more")
    return (target, found) if report else target


def _is_recalibrated(layer: Any, path: str, model: nn.Module, report: SurgeryReport) -> bool:
    """Whether a layer's running statistics are to be set; what is left is noted."""
    batch_norm = isinstance(layer, (nn.modules.batchnorm._BatchNorm, BatchLayer))
    mean = layer._buffers.get("running_mean")
    if not batch_norm or mean is None:
        return False
    reason = None
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        reason = "it averages over instances and not over the data"
    elif mean.dim() != 1:
        reason = "it has one history for each domain"
    elif isinstance(layer, Layer) and isinstance(layer.statistics, Frozen):
        reason = "it is frozen"
    elif layer.momentum == 0:
        reason = "its momentum is 0: it is frozen"
    elif model.training and not layer.training:
        reason = "it is in evaluation inside a model in training: it is frozen"
    if reason is not None:
        report.refuse(path, type(layer).__name__, reason)
    return reason is None


def _run(model: nn.Module, loader: Iterable[Any], call: Call, progress: bool) -> int:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    count = 0
    for batch in track(loader, "recalibrate", console=console, disable=hidden, transient=True):
        call(model, batch)
        count += 1
    return count


def _call(model: nn.Module, batch: Any) -> Any:
    device = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    batch = tree_map_only(Tensor, lambda t: t.to(device), batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _count(moments: Moments) -> int:
    return int(moments.count.max()) if isinstance(moments.count, Tensor) else moments.count


def _merged(
    layers: Mapping[nn.Module, str], seen: Mapping[nn.Module, Moments], count: int, group: Any
) -> tuple[list[int], dict[nn.Module, Moments]]:
    """Batches of each rank, -1 where it failed; the moments of all, in rank order: every rank gets the same bits."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [count], dict(seen)
    parts = []
    for layer in layers:
        mean = layer.get_buffer("running_mean")
        own = seen.get(layer, Moments(0, *(torch.zeros_like(mean, dtype=torch.float64) for _ in range(2))))
        parts.append(torch.cat([own.mean.new_tensor([_count(own)]), own.mean, own.M2]))
    device = parts[0].device if parts else torch.device("cpu")
    packet = torch.cat([torch.tensor([float(count)], dtype=torch.float64, device=device), *parts])
    packets = [torch.empty_like(packet) for _ in range(dist.get_world_size(group))]
    dist.all_gather(packets, packet, group=group)
    by_rank = [packet[1:].split([part.numel() for part in parts]) for packet in packets]
    merged = {}
    for index, layer in enumerate(layers):
        rows = [rank[index] for rank in by_rank]
        size = (rows[0].numel() - 1) // 2
        merged[layer] = Moments.merged(Moments(int(r[0]), r[1 : 1 + size], r[1 + size :]) for r in rows)
    return [int(packet[0]) for packet in packets], merged


def _drift(layer: nn.Module, mean: Tensor, variance: Tensor) -> str:
    """How far the statistics move: the mean in standard deviations, the variance as a factor; the worst channel."""
    old_mean, old_variance = (layer.get_buffer(n).double() for n in ("running_mean", "running_var"))
    shift = ((mean - old_mean).abs() / variance.clamp_min(torch.finfo(torch.float64).tiny).sqrt()).max()
    ratio = (variance / old_variance.clamp_min(torch.finfo(torch.float64).tiny)).log()
    factor = float(ratio.abs().max().exp())
    return f"{type(layer).__name__}, moved: mean ≤ {float(shift):.3g} σ, variance ≤ {factor:.3g}×"


def _write(layer: Any, mean: Tensor, variance: Tensor, batches: int) -> None:
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    if layer._buffers.get("num_batches_tracked") is not None:
        layer.num_batches_tracked.fill_(batches)
