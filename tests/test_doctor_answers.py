"""Every model gets an answer: what cannot be examined is said, and nothing of ours is raised."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import weight_norm

import evenorm
from doctor_busy import Busy
from evenorm.doctor.formats import sarif


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, *, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        y = self.norm(tokens)
        return {"hidden": [y, (y * 2, None)], "text": "no tensor", "loss": y.sum()}


class Silent(Busy):
    """Answers with nothing."""

    def forward(self, x: Tensor) -> Any:
        self.body(x)


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def scripted() -> nn.Module:
    norm: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    return norm


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        # Torch moves its quantization elsewhere.
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Busy(), {nn.Linear})
    assert isinstance(model, nn.Module)
    assert "quantized" in type(model.body[0]).__module__  # type: ignore[index]
    return model


def partly_compiled() -> nn.Module:
    model = Busy()
    model.body = torch.compile(model.body)  # type: ignore[assignment]
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(4, 8)), nn.BatchNorm1d(8))


class Case(NamedTuple):
    """A model, its batch, what is said of it, and whether it runs."""

    make: Callable[[], Any]
    batch: Any
    said: str = ""
    runs: bool = True


ROWS, TOKENS = torch.randn(6, 4), torch.randn(2, 3, 4)
CASES: dict[str, Case] = {
    "keywords and nested outputs": Case(Nested, {"tokens": TOKENS}),
    "no output": Case(Silent, ROWS),
    "a batch that does not fit": Case(Busy, torch.randn(6, 5), "did not run this batch", runs=False),
    "a missing keyword": Case(Nested, ROWS, "did not run this batch", runs=False),
    "integers for numbers": Case(Busy, ROWS.long(), "did not run this batch", runs=False),
    "an empty batch": Case(Busy, ROWS[:0]),
    "one sample": Case(without_norms, ROWS[:1]),
    "no normalizer": Case(without_norms, ROWS, "no normalization layer"),
    "scripted": Case(scripted, ROWS, "scripted: only its state is examined"),
    "compiled": Case(lambda: torch.compile(Busy()), ROWS),
    "partly compiled": Case(partly_compiled, ROWS),
    "quantized": Case(quantized, ROWS),
    "parametrized": Case(weight_normed, ROWS),
    "lazy": Case(lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), None, "lazy"),
    "on the meta device": Case(lambda: nn.LayerNorm(4, device="meta"), ROWS, "did not run this batch", runs=False),
    "half precision": Case(lambda: Nested().half(), {"tokens": TOKENS.half()}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("intent", ["train", "infer"])
def test_every_model_gets_an_answer(name: str, intent: Any) -> None:
    case = CASES[name]
    found = evenorm.examine(case.make(), case.batch, intent=intent)
    assert case.said in " ".join(found.notes)
    assert not any("could not be examined" in text for text in found.notes), found.notes
    assert (found.failure is None) == case.runs
    assert case.runs or not found.ok
    json.dumps(sarif.document(found))


@pytest.mark.parametrize("name", ["compiled", "partly compiled", "quantized"])
def test_what_is_wrong_is_still_found(name: str) -> None:
    """A momentum of 0.99, in whatever the model was made into."""
    case = CASES[name]
    assert "EN112" in evenorm.examine(case.make(), case.batch).codes


@contextmanager
def one_process() -> Iterator[Any]:
    """A process group of this process alone."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def losses(model: nn.Module) -> list[float]:
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(ROWS).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.dist
def test_a_sharded_model_is_examined_by_its_state_and_trains_on() -> None:
    """A pass on one of several processes would wait for ever; and passes leave parts gathered."""
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.LayerNorm(8))
    expected = losses(copy.deepcopy(body))
    with one_process() as mesh:
        sharded: Any = fully_shard(copy.deepcopy(body), mesh=mesh)
        optimizer = torch.optim.AdamW(sharded.parameters())
        found = evenorm.examine(sharded, ROWS, optimizer=optimizer)
        assert "sharded: only its state is examined" in " ".join(found.notes)
        assert not any("could not be examined" in text for text in found.notes), found.notes
        assert {"EN112", "EN601"} <= set(found.codes)
        assert losses(sharded) == pytest.approx(expected)


@pytest.mark.dist
def test_a_sharded_model_is_watched() -> None:
    body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with one_process() as mesh:
        sharded: Any = fully_shard(body, mesh=mesh)
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
        with evenorm.Monitor(sharded, optimizer) as monitor:
            sharded(ROWS).square().mean().backward()
            optimizer.step()
        (row,) = monitor.table().rows
        weight = sharded.get_parameter("1.weight")
        assert weight.grad is not None
        assert row.gradients["weight"] == pytest.approx(float(weight.grad.full_tensor().norm()))
