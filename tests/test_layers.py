"""Every layer, in every dtype, layout and mode, on every kernel, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

import evenorm
from cases import CASES, Case
from kernels_here import AVAILABLE
from layouts import lay
from oracle import expect
from properties import agrees_with_reference, assert_step, assert_within, seeded_input, step

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ON_KERNELS = [
    pytest.param(case, kernel, id=f"{case}-{kernel}")
    for case in CASES
    for kernel in AVAILABLE
    if case.fused or kernel == "eager"
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "kernel"), ON_KERNELS)
def test_agrees_with_the_reference(case: Case, kernel: str, dtype: str, training: bool) -> None:
    agrees_with_reference(case, kernel, DTYPES[dtype], training)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_all_zero_result_fails(case: Case, dtype: str) -> None:
    layer = case.layer(DTYPES[dtype])
    x = seeded_input(case.shape, DTYPES[dtype])
    dy = torch.randn(case.shape, dtype=torch.float64).to(x.dtype)
    options = case.options(case.shape, x.dtype)
    expected = expect(case, layer, x, dy, options)
    for name, values in (("y", expected.y), ("x", expected.x), ("weight", expected.weight)):
        if values is not None:
            with pytest.raises(AssertionError, match="out of bounds"):
                assert_within(torch.zeros(values.values.shape), values, name)


# Half of a batch norm's inputs come expanded from a mean or a sum behind it.
COTANGENTS = {
    "one number": lambda shape: torch.randn(()).expand(shape),
    "one per sample": lambda shape: torch.randn(shape[0], *[1] * (len(shape) - 1)).expand(shape),
    "reversed axes": lambda shape: torch.randn(shape[::-1]).permute(*range(len(shape))[::-1]),
    "with gaps": lambda shape: torch.randn(*shape, 2)[..., 0],
}


@pytest.mark.parametrize("cotangent", COTANGENTS)
@pytest.mark.parametrize(("case", "kernel"), ON_KERNELS)
def test_gradient_in_any_layout(case: Case, kernel: str, cotangent: str) -> None:
    layer = case.layer(torch.float32, kernel)
    x = seeded_input(case.shape, torch.float32)
    for layout in ("contiguous", "channels_last"):
        laid = lay(x, layout, case.pattern)
        dy = COTANGENTS[cotangent](case.shape)
        options = case.options(case.shape, x.dtype)
        expected = expect(case, layer, laid, dy, options)
        assert_step(step(layer, laid, dy, options), expected, f"{case} {layout}")


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("case", [c for c in CASES if c.twin], ids=str)
def test_agrees_with_torch(case: Case, kernel: str) -> None:
    """Three steps in training, one in evaluation: output, gradients and buffers."""
    assert case.twin is not None
    layer, twin = case.layer(kernel=kernel), case.twin().double()
    twin.load_state_dict(layer.state_dict(), strict=True)
    for training in (True, True, True, False):
        layer.train(training)
        twin.train(training)
        shape = twin_shape(case)
        x = seeded_input(shape, torch.float64).requires_grad_()
        dy = torch.randn(shape, dtype=torch.float64)
        ours, theirs = layer(x), twin(x)
        close(ours, theirs)
        inputs = [x, *layer.parameters()], [x, *twin.parameters()]
        gradients = [torch.autograd.grad(y, i, dy) for y, i in zip((ours, theirs), inputs, strict=True)]
        for mine, torchs in zip(*gradients, strict=True):
            close(mine, torchs)
        state = twin.state_dict()
        assert layer.state_dict().keys() == state.keys()
        for name, value in layer.state_dict().items():
            # Torch's instance norm never counts its batches.
            if not ("Instance" in case.name and name == "num_batches_tracked"):
                close(value, state[name])


def twin_shape(case: Case) -> tuple[int, ...]:
    return case.shapes[-1] if case.shapes[-1][-1] < 1000 else case.shape


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_torch_has_a_twin_in_the_table_for_every_name_we_share() -> None:
    # Torch's SyncBatchNorm runs on GPUs alone; tests/test_synced.py has ours.
    shared = {name for name in evenorm.layers.__all__ if hasattr(torch.nn, name)} - {"SyncBatchNorm"}
    twins = {type(c.twin()).__name__ for c in CASES if c.twin}
    assert shared <= twins


def test_every_layer_is_in_the_table() -> None:
    assert {*evenorm.layers.__all__} - {"Layer", "SyncBatchNorm"} <= {type(c.make()).__name__ for c in CASES}


def test_llamas_order_of_cast_and_scale() -> None:
    """Bit for bit: values are rounded to the input's dtype, and then multiplied by the weight."""
    x, weight = torch.randn(64, 96).bfloat16(), torch.randn(96).bfloat16()
    layer = evenorm.RMSNorm(96, eps=1e-6, cast="before", dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(weight)
    normal = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert torch.equal(layer(x), weight * normal.to(torch.bfloat16))
    # The other order is another function.
    other = evenorm.RMSNorm(96, eps=1e-6, dtype=torch.bfloat16)
    other.weight = layer.weight
    assert not torch.equal(other(x), layer(x))


def test_gemmas_weight_starts_at_0_and_is_added_to_1() -> None:
    x = torch.randn(8, 96)
    layer = evenorm.RMSNorm(96, eps=1e-6, weight_offset=1.0)
    assert layer.weight is not None
    assert not layer.weight.any()
    torch.testing.assert_close(layer(x), torch.nn.RMSNorm(96, eps=1e-6)(x))
    torch.nn.init.constant_(layer.weight, 2.0)
    torch.testing.assert_close(layer(x), 3 * torch.nn.RMSNorm(96, eps=1e-6)(x))


def test_adaptive_layer_norm_is_its_articles_formula() -> None:
    """adaLN: (1 + scale)·LN(x) + shift, with scale and shift of each sample, which learn."""
    x = torch.randn(4, 7, 12, dtype=torch.float64)
    scale, shift = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True).unbind()
    layer = evenorm.Norm("n t [d]", affine=evenorm.Affine("d", offset=1.0), d=12).double()
    layer.weight = layer.bias = None
    plain = torch.nn.functional.layer_norm(x, (12,))
    wanted = (1 + scale[:, None]) * plain + shift[:, None]
    found = layer(x, scale=scale, shift=shift)
    close(found, wanted)
    dy = torch.randn_like(x)
    for mine, theirs in zip(*(torch.autograd.grad(y, (scale, shift), dy) for y in (found, wanted)), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNorm2d"])
def test_one_scale_for_all(name: str) -> None:
    layer = (
        evenorm.LayerNorm(3, elementwise_affine=False) if name == "LayerNorm" else evenorm.BatchNorm2d(6, affine=False)
    )
    x = torch.randn(4, 6, 5, 3)
    scale, shift = torch.full((1, 1, 1, 1), 2.0, requires_grad=True), torch.full((1, 1, 1, 1), 0.5)
    y = layer(x, scale=scale, shift=shift)
    torch.testing.assert_close(y, 2 * layer(x) + 0.5)
    dy = torch.randn_like(x)
    (found,) = torch.autograd.grad(y, scale, dy)
    torch.testing.assert_close(found, (dy * layer(x)).sum().reshape(1, 1, 1, 1))
