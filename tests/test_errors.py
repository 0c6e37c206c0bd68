"""Bad input: who complains, what came, what was expected, what to do; and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import evenorm
from cases import CASES, Case, case
from evenorm import Affine, History, Norm, Pattern, PatternError, Recipe, Running
from evenorm.kernels import KernelError
from evenorm.layers import Layer
from kernels_here import AVAILABLE, WITHOUT_EXTENSION


class BadCall(NamedTuple):
    """A call that must be refused, and words of the message."""

    layer: Callable[[], Layer]
    call: Callable[[Layer], Tensor]
    error: type[Exception]
    words: tuple[str, ...]


def call(*shape: int, dtype: torch.dtype = torch.float32, **options: Tensor) -> Callable[[Layer], Tensor]:
    """A call with a tensor of ones."""
    return lambda layer: layer(torch.ones(shape, dtype=dtype), **options)


def on_meta(layer: Layer) -> Tensor:
    return layer(torch.ones(4, 6, 5, 3, device="meta"))


BATCH = lambda **more: lambda: evenorm.BatchNorm2d(6, **more)  # noqa: E731
BAD_CALLS: dict[str, BadCall] = {
    "images, two axes": BadCall(BATCH(), call(4, 6), ValueError, ("BatchNorm2d(6", "(N, C, H, W)", "(4, 6)")),
    "images, five axes": BadCall(BATCH(), call(4, 6, 1, 1, 1), ValueError, ("BatchNorm2d(6", "(N, C, H, W)", "5 axes")),
    "sequences, four axes": BadCall(
        lambda: evenorm.BatchNorm1d(6),
        call(4, 6, 5, 3),
        ValueError,
        ("BatchNorm1d(6", "(N, C) or (N, C, L)", "4 axes"),
    ),
    "volumes, four axes": BadCall(
        lambda: evenorm.BatchNorm3d(6), call(4, 6, 5, 3), ValueError, ("BatchNorm3d", "(N, C, D, H, W)")
    ),
    "no axes": BadCall(BATCH(), call(), ValueError, ("BatchNorm2d(6", "0 axes")),
    "instance, two axes": BadCall(
        lambda: evenorm.InstanceNorm2d(6), call(4, 6), ValueError, ("InstanceNorm2d(6", "(4, 6)")
    ),
    "ghost, two axes": BadCall(
        lambda: evenorm.GhostBatchNorm2d(6, 2), call(5, 6), ValueError, ("GhostBatchNorm2d(6", "(5, 6)")
    ),
    "ghost, no axes": BadCall(
        lambda: evenorm.GhostBatchNorm1d(6, 2), call(), ValueError, ("GhostBatchNorm1d(6", "0 axes")
    ),
    "channels-first layer, three axes": BadCall(
        lambda: evenorm.LayerNorm2d(6), call(4, 6, 5), ValueError, ("LayerNorm2d", "(N, C, H, W)")
    ),
    "batch, channels": BadCall(
        BATCH(), call(4, 5, 2, 2), ValueError, ("BatchNorm2d(6", "6 channels", "5", "(4, 5, 2, 2)")
    ),
    "batch in evaluation, channels": BadCall(
        lambda: evenorm.BatchNorm2d(6).eval(), call(4, 5, 2, 2), ValueError, ("6 channels", "got 5")
    ),
    "instance, channels": BadCall(
        lambda: evenorm.InstanceNorm1d(6), call(4, 5, 3), ValueError, ("InstanceNorm1d(6", "6", "5")
    ),
    "group, channels": BadCall(
        lambda: evenorm.GroupNorm(2, 6), call(4, 5, 3), ValueError, ("GroupNorm(2, 6", "6", "5")
    ),
    "layer, features": BadCall(lambda: evenorm.LayerNorm(12), call(4, 11), ValueError, ("LayerNorm((12,)", "12", "11")),
    "layer, two axes of features": BadCall(
        lambda: evenorm.LayerNorm((3, 4)), call(5, 4, 3), ValueError, ("LayerNorm((3, 4)", "(5, 4, 3)")
    ),
    "layer, too few axes": BadCall(
        lambda: evenorm.LayerNorm((3, 4)), call(4), ValueError, ("LayerNorm((3, 4)", "(4,)")
    ),
    "rms, features": BadCall(lambda: evenorm.RMSNorm(12), call(4, 11), ValueError, ("RMSNorm((12,)", "12", "11")),
    "channels-first rms, channels": BadCall(
        lambda: evenorm.RMSNorm2d(6), call(4, 5, 2, 2), ValueError, ("RMSNorm2d", "6", "5")
    ),
    "norm, rank": BadCall(lambda: Norm("n [c] h w", c=6), call(4, 6), PatternError, ("Norm(", "4 axes", "got 2")),
    "norm, a split that does not divide": BadCall(
        lambda: Norm("n (g [c]) [...]", affine=None, g=4),
        call(4, 6),
        PatternError,
        ("Norm(", "4 does not divide", "6", "^"),
    ),
    "one value per channel": BadCall(
        BATCH(), call(1, 6, 1, 1), ValueError, ("BatchNorm2d(6", "2 values", "got 1", "(1, 6, 1, 1)", "LayerNorm")
    ),
    "one row": BadCall(lambda: evenorm.BatchNorm1d(6), call(1, 6), ValueError, ("BatchNorm1d(6", "2 values", "(1, 6)")),
    "one value per untracked channel in evaluation": BadCall(
        lambda: evenorm.BatchNorm1d(6, track_running_stats=False).eval(),
        call(1, 6),
        ValueError,
        ("BatchNorm1d(6", "2 values"),
    ),
    "one value in the last chunk": BadCall(
        lambda: evenorm.GhostBatchNorm1d(6, 4), call(9, 6), ValueError, ("GhostBatchNorm1d(6", "2 values")
    ),
    "one value per instance": BadCall(
        lambda: evenorm.InstanceNorm2d(6), call(4, 6, 1, 1), ValueError, ("InstanceNorm2d(6", "2 values")
    ),
    "one value per group": BadCall(
        lambda: evenorm.GroupNorm(6, 6), call(1, 6), ValueError, ("GroupNorm(6, 6", "2 values")
    ),
    "integers": BadCall(
        BATCH(), call(4, 6, 5, 3, dtype=torch.int64), TypeError, ("BatchNorm2d(6", "torch.int64", ".float()")
    ),
    "booleans": BadCall(
        lambda: evenorm.LayerNorm(12), call(4, 12, dtype=torch.bool), TypeError, ("LayerNorm", "torch.bool")
    ),
    "complex numbers": BadCall(
        lambda: evenorm.RMSNorm(12), call(4, 12, dtype=torch.complex64), TypeError, ("RMSNorm", "complex64")
    ),
    "another device": BadCall(BATCH(), on_meta, ValueError, ("BatchNorm2d(6", "meta", "cpu", ".to(")),
    "the history on another device": BadCall(
        lambda: evenorm.BatchNorm2d(6, affine=False).eval(), on_meta, ValueError, ("meta", "cpu", ".to(")
    ),
    "the history on another device, in training": BadCall(
        BATCH(affine=False), on_meta, ValueError, ("meta", "cpu", ".to(")
    ),
    "a scale beside a weight": BadCall(
        BATCH(),
        call(4, 6, 5, 3, scale=torch.ones(4, 6)),
        ValueError,
        ("BatchNorm2d(6", "scale", "weight", "affine=False"),
    ),
    "a scale of another size": BadCall(
        BATCH(affine=False),
        call(4, 6, 5, 3, scale=torch.ones(3, 6)),
        ValueError,
        ("BatchNorm2d(6", "(4, 6)", "(3, 6)"),
    ),
    "scale and shift of two shapes": BadCall(
        BATCH(affine=False),
        call(4, 6, 5, 3, scale=torch.ones(4, 6), shift=torch.ones(6)),
        ValueError,
        ("BatchNorm2d(6", "scale and shift"),
    ),
    "a scale on another device": BadCall(
        BATCH(affine=False),
        call(4, 6, 5, 3, scale=torch.ones(4, 6, device="meta")),
        ValueError,
        ("BatchNorm2d(6", "meta", "cpu"),
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_refused_before_anything_is_written(name: str) -> None:
    bad = BAD_CALLS[name]
    layer = bad.layer()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(bad.error) as caught:
        bad.call(layer)
    for words in bad.words:
        assert words in str(caught.value)
    after = layer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


class BadSetting(NamedTuple):
    """What must not be constructed, and words of the message."""

    make: Callable[[], object]
    error: type[Exception]
    words: tuple[str, ...]


# What a type checker would refuse too.
NEVER: Any = "never"
HALF: Any = 2.5
BAD_SETTINGS: dict[str, BadSetting] = {
    "batch, eps": BadSetting(BATCH(eps=-1e-5), ValueError, ("BatchNorm2d(6", "eps", "-1e-05")),
    "layer, eps": BadSetting(lambda: evenorm.LayerNorm(6, eps=-1.0), ValueError, ("LayerNorm", "eps")),
    "group, eps": BadSetting(lambda: evenorm.GroupNorm(2, 6, -1.0), ValueError, ("GroupNorm", "eps")),
    "rms, eps": BadSetting(lambda: evenorm.RMSNorm(6, -1.0), ValueError, ("RMSNorm", "eps")),
    "norm, eps": BadSetting(lambda: Norm("n [c]", c=6, eps=-1.0), ValueError, ("Norm", "eps")),
    "eps, not a number": BadSetting(BATCH(eps=float("nan")), ValueError, ("BatchNorm2d(6", "eps", "nan")),
    "batch, eps of no number": BadSetting(BATCH(eps="small"), ValueError, ("BatchNorm2d(6", "eps", "small")),
    "momentum": BadSetting(BATCH(momentum=1.5), ValueError, ("BatchNorm2d(6", "momentum", "1.5")),
    "negative momentum": BadSetting(BATCH(momentum=-0.1), ValueError, ("BatchNorm2d(6", "momentum", "-0.1")),
    "decay": BadSetting(BATCH(decay=1.5), ValueError, ("BatchNorm2d", "decay", "1.5")),
    "groups": BadSetting(lambda: evenorm.GroupNorm(4, 6), ValueError, ("GroupNorm", "4", "6", "divide")),
    "groups of no number": BadSetting(lambda: evenorm.GroupNorm(NEVER, 6), TypeError, ("GroupNorm", "'never'")),
    "layer, no features": BadSetting(lambda: evenorm.LayerNorm(0), PatternError, ("LayerNorm: ", "positive", "0")),
    "no groups": BadSetting(lambda: evenorm.GroupNorm(0, 6), ValueError, ("GroupNorm", "0 groups")),
    "chunk": BadSetting(
        lambda: evenorm.GhostBatchNorm1d(6, 0), ValueError, ("GhostBatchNorm1d", "virtual_batch_size", "0")
    ),
    "chunk, not whole": BadSetting(
        lambda: evenorm.GhostBatchNorm1d(6, HALF), ValueError, ("virtual_batch_size", "2.5")
    ),
    "cast": BadSetting(
        lambda: evenorm.RMSNorm(6, cast=NEVER), ValueError, ("RMSNorm", "cast", "after", "before", "never")
    ),
    "norm, an affine axis of no size": BadSetting(
        lambda: Norm("n [c] l", affine="c"), PatternError, ("Norm", "'c'", "c=64")
    ),
    "norm, an affine axis that is not there": BadSetting(
        lambda: Norm("n [c] l", affine="d", c=6), PatternError, ("Norm", "'d'", "n [c=6] l")
    ),
    "norm, a history without an axis": BadSetting(
        lambda: Norm("[n] c", affine=None, statistics=Running(0.1)), PatternError, ("Norm", "c=64")
    ),
    "norm, a history on a reduced axis": BadSetting(
        lambda: Norm("[n] c", c=6, n=4, statistics=Running(0.1), history="n"),
        ValueError,
        ("Norm", "'n'", "c"),
    ),
    "norm, a size for no axis": BadSetting(lambda: Norm("n [c] l", d=6), PatternError, ("'d'", "n, c, l")),
    "norm, a size of no number": BadSetting(lambda: Norm("n [c]", c=-6), PatternError, ("'c'", "-6")),
    "recipe, eps": BadSetting(lambda: Recipe(Pattern.parse("[n]"), eps=-1.0), ValueError, ("eps",)),
    "running, both": BadSetting(lambda: Running(0.1, decay=0.9), ValueError, ("Running", "momentum", "decay")),
    "running, neither": BadSetting(lambda: Running(), ValueError, ("Running", "momentum", "decay")),
    "affine, cast": BadSetting(lambda: Affine("c", cast=NEVER), ValueError, ("Affine", "cast", "'never'")),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting_is_refused_by_name(name: str) -> None:
    bad = BAD_SETTINGS[name]
    with pytest.raises(bad.error) as caught:
        bad.make()
    for words in bad.words:
        assert words in str(caught.value)


def test_eps_of_zero_is_torchs() -> None:
    x = torch.randn(8, 6)
    for ours, torchs in (
        (evenorm.BatchNorm1d(6, eps=0.0).eval(), torch.nn.BatchNorm1d(6, eps=0.0).eval()),
        (evenorm.LayerNorm(6, eps=0), torch.nn.LayerNorm(6, eps=0)),
        (evenorm.GroupNorm(2, 6, eps=0.0), torch.nn.GroupNorm(2, 6, eps=0.0)),
    ):
        torch.testing.assert_close(ours(x), torchs(x))


def test_bad_call_of_the_function() -> None:
    x = torch.ones(4, 6)
    with pytest.raises(ValueError, match=r"normalize: .*weight.*'c'"):
        evenorm.normalize(x, "[n] c", torch.ones(6))
    with pytest.raises(ValueError, match=r"normalize: .*6 values.*\(5,\)"):
        evenorm.normalize(x, "[n] c", torch.ones(5), affine="c")
    with pytest.raises(ValueError, match=r"normalize: .*bias of 6 values.*\(5,\)"):
        evenorm.normalize(x, "[n] c", torch.ones(6), torch.ones(5), affine="c")
    with pytest.raises(PatternError, match="normalize: the pattern describes 3 axes, got 2"):
        evenorm.normalize(x, "n [c] l")
    with pytest.raises(TypeError, match=r"normalize: .*int64"):
        evenorm.normalize(x.long(), "[n] c")
    pattern: Any = 3
    with pytest.raises(TypeError, match=r"normalize: expected a pattern .* got 3"):
        evenorm.normalize(x, pattern)
    nested = torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"LayerNorm\(.*nested.*to_padded_tensor"):
        evenorm.LayerNorm(6)(nested)


def test_bad_history_is_refused_before_it_is_written() -> None:
    x = torch.ones(4, 6)
    history = History(torch.zeros(5), torch.ones(5), torch.tensor(0))
    with pytest.raises(ValueError, match=r"history of 6 values.*\(5,\)"):
        evenorm.normalize(x, "[n] c", statistics=Running(0.1), history=history, history_axes="c")
    assert history.updates is not None
    assert history.updates.item() == 0
    with pytest.raises(ValueError, match=r"history of 6 values.*\(5,\)"):
        evenorm.normalize(
            x,
            "[n] c",
            statistics=Running(0.1),
            history=history,
            history_axes="c",
            training=False,
        )


@pytest.mark.skipif(WITHOUT_EXTENSION, reason="the C++ extension is not built")
def test_named_kernel_that_cannot_run_raises_and_writes_nothing() -> None:
    layer = evenorm.BatchNorm2d(6)
    layer.kernel = "cpu"
    with pytest.raises(KernelError, match=r"'cpu' cannot take this call: .*transform"):
        torch.func.grad(lambda x: layer.eval()(x).sum())(torch.ones(4, 6, 2, 2))
    unplannable = case("Norm_unplannable").layer(kernel="cpu")
    with pytest.raises(KernelError, match=r"keep, reduce, keep, reduce.*leave kernel=None"):
        unplannable(torch.ones(4, 6, 10, dtype=torch.float64))
    for dtype in (torch.float8_e4m3fn,):
        with pytest.raises(KernelError, match="float8_e4m3fn"):
            layer(torch.ones(4, 6, 2, 2).to(dtype))
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 0


def test_unknown_kernel_is_refused_by_name() -> None:
    with pytest.raises(KernelError, match=r"no kernel 'gpu'; choose among .*eager"):
        evenorm.normalize(torch.ones(4, 6), "[n] c", kernel="gpu")


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", [c for c in CASES if not c.given], ids=str)
def test_empty_batch_returns_empty(case: Case, training: bool, kernel: str) -> None:
    """As torch's layers do; with gradients, and without teaching the history anything."""
    layer = case.layer().train(training)
    if case.fused:
        layer.kernel = None if kernel == "cpu" else kernel
    before = {k: v.clone() for k, v in layer.named_buffers()}
    shape = (0, *case.shape[1:])
    if case.shape == (12,):
        pytest.skip("no batch axis")
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(torch.equal(before[k], v) for k, v in layer.named_buffers())


MALFORMED = {
    "": "empty",
    "n [c": "never closed",
    "n c]": "closes nothing",
    "n ([c) d]": "closes nothing",
    "n (g [c]": "never closed",
    "n [[c]]": "inside",
    "n (g (c [d]))": "inside",
    "[n (g c)]": "inside",
    "n [] c": "holds no axis",
    "n () [c]": "holds no axis",
    "n [c] c": "appears twice",
    "... [c] ...": "appears twice",
    "n ([...] c)": "cannot be part of a split",
    "n [c] + d": "unexpected '+'",
    "n [2]": "unexpected '2'",
    "n [c=0]": "positive",
    "n c": "nothing is reduced",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_pattern_is_shown_with_a_caret(text: str) -> None:
    with pytest.raises(PatternError, match=re.escape(MALFORMED[text])) as caught:
        Pattern.parse(text)
    lines = str(caught.value).splitlines()
    assert lines[1].strip() == text.strip()
    at = caught.value.at
    if at is None:
        assert MALFORMED[text] in ("empty", "nothing is reduced")
    else:
        assert lines[2].index("^") - 4 == at
        assert at < len(text)


def test_caret_stands_under_the_fault() -> None:
    for text, fault in (("n [c] c", 6), ("n [c", 2), ("n [c] + d", 6), ("n (g [c]", 2)):
        with pytest.raises(PatternError) as caught:
            Pattern.parse(text)
        assert caught.value.at == fault


def test_momentum_that_looks_like_a_decay_warns() -> None:
    with pytest.warns(UserWarning, match=r"BatchNorm2d: momentum=0.99 .*decay=0.99"):
        evenorm.BatchNorm2d(6, momentum=0.99)
    # Errors by the suite's settings, were they warnings: torch's default, all of it, the other name.
    for layer in (BATCH(), BATCH(momentum=1.0), BATCH(decay=0.99), BATCH(momentum=None)):
        layer()


def test_momentum_warning_points_at_the_caller() -> None:
    """So Python's own filter shows it once for each place."""
    for make in (evenorm.BatchNorm1d, evenorm.InstanceNorm1d, partial(evenorm.GhostBatchNorm1d, virtual_batch_size=2)):
        with pytest.warns(UserWarning, match="decay=0.95") as caught:
            make(6, momentum=0.95)
        assert [warning.filename for warning in caught] == [__file__]
