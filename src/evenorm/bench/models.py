"""The suite ``models``: whole training and inference steps, torch's layers against ours.

The networks are transformers' own classes, built from their configurations with random weights: nothing is
downloaded. Training is SGD on one batch. It is timed only where ten steps give the losses of torch's layers
to 1e-4, inference only where the outputs are as near to the float64 model's as torch's are.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evenorm.bench import allocator
from evenorm.bench.measure import timings
from evenorm.bench.peers import OURS
from evenorm.bench.row import Descent, Row, Timing
from evenorm.bench.stopwatch import interleave

__all__ = ["MODELS", "RATES", "Rewrite", "Task", "measure", "row", "training"]

Rewrite = Callable[[nn.Module, Mapping[str, Tensor]], nn.Module]
"""Takes a model and the keyword arguments of a call, returns it with our layers in place of torch's."""

RATES = {"ResNet-50": 1e-6, "MobileNetV2": 1e-7, "ConvNeXt-T": 1e-5, "Llama 512": 1e-2}
"""Learning rates at which the loss falls smoothly.

At larger ones a fresh network with batch normalization multiplies the rounding of any two implementations, torch's
in float32 and in float64 too, by thousands in a step.
"""

_LOSS, _OUTPUT = 1e-4, 1e-4
_STEPS, _QUICK_STEPS = 10, 2


@dataclass(frozen=True)
class Task:
    """A model, the keyword arguments of a call that returns a loss, and a learning rate."""

    model: nn.Module
    batch: Mapping[str, Tensor]
    rate: float


class _Verdict(NamedTuple):
    """How far off our layers are from torch's, how far they may be, and the training that showed it."""

    error: float
    limit: float
    descent: Descent | None = None

    @property
    def fault(self) -> str:
        """What is wrong where the limit is passed."""
        where = "" if self.descent is None else f" at {self.descent}"
        return f"wrong: off from torch's layers by {self.error:.2g}, more than {self.limit:.2g}{where}"


def _images(side: int, classes: int, batch: int) -> dict[str, Tensor]:
    pixels = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    return {"pixel_values": pixels, "labels": torch.arange(batch) % classes}


def _resnet(quick: bool) -> Task:
    from transformers import ResNetConfig, ResNetForImageClassification

    options: dict[str, Any] = {"num_labels": 10}
    if quick:
        options |= {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
    model = ResNetForImageClassification(ResNetConfig(**options))
    return Task(model, _images(32, 10, 4) if quick else _images(224, 10, 16), RATES["ResNet-50"])


def _mobilenet(quick: bool) -> Task:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    options: dict[str, Any] = {"num_labels": 10, "classifier_dropout_prob": 0.0}
    options |= {"depth_multiplier": 0.25} if quick else {}
    model = MobileNetV2ForImageClassification(MobileNetV2Config(**options))
    return Task(model, _images(96, 10, 8) if quick else _images(224, 10, 16), RATES["MobileNetV2"])


def _convnext(quick: bool) -> Task:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    options: dict[str, Any] = {"num_labels": 10}
    options |= {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]} if quick else {}
    model = ConvNextForImageClassification(ConvNextConfig(**options))
    return Task(model, _images(64, 10, 2) if quick else _images(224, 10, 16), RATES["ConvNeXt-T"])


def _llama(quick: bool) -> Task:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, length = (32, 1, 8) if quick else (512, 8, 512)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    words = torch.randint(4096, (2, length))
    return Task(LlamaForCausalLM(config), {"input_ids": words, "labels": words}, RATES["Llama 512"])


MODELS: dict[str, Callable[[bool], Task]] = {
    "ResNet-50": _resnet,
    "MobileNetV2": _mobilenet,
    "ConvNeXt-T": _convnext,
    "Llama 512": _llama,
}


def measure(name: str, rewrite: Rewrite, seconds: float, quick: bool = False) -> Iterator[Row]:
    """Training and inference of one model."""
    torch.manual_seed(0)
    task = MODELS[name](quick)
    plain = task.model
    if "pixel_values" in task.batch:
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    models = {OURS: rewrite(copy.deepcopy(plain), task.batch), "torch": plain}
    # Inference first: training moves the weights of the two apart by a rounding here and there.
    for direction, gate, call in (
        ("inference", _outputs_agree, _inference),
        ("training", _losses_agree, _training),
    ):
        verdict = gate(models, task, _QUICK_STEPS if quick else _STEPS)
        if verdict.error > verdict.limit:
            found = {OURS: Timing(absent=verdict.fault)}
        else:
            calls = {key: call(model, task) for key, model in models.items()}
            with torch.set_grad_enabled(direction == "training"):
                peaks = {key: allocator.peak(timed) for key, timed in calls.items()}
                found = timings(interleave(calls, seconds))
            for key, peak in peaks.items():
                found[key].peak = peak
        found[OURS].error, found[OURS].share = verdict.error, verdict.error / verdict.limit
        yield row(name, direction, task.batch, found, descent=verdict.descent)
        gc.collect()


def _training(model: nn.Module, task: Task) -> Callable[[], Tensor]:
    return training(model, task, torch.optim.SGD(model.parameters(), lr=task.rate))


def training(model: nn.Module, task: Task, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    """A training step, which returns its loss."""
    model.train()

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = model(**task.batch).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _inference(model: nn.Module, task: Task) -> Callable[[], object]:
    model.eval()
    return lambda: model(**task.batch).logits


def _losses_agree(models: Mapping[str, nn.Module], task: Task, steps: int) -> _Verdict:
    """The largest difference of the losses of each step, as a share of torch's loss."""
    losses = {}
    for name, model in models.items():
        step: Any = _training(model, task)
        torch.manual_seed(0)
        losses[name] = torch.stack([step() for _ in range(steps)])
    difference = (losses[OURS] - losses["torch"]).abs() / losses["torch"].abs()
    error = float(difference.nan_to_num(nan=torch.inf).max())
    first, last = losses["torch"][[0, -1]].tolist()
    return _Verdict(error, _LOSS, Descent(steps, task.rate, first, last))


def _outputs_agree(models: Mapping[str, nn.Module], task: Task, _: int) -> _Verdict:
    """Our error against the float64 model in units of its largest output; its limit is torch's error twice.

    On two samples, since float64 is slow; below 1e-4 any error passes.
    """
    few = {key: value[:2] for key, value in task.batch.items()}
    with torch.no_grad():
        exact = copy.deepcopy(models["torch"]).double().eval()
        wide = {key: value.double() if value.is_floating_point() else value for key, value in few.items()}
        expected = exact(**wide).logits
        errors = {}
        for name, model in models.items():
            found = model.eval()(**few).logits.double()
            errors[name] = float(((found - expected).abs().max() / expected.abs().max()).nan_to_num(nan=torch.inf))
    return _Verdict(errors[OURS], max(2 * errors["torch"], _OUTPUT))


def row(
    name: str,
    direction: str,
    batch: Mapping[str, Tensor],
    found: dict[str, Timing],
    *,
    suite: str = "models",
    title: str = "whole steps · float32",
    descent: Descent | None = None,
) -> Row:
    """A row of one network's steps."""
    first = next(iter(batch.values()))
    return Row(
        suite=suite,
        title=title,
        network=name,
        layer=name,
        size=name,
        dtype="float32",
        training=direction == "training",
        direction=direction,
        memory="fresh",
        elements=first.numel(),
        bytes=first.numel() * first.element_size(),
        copies=0.0,
        timings=found,
        descent=descent,
    )
