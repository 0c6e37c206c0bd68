"""Masked and ragged batches: what is not valid is not there, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

import evenorm
from evenorm import Affine, Pattern
from evenorm.kernels import KERNELS, Signature, reference
from evenorm.layers import Layer

DOUBLE = torch.float64


class Masked(NamedTuple):
    """A layer, an input, and the axes on which its mask lies."""

    make: Callable[..., Layer]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    pattern: str
    affine: str = "c"

    def mask(self) -> Tensor:
        """Some positions of every sample but the last, which has none."""
        mask = torch.rand([self.shape[axis] for axis in self.axes]) > 0.4
        mask[-1] = False
        mask[0].fill_(True)
        return mask

    def wide(self, mask: Tensor) -> Tensor:
        """The mask in the input's shape."""
        return mask.reshape([n if k in self.axes else 1 for k, n in enumerate(self.shape)]).expand(self.shape)


CASES = {
    "BatchNorm1d": Masked(lambda **o: evenorm.BatchNorm1d(3, **o), (4, 3, 5), (0, 2), "[n] c [...]"),
    "BatchNorm1d rows": Masked(lambda **o: evenorm.BatchNorm1d(3, **o), (6, 3), (0,), "[n] c [...]"),
    "BatchNorm2d": Masked(lambda **o: evenorm.BatchNorm2d(3, **o), (4, 3, 2, 5), (0, 2, 3), "[n] c [...]"),
    "InstanceNorm1d": Masked(
        lambda **o: evenorm.InstanceNorm1d(3, affine=True, track_running_stats=True, **o),
        (4, 3, 5),
        (0, 2),
        "n c [...]",
    ),
    "GroupNorm": Masked(lambda **o: evenorm.GroupNorm(2, 6, **o), (4, 6, 5), (0, 2), "n (g=2 [c]) [...]", "g c"),
    "LayerNorm": Masked(lambda **o: evenorm.LayerNorm(6, **o), (4, 5, 6), (0, 1), "... [d]", "d"),
    "RMSNorm": Masked(lambda **o: evenorm.RMSNorm(6, eps=1e-5, **o), (4, 5, 6), (0, 1), "... [d]", "d"),
    "LayerNorm2d": Masked(lambda **o: evenorm.LayerNorm2d(6, 1e-5, **o), (4, 6, 2, 3), (0, 2, 3), "n [c] h w"),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def layer_of(case: Masked, dtype: torch.dtype = DOUBLE, **options: Any) -> Layer:
    layer = case.make(**options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2.0)
    return layer


def poisoned(values: Tensor, valid: Tensor) -> Tensor:
    """NaN and infinities where nothing is valid."""
    junk = torch.where(torch.rand(values.shape) < 0.5, torch.nan, torch.inf).to(values.dtype)
    return torch.where(valid, values, junk)


def laid(x: Tensor, last: bool) -> Tensor:
    """With the channels last in memory, or first."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def kernels_that_mask(case: Masked, x: Tensor, mask: Tensor) -> list[str]:
    signature = Signature.of(x, mask)
    pattern, affine = Pattern.parse(case.pattern), Affine(case.affine)
    return [k.name for k in KERNELS if k.declines(signature, pattern, affine) is None]


@ALL
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_reference(case: Masked, dtype: torch.dtype, last: bool) -> None:
    mask = case.mask()
    valid = case.wide(mask)
    x, dy = (laid((torch.randn(case.shape, dtype=DOUBLE) * 2 + 1).to(dtype), last) for _ in range(2))
    wide = valid[tuple(slice(None) if k in case.axes else slice(0, 1) for k in range(x.dim()))]
    for kernel in kernels_that_mask(case, x, wide):
        layer = layer_of(case, dtype)
        layer.kernel = kernel
        part = laid(poisoned(x, valid), last).requires_grad_()
        y = layer(part, mask=mask)
        y.backward(laid(poisoned(dy, valid), last))
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        options: dict[str, Any] = {
            "affine": Affine(case.affine),
            "centered": layer.centered,
            "mask": valid.numpy(),
        }
        operands = [p.detach().double().numpy() for p in parameters]
        expected = reference.forward(x.double(), Pattern.parse(case.pattern), *operands, **options)
        found = reference.backward(dy.double(), x.double(), Pattern.parse(case.pattern), *operands, **options)
        # One rounding to the dtype of each result, and the sums of so few values in float32 at the worst.
        eps = torch.finfo(dtype).eps
        rounding = 64 * torch.finfo(DOUBLE if dtype == DOUBLE else torch.float32).eps
        assert part.grad is not None
        # Terms of dx that are as large as this cancel where values lie close together.
        mean, m2 = reference.moments(x.double(), Pattern.parse(case.pattern), layer.centered, valid.numpy())
        counts = reference.counts(Pattern.parse(case.pattern), case.shape, valid.numpy())
        rstd = np.where(counts > 0, 1 / np.sqrt(m2 / np.maximum(counts, 1) + 1e-5), 0)
        terms = 2 * dy.abs().max().item() * (rstd * (1 + np.abs(mean) * rstd)).max()
        pairs: list[tuple[Any, Any, Any]] = [(y, expected, np.abs(expected).max()), (part.grad, found.x, terms)]
        sums: list[Any] = list(found[1:])
        pairs += [(p.grad, g, np.abs(g).max()) for p, g in zip(parameters, sums, strict=False)]
        for actual, wanted, scale in pairs:
            values = actual.detach().double().numpy().reshape(wanted.shape)
            assert (np.abs(values - wanted) <= eps * np.abs(wanted) + rounding * scale).all()
        assert not y[~valid].any()
        assert not part.grad[~valid].any()


def removed(case: Masked, x: Tensor, mask: Tensor) -> Tensor:
    """A batch of (N, C, L) without what is not valid, as rows (M, C)."""
    return x.movedim(1, -1)[mask]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(lambda lengths: sum(lengths) > 1), st.booleans())
def test_batch_norm_is_batch_norm_with_the_elements_removed(lengths: list[int], training: bool) -> None:
    x, dy = (torch.randn(len(lengths), 3, 6, dtype=DOUBLE) + 2 for _ in range(2))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    masked, plain = (layer_of(CASES["BatchNorm1d"]) for _ in range(2))
    plain.load_state_dict(masked.state_dict())
    masked.train(training), plain.train(training)
    part = poisoned(x, mask[:, None].expand_as(x)).requires_grad_()
    rows = x.movedim(1, -1)[mask].requires_grad_()
    y, expected = masked(part, lengths=torch.tensor(lengths)), plain(rows)
    y.backward(dy)
    expected.backward(dy.movedim(1, -1)[mask])
    assert part.grad is not None
    torch.testing.assert_close(y.movedim(1, -1)[mask], expected)
    torch.testing.assert_close(part.grad.movedim(1, -1)[mask], rows.grad)
    for mine, theirs in zip(masked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for name, kept in masked.state_dict().items():
        torch.testing.assert_close(kept, plain.state_dict()[name])


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@given(st.lists(st.booleans(), min_size=20, max_size=20))
def test_rows_are_normalized_as_without_the_others(name: str, valid: list[bool]) -> None:
    """And the gradients of weight and bias are those of the rows that are there."""
    mask = torch.tensor(valid).reshape(4, 5)
    layer, plain = (layer_of(CASES[name]) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    x, dy = (torch.randn(4, 5, 6, dtype=DOUBLE) for _ in range(2))
    part, rows = poisoned(x, mask[..., None].expand_as(x)).requires_grad_(), x[mask].requires_grad_()
    y, expected = layer(part, mask=mask), plain(rows)
    y.backward(dy)
    expected.backward(dy[mask])
    assert part.grad is not None
    torch.testing.assert_close(y[mask], expected)
    torch.testing.assert_close(part.grad[mask], rows.grad)
    for mine, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("affine", ["d", None])
def test_features_first_or_last(affine: str | None) -> None:
    """One mask (N, positions), for (N, C, L) and for (N, L, D); without a weight too."""
    mask, x = torch.rand(4, 5) > 0.4, torch.randn(4, 3, 5, dtype=DOUBLE)
    first = evenorm.BatchNorm1d(3, momentum=1.0).double()
    last: Any = evenorm.Norm("[n] [l] d", d=3, affine=affine, statistics=evenorm.Running(1.0))
    y, expected = last.double()(x.transpose(1, 2), mask=mask), first(x, mask=mask)
    torch.testing.assert_close(y, expected.transpose(1, 2))
    torch.testing.assert_close(last.running_var, first.running_var)


def test_one_sample_without_its_batch_axis() -> None:
    layer, x = evenorm.InstanceNorm1d(3), torch.randn(3, 5)
    mask = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(layer(x, mask=mask), layer(x[None], mask=mask[None])[0])
    torch.testing.assert_close(layer(x, lengths=torch.tensor(3))[:, :3], layer(x[:, :3]))


@pytest.mark.parametrize("name", ["InstanceNorm1d", "GroupNorm"])
def test_a_sample_alone(name: str) -> None:
    """Per sample, a ragged batch is each sequence by itself, cut to its length."""
    case, lengths = CASES[name], torch.tensor([5, 2, 3, 4])
    layer = layer_of(case)
    x = torch.randn(case.shape, dtype=DOUBLE)
    y = layer(x, lengths=lengths)
    for k, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[k : k + 1, :, :length], layer(x[k : k + 1, :, :length]))
        assert not y[k, :, length:].any()


def test_ghost_batches_keep_their_masks() -> None:
    ghost, batch = evenorm.GhostBatchNorm1d(3, 2, momentum=1.0).double(), evenorm.BatchNorm1d(3).double()
    x, lengths = torch.randn(5, 3, 6, dtype=DOUBLE), torch.tensor([6, 3, 0, 4, 5])
    y = ghost(x, lengths=lengths)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        torch.testing.assert_close(y[rows], batch(x[rows], lengths=lengths[rows]))
    mask = torch.arange(6) < lengths[:, None]
    means = [x[rows].movedim(1, -1)[mask[rows]].mean(0) for rows in (slice(0, 2), slice(2, 4), slice(4, 5))]
    shares = torch.tensor([9, 4, 5], dtype=DOUBLE) / 18
    torch.testing.assert_close(ghost.running_mean, (torch.stack(means) * shares[:, None]).sum(0))


@ALL
def test_nothing_valid(case: Masked) -> None:
    """Zeros, zero gradients, and histories as they were."""
    layer = layer_of(case)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    x = torch.full(case.shape, torch.nan, dtype=DOUBLE, requires_grad=True)
    y = layer(x, mask=torch.zeros_like(case.mask()))
    y.backward(torch.randn_like(y))
    assert not y.any()
    assert x.grad is not None
    assert not x.grad.any()
    assert all(not p.grad.any() for p in layer.parameters() if p.grad is not None)
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


def test_one_channel_with_nothing_valid() -> None:
    """A mask may differ by channel; the history of a channel without values stays."""
    layer = evenorm.BatchNorm1d(2, momentum=1.0).double()
    x, mask = torch.randn(4, 2, 3, dtype=DOUBLE), torch.ones(4, 2, 3, dtype=torch.bool)
    mask[:, 1] = False
    y = layer(x, mask=mask)
    assert not y[:, 1].any()
    torch.testing.assert_close(layer.running_mean, torch.stack([x[:, 0].mean(), torch.zeros((), dtype=DOUBLE)]))
    torch.testing.assert_close(layer.running_var, torch.stack([x[:, 0].var(), torch.ones((), dtype=DOUBLE)]))


@ALL
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives(case: Masked, training: bool) -> None:
    layer, mask = layer_of(case).train(training), case.mask()
    x = torch.randn(case.shape, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda x: layer(x, mask=mask), x, fast_mode=True)
    assert gradgradcheck(lambda x: layer(x, mask=mask), x, fast_mode=True)


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_activation_and_residual(activation: str) -> None:
    case = CASES["BatchNorm1d"]
    layer, mask = layer_of(case, activation=activation), case.mask()
    valid = case.wide(mask)
    plain = layer_of(CASES["BatchNorm1d rows"], activation=activation)
    plain.load_state_dict(layer.state_dict())
    x, residual, dy = (torch.randn(case.shape, dtype=DOUBLE) for _ in range(3))
    part, added = (poisoned(t, valid).requires_grad_() for t in (x, residual))
    rows, rows_added = (t.movedim(1, -1)[mask].requires_grad_() for t in (x, residual))
    y, expected = layer(part, residual=added, mask=mask), plain(rows, residual=rows_added)
    y.backward(poisoned(dy, valid))
    expected.backward(dy.movedim(1, -1)[mask])
    for actual, wanted in ((y, expected), (part.grad, rows.grad), (added.grad, rows_added.grad)):
        assert actual is not None
        torch.testing.assert_close(actual.movedim(1, -1)[mask], wanted)
        assert not actual[~valid].any()


def test_a_packed_sequence() -> None:
    """Comes back packed, in its own order, and as the padded sequence with its lengths."""
    sequences = [torch.randn(length, 6, dtype=DOUBLE) for length in (2, 5, 1, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    for make in (
        lambda: evenorm.BatchNorm1d(6),
        lambda: evenorm.InstanceNorm1d(6),
        lambda: evenorm.GroupNorm(2, 6),
        lambda: evenorm.LayerNorm(6),
        lambda: evenorm.RMSNorm(6),
    ):
        layer: Any = make()
        layer = layer.double()
        y = layer(packed)
        assert isinstance(y, PackedSequence)
        rows = y.data.shape == packed.data.shape
        assert rows
        first = layer._features_first
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        lengths = torch.tensor([2, 5, 1, 3])
        expected = layer(padded.transpose(1, 2) if first else padded, lengths=lengths)
        expected = expected.transpose(1, 2) if first else expected
        for k, sequence in enumerate(unpack_sequence(y)):
            torch.testing.assert_close(sequence, expected[k, : lengths[k]])
    with pytest.raises(ValueError, match="a packed sequence knows its lengths"):
        evenorm.BatchNorm1d(6)(packed, lengths=torch.tensor([1]))


def test_the_functional_form() -> None:
    x, mask = torch.randn(4, 3, 5, dtype=DOUBLE), torch.rand(4, 5) > 0.5
    y = evenorm.normalize(x, "[n] c [...]", torch.ones(3, dtype=DOUBLE), affine="c", mask=mask)
    torch.testing.assert_close(y, evenorm.BatchNorm1d(3).double()(x, mask=mask))
    wide = evenorm.normalize(x, "[n] c [...]", mask=mask[:, None])
    torch.testing.assert_close(wide, y)


@pytest.mark.parametrize("compiler", ["aot_eager"])
def test_compiled(compiler: str) -> None:
    layer, plain = (layer_of(CASES["BatchNorm1d"]) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    function = torch.compile(lambda x, lengths: layer(x, lengths=lengths), fullgraph=True, backend=compiler)
    x, lengths, dy = torch.randn(4, 3, 5, dtype=DOUBLE), torch.tensor([5, 2, 0, 3]), torch.randn(4, 3, 5, dtype=DOUBLE)
    part, twin = (x.clone().requires_grad_() for _ in range(2))
    function(part, lengths).backward(dy)
    plain(twin, lengths=lengths).backward(dy)
    torch.testing.assert_close(part.grad, twin.grad)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"mask": torch.ones(4, 5)}, r"torch\.bool, True = valid, got torch\.float32"),
    "shape": ({"mask": torch.ones(4, 3, dtype=torch.bool)}, r"a mask of shape \(4, 5\).* got \(4, 3\)"),
    "no tensor": ({"mask": [True]}, r"torch\.bool, True = valid, got list"),
    "both": ({"mask": torch.ones(4, 5, dtype=torch.bool), "lengths": torch.ones(4).long()}, "and not both"),
    "beyond": ({"lengths": torch.tensor([1, 6, 2, 3])}, "from 0 to the 5 positions there are, got 6"),
    "negative": ({"lengths": torch.tensor([1, -1, 2, 3])}, "from 0 to the 5 positions there are, got -1"),
    "fractions": ({"lengths": torch.ones(4)}, r"expected 4 integer lengths.*torch\.float32"),
    "too many": ({"lengths": torch.ones(5).long()}, r"expected 4 integer lengths.*\(5,\)"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(options: dict[str, Any], words: str) -> None:
    layer = evenorm.BatchNorm1d(3)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3.*" + words):
        layer(torch.randn(4, 3, 5), **options)
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


def test_lengths_need_one_axis_of_positions() -> None:
    with pytest.raises(ValueError, match="need one axis of positions, got 2"):
        evenorm.BatchNorm2d(3)(torch.randn(4, 3, 2, 2), lengths=torch.ones(4).long())
