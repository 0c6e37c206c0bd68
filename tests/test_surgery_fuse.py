"""Fused forwards: what they fuse, and that they give way where they might differ."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenorm
from blocks import Chunked, Functional, Residual, images
from evenorm.operator import Straight
from graphs import randomize


@pytest.mark.parametrize(
    ("make", "without", "with_inputs"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Hardswish()), (1, 0), (1, 0)),
        (lambda: nn.Sequential(nn.Sequential(nn.BatchNorm2d(8)), nn.Identity(), nn.GELU()), (1, 0), (1, 0)),
        (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Sigmoid()), (0, 0), (0, 0)),
        (Residual, (1, 0), (2, 1)),
        (lambda: nn.Sequential(Residual(), Residual()), (2, 0), (4, 2)),
        (Functional, (0, 0), (1, 0)),
        (Chunked, (0, 0), (1, 0)),
    ],
)
def test_activations_and_additions_are_fused(
    make: Callable[[], nn.Module], without: tuple[int, int], with_inputs: tuple[int, int]
) -> None:
    for example, counts in ((None, without), (images(), with_inputs)):
        model = randomize(make())
        plain = copy.deepcopy(model)
        _, report = evenorm.accelerate(model, example, report=True)
        assert (report.count("activations fused"), report.count("adds fused")) == counts
        assert str(model).replace("evenorm.", "") == str(plain)
        for mode in (True, False):
            x = images()
            ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = model.train(mode)(ours * 1), plain.train(mode)(theirs * 1)
            torch.testing.assert_close(y, expected)
            cotangent = torch.randn_like(y)
            y.backward(cotangent)
            expected.backward(cotangent)
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.state_dict(), plain.state_dict())


def is_fused(model: nn.Module, call: Callable[[], object], layer: nn.Module) -> bool:
    """Whether a call went past the layer's own, which a fused forward does not make."""
    own, calls = type(layer).__call__, []

    class Counted(type(layer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(self)
            return own(self, *args, **kwargs)

    kind, layer.__class__ = type(layer), Counted
    try:
        call()
    finally:
        layer.__class__ = kind
    return not calls


def fused_residual() -> tuple[Any, Any]:
    model = randomize(Residual())
    plain = copy.deepcopy(model)
    evenorm.accelerate(model, images())
    return model, plain


def test_what_is_fused_is_not_called() -> None:
    model, _ = fused_residual()
    assert is_fused(model, lambda: model(images()), model.bn2)
    assert is_fused(model, lambda: model(images(7, 5)), model.bn2), "another batch and size"


@pytest.mark.parametrize("path", ["bn2", "relu"])
def test_a_hook_set_later_sees_what_it_would_have_seen(path: str) -> None:
    model, plain = fused_residual()
    seen: list[Tensor] = []
    for one in (model, plain):
        handle = one.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y.clone()))
        one.eval()(x := images()) if one is model else one.eval()(x)
        handle.remove()
    half = len(seen) // 2
    assert half >= 1
    for ours, theirs in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert is_fused(model, lambda: model(images()), model.bn2), "fused again without the hook"


def test_other_arguments_take_the_modules_own_forward() -> None:
    model, plain = randomize(Functional()), randomize(Functional())
    x = images()
    evenorm.accelerate(model, x)
    assert is_fused(model, lambda: model(x), model.norm)  # type: ignore[arg-type]
    for arguments in ({"scale": 2.0}, {"twice": True}):
        torch.testing.assert_close(model(x, **arguments), plain(x, **arguments))


class Named(OrderedDict[str, Tensor]):
    """What transformers' models return: a dict that can be indexed."""

    def __getitem__(self, key: Any) -> Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class Naming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Named:
        return Named(out=F.relu(self.norm(x)))


def test_what_a_graph_cannot_return_stays_what_it_is() -> None:
    model, report = evenorm.accelerate(Naming(), images(), report=True)
    assert isinstance(model(images())[0], Tensor)
    assert "returns a Named" in report.refused[0].refusal


def test_lengths_that_code_has_read_are_compared() -> None:
    model, plain = randomize(Chunked()).eval(), randomize(Chunked()).eval()
    evenorm.accelerate(model, images(side=6))
    for side in (6, 5):
        torch.testing.assert_close(model(x := images(side=side)), plain(x))


class ByAxes(nn.Module):
    """Code that turns on how many axes there are, and one that compares whole shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.expected = nn.GroupNorm(2, 8), (4, 8, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if x.dim() == 3 or x.shape == self.expected:
            return F.relu(y)
        return y


@pytest.mark.parametrize("traced", [(4, 8, 6, 6), (4, 8, 6), (2, 8, 6, 6)])
def test_shapes_that_code_has_compared_are_compared(traced: tuple[int, ...]) -> None:
    model, plain = randomize(ByAxes()), randomize(ByAxes())
    _, report = evenorm.accelerate(model, torch.randn(traced), report=True)
    assert report.count("activations fused") == (traced[0] == 4)
    for shape in ((4, 8, 6, 6), (4, 8, 6), (2, 8, 6, 6), (4, 8, 6, 6, 2)):
        torch.testing.assert_close(model(x := torch.randn(shape)), plain(x))


class Inner(nn.Module):
    """Ends with a normalizer, and pads by the lengths of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pad(x, (0, int(x.shape[-1]) % 2)))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(8, 8, 1), Inner()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.conv(x))


def test_lengths_inside_are_those_of_the_example() -> None:
    """As in transformers' MobileNetV2, whose convolutions pad as TensorFlow's do."""
    model, plain = randomize(Outer()), randomize(Outer())
    _, report = evenorm.accelerate(model, images(), report=True)
    assert report.count("adds fused") == 1
    assert is_fused(model, lambda: model(images()), model.inner.norm)  # type: ignore[arg-type]
    assert not is_fused(model, lambda: model(images(7)), model.inner.norm)  # type: ignore[arg-type]
    for shape in ((4, 6), (7, 6), (4, 4)):
        torch.testing.assert_close(model(x := images(*shape)), plain(x))
    with pytest.raises(RuntimeError, match="size"):
        plain(images(side=5))
    with pytest.raises(RuntimeError, match="size"):
        model(images(side=5))


class Beside(nn.Module):
    """Normalizers beside what could go with them, if it were another."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.twice, self.squashed = (nn.GroupNorm(2, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = x + x.flip(0)
        y = self.before(total)
        z = self.twice(y.abs())
        return torch.tanh(self.squashed(F.relu(z) * z)) + total


def test_what_is_left_has_a_reason() -> None:
    _, report = evenorm.accelerate(Beside(), images(), report=True)
    assert report.count("replaced") == 3
    reasons = {row.path: row.refusal for row in report.refused}
    assert reasons.keys() == {"before", "twice", "squashed"}
    assert "added before it" in reasons["before"]
    assert "goes to relu and elsewhere" in reasons["twice"]
    assert "tanh is none of the activations" in reasons["squashed"]


def test_what_has_a_hook_is_left_with_a_reason() -> None:
    model = Residual()
    model.bn2.register_forward_hook(lambda *_: None)
    _, report = evenorm.accelerate(model, images(), report=True)
    assert report.count("adds fused") == 0
    assert [row.refusal for row in report.refused] == ["a hook hangs on BatchNorm2d"]


@pytest.mark.parametrize("name", ["bn2", "relu", "conv1"])
def test_a_child_replaced_later_is_called(name: str) -> None:
    model, plain = fused_residual()
    other = {"bn2": nn.BatchNorm2d(8), "relu": nn.Tanh(), "conv1": nn.Identity()}[name]
    for one in (model, plain):
        setattr(one, name, copy.deepcopy(other))
    torch.testing.assert_close(model.eval()(x := images()), plain.eval()(x))


def test_torchs_converter_drops_nothing() -> None:
    """Its new layers come without the fusion, and the module's own forward still activates."""
    model, plain = fused_residual()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    torch.testing.assert_close(model(x := images()), plain.eval()(x))


def test_copies_and_files_compute_the_same() -> None:
    model, plain = fused_residual()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    copied = copy.deepcopy(model)
    x = images()
    for one in (copied, stored):
        torch.testing.assert_close(one.eval()(x), plain.eval()(x))
    assert is_fused(copied, lambda: copied(x), copied.bn2)
    assert type(evenorm.revert(copied).bn1) is nn.BatchNorm2d
    assert type(model.bn1) is evenorm.BatchNorm2d


def test_compiled_and_exported() -> None:
    model, plain = fused_residual()
    x = images()
    expected = plain.eval()(x)
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_moved_to_another_dtype() -> None:
    model, plain = fused_residual()
    x = images().double()
    torch.testing.assert_close(model.double()(x), plain.double()(x))


def test_half_precision_is_proved_in_float32() -> None:
    model = randomize(Residual()).to(torch.bfloat16)
    _, report = evenorm.accelerate(model, images().to(torch.bfloat16), report=True)
    assert report.count("adds fused") == 1
    assert report.proof is not None
    assert report.proof.bound < 1e4


def test_ten_training_steps() -> None:
    model = randomize(nn.Sequential(Residual(), nn.Conv2d(8, 8, 1), Functional()))
    plain = copy.deepcopy(model)
    evenorm.accelerate(model, images())
    x, target = images(), images()
    losses: list[list[float]] = []
    for one in (model, plain):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.mse_loss(one(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1][0] > losses[1][-1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_fused_call_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer asks once for each shape it asks once when it is fused, until something about it changes."""
    prepared: list[Straight | None] = []
    prepare = Straight.of

    def counted(*call: Any) -> Straight | None:
        prepared.append(prepare(*call))
        return prepared[-1]

    monkeypatch.setattr(Straight, "of", counted)
    model = evenorm.accelerate(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
    layer, x = model[0], images()
    model(x), model(x)
    if prepared[0] is None:
        pytest.skip("only the extension has calls that go straight to it")
    assert len(prepared) == 1
    before, layer.momentum = layer.running_mean.clone(), 0.5
    torch.testing.assert_close(model(x), F.relu(F.batch_norm(x, None, None, training=True)))
    torch.testing.assert_close(layer.running_mean, (before + x.mean((0, 2, 3))) / 2)
    assert len(prepared) == 2
    model.eval()
    model(x), model(x)
    assert len(prepared) == 3
