"""Triton's verbs one by one against the plain operations in float64: masks, epilogues, hard input, the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import evenorm
from evenorm import Affine, Epilogue, Pattern
from evenorm.epilogue import ACTIVATIONS
from evenorm.kernels import Finish, eager, triton
from evenorm.kernels.triton.bundle import Block, Finishing, Layout, Space
from evenorm.kernels.triton.call import Call
from evenorm.kernels.triton.view import Along, Quad
from evenorm.moments import Moments
from gpu import GPU, poison, shortly, shrink, there
from gpu_setting import EPS, SETTINGS, Setting, assert_near, assert_verbs, tensors

pytestmark = GPU

ALL = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@pytest.mark.parametrize("small", shortly([False, True], "True"), ids=["whole", "pieces"])
@ALL
def test_residual_and_activation(setting: Setting, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        shrink(monkeypatch)
    poison(monkeypatch)
    assert_verbs(setting, setting.finish("silu", residual=True), None, *tensors(setting, None))


@pytest.mark.parametrize("small", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("pattern", ["n (g=2 [c]) [...]", "n c [...]"], ids=["group", "instance"])
def test_channels_last_and_activation(pattern: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes whose channels lie innermost, and a residual that lies otherwise."""
    if small:
        shrink(monkeypatch)
    poison(monkeypatch)
    setting = Setting(pattern, "g c" if "g" in pattern else "c", (2, 4, 2, 3, 4))
    x, dy = (t.contiguous(memory_format=torch.channels_last_3d) for t in tensors(setting, None))
    assert_verbs(setting, setting.finish("silu", residual=True), None, x, dy)


@pytest.mark.parametrize("kind", shortly(["positions", "elements"], "positions"))
@ALL
def test_masks(setting: Setting, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole positions, as lengths make them, and of single elements; the last sample has none."""
    shape = [n if kind == "elements" or axis != 1 else 1 for axis, n in enumerate(setting.shape)]
    mask = torch.rand(shape) > 0.3
    mask[0], mask[-1] = True, False
    if kind == "elements":
        shrink(monkeypatch)
    poison(monkeypatch)
    finish = setting.finish("gelu" if kind == "elements" else "identity", residual=True)
    x, dy = tensors(setting, mask)
    mask = there(mask)
    assert_verbs(setting, finish, mask, x, dy)
    y, *_ = triton.forward(x, setting.parsed, True, EPS, finish, mask)
    assert not y[~mask.expand_as(y)].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    setting = SETTINGS["group"]
    x, dy = tensors(setting, None)
    assert_verbs(setting, setting.finish(activation, residual=True), None, 3 * x, dy)


@pytest.mark.parametrize("activation", shortly(["relu", "relu6", "leaky_relu"], "relu6"))
def test_slopes_are_read_from_the_output(activation: str) -> None:
    setting = SETTINGS["batch"]
    x, dy = tensors(setting, None)
    finish = setting.finish(activation, residual=True)
    y, mean, m2 = triton.forward(x, setting.parsed, True, EPS, finish)
    by_output = Finish(finish.affine, finish.epilogue, finish.weight, finish.bias, None, y)
    arguments = (dy, x, setting.parsed, True, EPS, mean, m2)
    for mine, theirs in zip(triton.backward(*arguments, by_output), triton.backward(*arguments, finish), strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("small", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("setting", [Setting("... [d]", "", (2, 100)), Setting("[n] c [...]", "", (9, 2, 10))], ids=str)
def test_a_mean_far_from_zero(setting: Setting, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """10⁴ σ: a mean rounded to float32 alone would cost 3.6e-4."""
    if small:
        shrink(monkeypatch)
    x, finish = there(torch.randn(setting.shape) + 1e4), Finish(Affine(), Epilogue())
    assert (Call(x, setting.parsed, finish, None).prepared.pieces > 1) is small
    y, *_ = triton.forward(x, setting.parsed, True, 0.0, finish)
    expected, *_ = eager.forward(x.double(), setting.parsed, True, 0.0, finish)
    assert (y - expected).abs().max() < 2e-6


def test_normalized_values_are_rounded_before_the_weight_where_that_is_asked_for() -> None:
    """As Llama's implementations do in bfloat16; the other order gives other bits."""
    setting = SETTINGS["layer"]
    x = tensors(setting, None)[0].bfloat16()
    weight = there(torch.randn(6) + 0.5)
    bare, early, late = (
        triton.forward(x, setting.parsed, False, EPS, Finish(affine, Epilogue(), weight if affine.axes else None))[0]
        for affine in (Affine(), Affine("d", cast="before"), Affine("d"))
    )
    assert torch.equal(early, (bare * weight).bfloat16())
    assert not torch.equal(early, late)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_pieces_of_unequal_counts(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """32, 32, 32 and 4 values; by the mask fewer, and none of the first. Float32 cannot tell their means apart."""
    shrink(monkeypatch)
    pattern = Pattern.parse("... [d]")
    x, mask = torch.randn(2, 100) + 1e5, None
    if masked:
        mask = torch.rand(2, 100) > 0.3
        mask[:, :32] = False
        x, mask = there(x.masked_fill(~mask, torch.nan)), there(mask)
    found, expected = triton.moments(there(x), pattern, True, mask), eager.moments(there(x), pattern, True, mask)
    for mine, theirs, rtol in zip(found, expected, (1e-9, 1e-6), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=0)


@pytest.mark.parametrize(("scale", "centered"), [(1e25, True), (1e-25, False)])
def test_squares_that_float32_cannot_hold(scale: float, centered: bool) -> None:
    setting = SETTINGS["layer"]
    x = torch.randn(setting.shape)
    x[1] *= scale
    x[2] = 0
    for mine, theirs in zip(
        triton.moments(there(x), setting.parsed, centered),
        eager.moments(there(x), setting.parsed, centered),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


def test_a_first_tile_far_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around its mean the others' deviations would cancel to nothing."""
    shrink(monkeypatch)
    x = torch.randn(1, 200) + 1e5
    x[:, :16] = 0
    pattern = Pattern.parse("... [d]")
    monkeypatch.setattr("evenorm.kernels.triton.tile.ALONE", 1000)
    mean, m2 = triton.moments(there(x), pattern, True)
    expected = eager.moments(there(x), pattern, True)
    torch.testing.assert_close((mean, m2), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("width", [6, 20])
def test_a_row_does_not_depend_on_its_neighbors(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on how many there are; what is not finite stays in its row."""
    if width > 16:
        shrink(monkeypatch)
    setting = Setting("... [d]", "d", (3, width))
    x, dy = tensors(setting, None)
    finish, pattern = setting.finish("silu"), setting.parsed

    def rows(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        y, mean, m2 = triton.forward(x, pattern, True, EPS, finish)
        return y, triton.backward(dy, x, pattern, True, EPS, mean, m2, finish)[0]

    whole = rows(x, dy)
    strange = x.clone()
    strange[1:] = torch.nan
    for part, values in ((slice(0, 1), x), (slice(1, 3), x)):
        for mine, all_rows in zip(rows(values[part], dy[part]), whole, strict=True):
            assert torch.equal(mine, all_rows[part])
    for mine, all_rows in zip(rows(strange, dy), whole, strict=True):
        assert torch.equal(mine[0], all_rows[0])
        assert mine[1:].isnan().all()


def off_address(tensor: Tensor) -> Tensor:
    return there(torch.empty(tensor.numel() + 1))[1:].view(tensor.shape).copy_(tensor)


def with_a_gap(tensor: Tensor) -> Tensor:
    return there(torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 3))[..., :-3].copy_(tensor)


@pytest.mark.parametrize("lay", [off_address, with_a_gap])
def test_a_row_does_not_depend_on_its_address(lay: Callable[[Tensor], Tensor]) -> None:
    """It is read in words of the same size everywhere, if need be from a copy; nor do the parameters decide."""
    setting = Setting("... [d]", "d", (3, 8))
    finish, (x, dy) = setting.finish("silu", residual=True), tensors(setting, None)
    assert finish.weight is not None
    assert finish.bias is not None
    assert finish.residual is not None
    elsewhere = Finish(
        *(finish.affine, finish.epilogue, off_address(finish.weight), off_address(finish.bias), lay(finish.residual))
    )
    pattern, results = setting.parsed, []
    for a, b, beside in ((x, dy, finish), (lay(x), lay(dy), elsewhere)):
        call = Call(a, pattern, beside, None, dy=b)
        for read in (call.x, call.dy, call.residual, call.weight, call.bias):
            assert read is not None
            assert read.data_ptr() % 16 == 0
            assert read.is_contiguous()
        y, mean, m2 = triton.forward(a, pattern, True, EPS, beside)
        results.append((y, mean, m2, *triton.backward(b, a, pattern, True, EPS, mean, m2, beside)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_places_beyond_31_bits() -> None:
    """Of a tensor of more elements than an int32 counts."""
    from gpu_places import first_places

    far, tile = 2**31 - 1, Block(4, 2, 8, 1, 1, 1)
    size, affine = Quad(1, 2**40, 2**40, 2**40), (1, 1, 1)
    for across, expected in ((1, (4 * far - 4, 2 * far, 0)), (far, (0, 2 * far, 8 * far - 8))):
        found = there(torch.zeros(3, dtype=torch.int64))
        first_places[(1,)](found, far, far - 1, Space(size, size, size, size, affine, across, 2**40, 2**40), tile)
        assert found.tolist() == list(expected)


@pytest.mark.parametrize(
    ("outer", "inner", "last"), [(1, 2**31 + 65_536, 64), (1, 2**32, 64), (1, 2**32 + 16, 16), (2**31 + 16, 64, 16)]
)
def test_a_statistic_of_more_than_31_bits(outer: int, inner: int, last: int) -> None:
    """Its inner axis counted in units of 16 elements, which an int32 counts; the last tile, and a second group."""
    from gpu_places import what_is_there

    down, across = (1, 64) if outer == 1 else (64, 64)
    tile, size = Block(down, 2, across, 1, 1, 16), Quad(1, outer, 2, inner // 16)
    dense = Quad(size.group * size.outer * size.inner, size.group * size.inner, size.inner, 1)
    count = -(-outer // down) * -(-inner // across)
    space = Space(size, dense, dense, dense, (inner, 2, 1), -(-inner // across), count, 1)
    found, weight = there(torch.zeros(4, dtype=torch.float64)), there(torch.arange(8.0))
    layout, finish = Layout(int(Along.GROUP), True, False), Finishing("identity", 0.0, 0.0, False)
    what_is_there[(1,)](found, weight[4:], count - 1, space, Quad(0, 0, 0, 0), layout, finish, tile)
    values = last * (1 if outer == 1 else across)
    assert found.tolist() == [2 * values, last if outer == 1 else across, values, 5.0]


@pytest.mark.parametrize("setting", [SETTINGS["batch"], SETTINGS["layer"]], ids=["batch", "layer"])
def test_a_call_repeats_itself(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    x, dy = tensors(setting, None)
    finish = setting.finish("relu", residual=True)
    results = []
    for _ in range(2):
        y, mean, m2 = triton.forward(x, setting.parsed, True, EPS, finish)
        results.append((y, mean, m2, *triton.backward(dy, x, setting.parsed, True, EPS, mean, m2, finish)))
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_statistics_of_more_than_a_batch(masked: bool) -> None:
    """Renormalized: the verbs one by one, with a correction between them, as ranks that synchronize go."""
    x, dy = (torch.randn(4, 3, 5) + 0.5 for _ in range(2))
    mask = torch.rand(4, 5) > 0.3 if masked else None
    steps = []
    for kernel in ("triton", "eager"):
        layer = evenorm.BatchNorm1d(3, statistics=evenorm.Renorm(), activation="relu6")
        layer.kernel = kernel
        torch.nn.init.constant_(layer.weight, 1.5)
        layer = layer.to(there(x).device)
        leaf = there(x).clone().requires_grad_()
        y = layer(leaf, mask=there(mask))
        gradients = torch.autograd.grad(y, (leaf, layer.weight, layer.bias), there(dy))
        steps.append((y.detach(), *gradients, layer.running_mean, layer.running_var))
    for mine, theirs in zip(*steps, strict=True):
        assert_near(mine, theirs, kernel)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_two_ranks_are_one_batch(masked: bool) -> None:
    """Each with its part, unequal ones: what they exchange between the verbs are moments and sums."""
    setting = Setting("[n] c [...]", "c", (5, 3, 4))
    mask = torch.rand(5, 1, 4) > 0.3 if masked else torch.ones(5, 1, 4, dtype=torch.bool)
    x, dy = tensors(setting, mask)
    mask, finish, pattern = there(mask), setting.finish("silu"), setting.parsed
    ranks = [(part, x[part], mask[part] if masked else None) for part in (slice(0, 2), slice(2, 5))]
    counts = torch.stack([mask[part].sum() for part, _, _ in ranks]).double()[:, None]
    means, m2s = map(torch.stack, zip(*(triton.moments(t, pattern, True, m) for _, t, m in ranks), strict=True))
    whole = Moments(counts, means, m2s).pooled((0,))
    statistics = (pattern, whole.mean, (whole.M2 / whole.count + EPS).rsqrt(), finish)
    y = torch.cat([triton.apply(t, *statistics, m) for _, t, m in ranks])
    sums = [triton.grad_sums(dy[part], t, *statistics, m) for part, t, m in ranks]
    s1, s2, d_weight, d_bias = (a + b for a, b in zip(*sums, strict=True))
    c1, c2 = s1 / whole.count, s2 / whole.count
    dx = torch.cat([triton.grad_input(dy[part], t, *statistics, c1, c2, m)[0] for part, t, m in ranks])
    wanted, mean, m2 = eager.forward(x, pattern, True, EPS, finish, mask)
    back = evenorm.kernels.backward(
        *(eager, dy, x, pattern, True, EPS, mean, m2, finish), given=False, needs_input=True, mask=mask
    )
    expected = (wanted, mean, m2, back.x, back.weight, back.bias)
    names = ("y", "mean", "M2", "dx", "dγ", "dβ")
    for name, mine, theirs in zip(names, (y, whole.mean, whole.M2, dx, d_weight, d_bias), expected, strict=True):
        assert_near(mine, theirs, name)


def layers() -> tuple[evenorm.LayerNorm, evenorm.LayerNorm]:
    mine, theirs = (evenorm.LayerNorm(6) for _ in range(2))
    for layer, kernel in ((mine, "triton"), (theirs, "eager")):
        torch.manual_seed(1)
        torch.nn.init.normal_(layer.weight)
        layer.kernel = kernel
    return there_module(mine), there_module(theirs)


def there_module(layer: evenorm.LayerNorm) -> evenorm.LayerNorm:
    return layer.to(there(torch.empty(1)).device)


def test_second_derivatives_are_composed() -> None:
    x, dy, v = (there(torch.randn(3, 6)) for _ in range(3))
    found = []
    for layer in layers():
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(layer(leaf), leaf, dy, create_graph=True)
        found.append(torch.autograd.grad((dx * v).sum(), (leaf, layer.weight)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
