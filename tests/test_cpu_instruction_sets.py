"""The extension's verbs in every instruction set that the machine has, on every layout, against torch in float64.

Memory that a call takes is filled with NaN first, so what is never written shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from evenorm import Affine, Epilogue, Pattern
from evenorm.epilogue import ACTIVATIONS
from evenorm.kernels import Finish, cpu, eager

if not cpu.available():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from evenorm import _cpu

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Pattern, axes of the affine, shape, order of the axes in memory: one for each way the loops go.
PLACES: dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...] | None]] = {
    "long runs": ("[n] c [l]", "c", (3, 2, 4500), None),
    "short runs": ("[n] c [l]", "c", (5, 3, 70), None),
    "rows": ("... [d]", "d", (9, 100), None),
    "wide rows": ("... [d]", "d", (3, 5003), None),
    "tiny rows": ("... [d]", "d", (70, 7), None),
    "groups": ("n (g=2 [c]) [l]", "g c", (3, 6, 67), None),
    "groups, channels last": ("n (g=2 [c]) [l]", "g c", (2, 8, 67), (0, 2, 1)),
    "columns": ("[n] c", "c", (37, 300), None),
    "channels last": ("[n] c [l]", "c", (5, 66, 9), (0, 2, 1)),
    "folded columns": ("[n] c", "c", (701, 6), None),
    "columns by row": ("n [c] l", "c", (2, 9, 70), None),
    "scaled per sample": ("n [c] l", "n c", (2, 9, 70), None),
    "one by one": ("n [c] l", "l", (3, 40, 7), None),
}
# The same in sizes that go another way.
MORE: dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...] | None]] = {
    "many runs": ("[n] c [l]", "c", (2, 300, 70), None),
    "runs of columns": ("[n] c [l]", "c", (9, 30, 20), None),
    "many rows": ("... [d]", "d", (40, 100), None),
    "rows of several pieces": ("... [d]", "d", (2, 70_001), None),
    "many groups": ("n (g=2 [c]) [l]", "g c", (40, 6, 67), None),
}
ALL = {**PLACES, **MORE}


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    best = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(best)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def laid(values: Tensor, order: tuple[int, ...] | None) -> Tensor:
    if order is None:
        return values.contiguous()
    back = sorted(range(len(order)), key=order.__getitem__)
    return values.permute(order).contiguous().permute(back)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, terms: int, what: str) -> None:
    """One rounding to the dtype, and a few of the accumulator's on the largest term."""
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    largest = expected.abs().max().item()
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 16 * accumulator * sqrt(terms) * max(largest, 1.0)
    error = (found.double() - expected).abs()
    assert largest > 0, what
    assert (error <= bound).all(), f"{what}: off by {error.max():.3g} of {largest:.3g}"


def operands(place: str, dtype: torch.dtype) -> tuple[Pattern, Affine, dict[str, Tensor]]:
    """Input, gradient and residual in the dtype, weight and bias in float32."""
    text, axes, shape, order = ALL[place]
    pattern, affine = Pattern.parse(text), Affine(axes)
    sizes = pattern.bind(shape).sizes(affine.axes)
    tensors = {name: laid(torch.randn(shape) + 0.3, order).to(dtype) for name in ("x", "dy", "residual")}
    return pattern, affine, {**tensors, "weight": 0.5 + torch.rand(sizes), "bias": 0.3 * torch.randn(sizes)}


def wide(finish: Finish) -> Finish:
    """The same in float64."""
    tensors = (finish.weight, finish.bias, finish.residual, finish.output)
    return Finish(finish.affine, finish.epilogue, *(None if t is None else t.double() for t in tensors))


def check(pattern: Pattern, x: Tensor, dy: Tensor, finish: Finish, by_output: bool) -> None:
    """Both forward verbs, all backward ones."""
    dtype, count = x.dtype, max(pattern.bind(x.shape).count, x.shape[0])
    y, mean, m2 = cpu.forward(x, pattern, True, 1e-5, finish)
    moments = eager.moments(x.double(), pattern, True)
    exact = (pattern, moments[0], (moments[1] / pattern.bind(x.shape).count + 1e-5).rsqrt())
    if finish.affine.cast == "before" and dtype in (torch.bfloat16, torch.float16):
        # What lies between two numbers of the dtype may be rounded either way, here before the scale.
        ulp = torch.finfo(dtype).eps * y.abs().max()
        torch.testing.assert_close(y, eager.apply(x, *exact, finish), atol=3 * ulp.item(), rtol=0)
        return
    expected_y = eager.apply(x.double(), *exact, wide(finish))
    assert_near(y, expected_y, dtype, count, "y")
    for found, expected, what in zip(cpu.moments(x, pattern, True), moments, ("mean", "M2"), strict=True):
        assert_near(found, expected, torch.float32, count, what)
    rstd = (m2 / pattern.bind(x.shape).count + 1e-5).rsqrt()
    assert_near(cpu.apply(x, pattern, mean, rstd, finish), expected_y, dtype, count, "y of apply")
    if by_output:
        finish = replace(finish, residual=None, output=y)
    s1, s2, *parameters = eager.grad_sums(dy.double(), x.double(), *exact, wide(finish))
    c1, c2 = (s / pattern.bind(x.shape).count for s in (s1, s2))
    dx, dz = eager.grad_input(dy.double(), x.double(), *exact, wide(finish), c1, c2)
    found_dx, *found_parameters, found_dz = cpu.backward(dy, x, pattern, True, 1e-5, *moments, finish)
    sums = cpu.grad_sums(dy, x, *exact, finish)
    input_dx, input_dz = cpu.grad_input(dy, x, *exact, finish, c1, c2)
    terms = x.numel()
    for dx_of, what in ((found_dx, "dx"), (input_dx, "dx of grad_input")):
        assert_near(dx_of, dx, dtype, count, what)
    for found, expected in zip((*sums, *found_parameters), (s1, s2, *parameters, *parameters), strict=True):
        assert_near(found, expected, torch.float32, terms, "sums")
    for found_z in (found_dz, input_dz):
        if finish.has_residual:
            assert found_z is not None
            assert_near(found_z, dz, dtype, 1, "residual's gradient")  # type: ignore[arg-type]
        else:
            assert found_z is None


@pytest.mark.parametrize("place", ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout(isa: str, dtype: torch.dtype, place: str) -> None:
    """Bare; by the gate, with and without a residual; by slopes; rounded before the scale."""
    pattern, affine, given = operands(place, dtype)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    for spelled in (affine, Affine(affine.axes, 1.0, "before")):
        for activation, beside in (("identity", None), ("relu", None), ("relu", residual), ("silu", residual)):
            finish = Finish(spelled, Epilogue(activation), residual=beside, **given)
            check(pattern, x, dy, finish, by_output=activation == "relu" and beside is not None)


@pytest.fixture(params=["in the caches", "past the caches"])
def storing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Outputs of any size are stored so."""
    before = _cpu.stream_bytes()
    _cpu.set_stream_bytes(0 if request.param == "past the caches" else 1 << 40)
    yield
    _cpu.set_stream_bytes(before)


@pytest.mark.parametrize("place", ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_of_every_layout(isa: str, storing: None, dtype: torch.dtype, place: str) -> None:
    """The sum has the bits of an addition, and what is made of it those of a call on it; dx has both gradients."""
    pattern, affine, given = operands(place, dtype)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    carried = torch.empty_like(residual).copy_(residual.flip(0))
    for activation, centered in (("identity", True), ("identity", False), ("relu", True), ("silu", True)):
        finish = Finish(affine, Epilogue(activation), **given)
        y, total, mean, m2 = cpu.forward_of_sum(x, residual, pattern, centered, 1e-5, finish)
        assert torch.equal(total, x + residual)
        assert total.stride() == x.stride()
        apart = cpu.forward(total, pattern, centered, 1e-5, finish)
        for found, expected in zip((y, mean, m2), apart, strict=True):
            assert torch.equal(found, expected)
        bare = cpu.backward(dy, total, pattern, centered, 1e-5, mean, m2, finish)
        found_dx, *found_sums, _ = cpu.backward(dy, total, pattern, centered, 1e-5, mean, m2, finish, None, carried)
        for found, expected in zip(found_sums, bare[1:3], strict=True):
            assert torch.equal(found, expected)
        # Twice rounded where the addition is an operation of its own.
        ulp = torch.finfo(dtype).eps
        bound = ulp * (bare[0].abs() + carried.abs()).double() + 4 * torch.finfo(torch.float32).eps
        assert ((found_dx.double() - bare[0].double() - carried.double()).abs() <= bound).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", ["rows", "folded columns", "tiny rows", "one by one"])
def test_every_activation(isa: str, place: str, activation: str) -> None:
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (3 * given.pop(name) for name in ("x", "dy", "residual"))
    for beside in (None, residual):
        finish = Finish(affine, Epilogue(activation, 0.2), residual=beside, **given)
        check(pattern, x, dy, finish, by_output=False)


def curve(activation: str, z: Tensor, slope: bool) -> Tensor:
    """An activation or its slope by the extension, at z."""
    plan = _cpu.Plan(1, 1, 1, z.numel(), z.numel(), 1, z.numel(), (0, 0, 0), (0, 0, 0))
    dtype = _cpu.DTYPES[str(z.dtype).removeprefix("torch.")]
    kernel = _cpu.Kernel(plan, dtype, True, 0.0, dtype, 0.0, False, _cpu.ACTIVATIONS[activation], 0.2)
    mean, rstd, out, dy = torch.zeros(1).double(), torch.ones(1).double(), torch.empty_like(z), torch.ones_like(z)
    pointers = [t.data_ptr() for t in (z, out, mean, rstd)]
    if slope:
        kernel.grad_input(dy.data_ptr(), *pointers, 0, 0, 0, 0, 0, 0, 0)
    else:
        kernel.apply(*pointers, 0, 0, 0)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact_to_two_units(isa: str, activation: str, dtype: torch.dtype) -> None:
    """Of the larger of 1 and |z|, over all z that matter, both slopes at once; what torch gives of odd values."""
    z = torch.cat([torch.linspace(-20, 20, 30_001), torch.randn(30_000), torch.linspace(-1e-3, 1e-3, 1000)]).to(dtype)
    z = z[~torch.isin(z.abs(), torch.tensor([0.0, 3.0, 6.0], dtype=dtype))]
    epilogue, unit = Epilogue(activation, 0.2), torch.finfo(dtype).eps
    value, slope = epilogue.apply(z.double()), epilogue.derivative(z.double())
    # Torch's own in float64 is no better than this.
    few = 2 if dtype == torch.float32 else 24
    assert ((curve(activation, z, False).double() - value).abs() <= few * unit * z.abs().clamp_min(1)).all()
    assert ((curve(activation, z, True).double() - slope).abs() <= few * unit).all()
    odd = torch.tensor([torch.nan, torch.inf, 1e30, -1e30], dtype=dtype)
    # In float64: torch's float32 GELU of infinity is NaN on some processors.
    torch.testing.assert_close(curve(activation, odd, False), epilogue.apply(odd.double()).to(dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
def test_gates_open_and_close_where_torch_s_do(isa: str, activation: str, dtype: torch.dtype) -> None:
    """At the edges, and at infinity, which a residual brings."""
    under = 6.0 - 4 * torch.finfo(dtype).eps
    residual = torch.tensor([torch.inf, -torch.inf, 6.0, under, 0.0], dtype=dtype)
    pattern, x, dy = Pattern.parse("n [d]"), torch.zeros_like(residual)[None], torch.ones_like(residual)[None]
    mean, rstd = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    finish = Finish(Affine(), Epilogue(activation, 0.2), residual=residual[None])
    dx, _ = cpu.grad_input(dy, x, pattern, mean, rstd, finish, None, None)
    assert torch.equal(dx[0], finish.epilogue.derivative(residual))


def test_activations_and_instruction_sets_by_name() -> None:
    assert set(_cpu.ACTIVATIONS) == set(ACTIVATIONS)
    with pytest.raises(ValueError, match=r"set_isa: 'mmx' is not one of isas"):
        _cpu.set_isa("mmx")
    assert _cpu.isas()[0] == "baseline"


@pytest.mark.parametrize("stream", [1, 1 << 40], ids=["streamed", "cached"])
def test_streamed_stores_give_the_same_bits(isa: str, stream: int) -> None:
    pattern, affine, given = operands("columns by row", torch.float32)
    x, dy, residual = (given.pop(name).repeat(3, 2, 9) for name in ("x", "dy", "residual"))
    given = {name: value.repeat(2) for name, value in given.items()}
    finish = Finish(affine, Epilogue("relu"), residual=residual, **given)
    before = _cpu.stream_bytes()
    results: list[Any] = []
    try:
        for limit in (1 << 40, stream):
            _cpu.set_stream_bytes(limit)
            y, mean, m2 = cpu.forward(x, pattern, True, 1e-5, finish)
            results.append((y, *cpu.backward(dy, x, pattern, True, 1e-5, mean, m2, replace(finish, output=y))))
    finally:
        _cpu.set_stream_bytes(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("place", PLACES)
def test_denormal_input(isa: str, place: str) -> None:
    """The rest of a mean of 1e-41 has no digits in float32."""
    pattern, affine, given = operands(place, torch.float32)
    x = 1e-40 * given["x"]
    y, *_ = cpu.forward(x, pattern, True, 1e-5, Finish(affine, Epilogue()))
    expected, *_ = eager.forward(x.double(), pattern, True, 1e-5, Finish(affine, Epilogue()))
    assert expected.abs().max() > 1e-38
    assert (y.double() - expected).abs().max() <= 2e-7 * expected.abs().max()


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("place", ALL)
def test_sums_that_float32_cannot_hold(isa: str, place: str, activation: str) -> None:
    """A chain of such gradients overflows, and is added again in float64."""
    pattern, affine, given = operands(place, torch.float32)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    dy = 1e38 * (0.5 + dy.abs() / dy.abs().max() / 2)
    finish = Finish(affine, Epilogue(activation), **given)
    mean, m2 = eager.moments(x.double(), pattern, True)
    rstd = (m2 / pattern.bind(x.shape).count + 1e-5).rsqrt()
    exact = eager.grad_sums(dy.double(), x.double(), pattern, mean, rstd, wide(finish))
    _, *parameters, _ = cpu.backward(dy, x, pattern, True, 1e-5, mean, m2, finish)
    found = (*cpu.grad_sums(dy, x, pattern, mean, rstd, finish), *parameters)
    for sums, expected in zip(found, (*exact, *exact[2:]), strict=True):
        assert expected.abs().max() > 1e38
        assert (sums - expected).abs().max() <= 1e-6 * expected.abs().max()


def exactly(dy: Tensor, x: Tensor, pattern: Pattern, finish: Finish) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, dx, Σ dz·x̂ and Σ dz of a batch's own statistics without eps, in float64."""
    dy, x, finish, count = dy.double(), x.double(), wide(finish), pattern.bind(x.shape).count
    y, mean, m2 = eager.forward(x, pattern, True, 0.0, finish)
    exact = (pattern, mean, (m2 / count).rsqrt(), finish)
    s1, s2, d_weight, d_bias = eager.grad_sums(dy, x, *exact)
    return y, eager.grad_input(dy, x, *exact, s1 / count, s2 / count)[0], d_weight, d_bias


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [("identity", torch.float32), ("relu", torch.float32), ("hardswish", torch.float32), ("silu", torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("place", ALL)
def test_scales_that_float32_cannot_fold(isa: str, place: str, activation: str, dtype: torch.dtype) -> None:
    """rstd times weight would overflow, or lose its digits, where neither does alone; others are what they were."""
    pattern, affine, given = operands(place, dtype)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    scales = torch.tensor([1e-30, 1e30, 1.0, 0.0]).repeat(given["weight"].numel())[: given["weight"].numel()]
    given["weight"] = given["weight"] * scales.reshape(given["weight"].shape)
    finish = Finish(affine, Epilogue(activation), **{**given, "bias": 0 * given["bias"]})
    near = 2e-5 if dtype == torch.float32 else 1e-2
    for spread in (1e-14, 1e14):
        spaced = (spread * x.float()).to(dtype)
        y, mean, m2 = cpu.forward(spaced, pattern, True, 0.0, finish)
        wanted, dx, *sums = exactly(dy, spaced, pattern, finish)
        xhat = exactly(dy, spaced, pattern, Finish(affine, Epilogue()))[0]
        scale = exactly(dy, spaced, pattern, replace(finish, epilogue=Epilogue()))[0].div(xhat).abs()
        assert ((y - wanted).abs() <= near * scale * xhat.abs().max()).all()
        found_dx, *found, _ = cpu.backward(dy, spaced, pattern, True, 0.0, mean, m2, finish)
        # The gradient itself may be too large.
        if dx.abs().max() < 1e38:
            assert (found_dx - dx).abs().max() <= near * dx.abs().max()
        for one, other in zip(found, sums, strict=True):
            assert (one - other).abs().max() <= 2e-5 * other.abs().max()


def test_a_row_whose_sum_overflows_is_added_once(isa: str) -> None:
    pattern, affine, given = operands("rows", torch.float32)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    dy[3] = 2e37
    finish = Finish(affine, Epilogue(), **{**given, "weight": torch.full_like(given["weight"], 4.0)})
    _, mean, m2 = cpu.forward(x, pattern, True, 0.0, finish)
    found = cpu.backward(dy, x, pattern, True, 0.0, mean, m2, finish)[1:3]
    for one, other in zip(found, exactly(dy, x, pattern, finish)[2:], strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.parametrize("place", ALL)
def test_small_gradients_of_small_input(isa: str, place: str) -> None:
    """A deviation times a gradient is a denormal, where x̂ times it is none."""
    pattern, affine, given = operands(place, torch.float32)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    x, dy, finish = 2.0**-39 * x, 2.0**-110 * dy, Finish(affine, Epilogue(), **given)
    _, mean, m2 = cpu.forward(x, pattern, True, 0.0, finish)
    found = cpu.backward(dy, x, pattern, True, 0.0, mean, m2, finish)[:3]
    for one, other in zip(found, exactly(dy, x, pattern, finish)[1:], strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize(
    "place", ["short runs", "long runs", "columns", "channels last", "folded columns", "tiny rows"]
)
def test_gradients_of_given_statistics_in_one_call(isa: str, place: str, activation: str, in_place: bool) -> None:
    pattern, affine, given = operands(place, torch.float32)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    epilogue, (weight, bias) = Epilogue(activation), given.values()
    mean, m2 = eager.moments(x.double(), pattern, True)
    statistics = torch.stack([mean, (m2 / pattern.bind(x.shape).count + 1e-5).rsqrt()]).flatten(1)
    finish = Finish(affine, epilogue, **given)
    mean, rstd = (rows.reshape(mean.shape) for rows in statistics)
    expected = (
        cpu.grad_input(dy, x, pattern, mean, rstd, finish, None, None)[0],
        *cpu.grad_sums(dy, x, pattern, mean, rstd, finish)[2:],
    )
    native = cpu.straight(x, pattern, affine, epilogue, True, 0.0, x.dtype, torch.float32, dy.stride())
    assert native is not None
    dx = dy.clone() if in_place else torch.empty_like(x)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    places = [t.data_ptr() for t in (dx if in_place else dy, x, dx, *statistics, weight, bias)]
    native.gradients(True, *places, 0, 0, d_weight.data_ptr(), d_bias.data_ptr(), 0)
    assert torch.equal(dx, expected[0])
    for found, sums in zip((d_weight, d_bias), expected[1:], strict=True):
        assert torch.equal(found, sums.float().reshape(found.shape))


@pytest.mark.parametrize(
    ("operand", "dtype"), [("x", torch.bfloat16), ("dy", torch.bfloat16), ("dy", torch.float32)], ids=str
)
@pytest.mark.parametrize("place", ALL)
def test_results_may_take_an_operand_s_place(
    isa: str, place: str, operand: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, affine, given = operands(place, dtype)
    x, dy, _ = (given.pop(name) for name in ("x", "dy", "residual"))
    # Larger than what vectors work with.
    given["bias"].view(-1)[1] = 2e30
    finish = Finish(affine, Epilogue("silu"), **given)
    y, mean, m2 = cpu.forward(x, pattern, True, 1e-5, finish)
    expected = cpu.backward(dy, x, pattern, True, 1e-5, mean, m2, finish)
    monkeypatch.setattr(cpu._Call, "new_output", lambda call: getattr(call, operand if call.dy is not None else "x"))
    written = x.clone()
    assert torch.equal(cpu.forward(written, pattern, True, 1e-5, finish)[0], y)
    assert torch.equal(written, y)
    found = cpu.backward(dy.clone(), x.clone(), pattern, True, 1e-5, mean, m2, finish)
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(one, other)


def test_a_mask_goes_with_its_plan() -> None:
    plan = _cpu.Plan(1, 1, 1, 8, 8, 1, 8, (0, 0, 0), (0, 0, 0))
    kernel = _cpu.Kernel(plan, 0, True, 0.0, 0, 0.0, False, 0, 0.0)
    with pytest.raises(ValueError, match="mask: expected one for a plan that was made with its strides"):
        kernel.moments(0, 0, 0, 1)
