"""Where a layer may be used: autocast, mixed dtypes, copies, files, devices, subclasses, other people's tools."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import evenorm
from cases import CASES, Case, case
from kernels_here import AVAILABLE
from oracle import array, expect
from properties import assert_step, assert_within, seeded_input, step

ALL = pytest.mark.parametrize("case", CASES, ids=str)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def assert_same_layer(one: nn.Module, other: nn.Module, case: Case) -> None:
    """Two layers that compute the same, in training and in evaluation."""
    x, options = seeded_input(case.shape, torch.float64), case.options(case.shape)
    assert repr(one) == repr(other)
    for training in (True, False):
        assert torch.equal(one.train(training)(x, **options), other.train(training)(x, **options))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@ALL
def test_deepcopy_is_a_layer_of_its_own(case: Case) -> None:
    layer = case.layer()
    twin = copy.deepcopy(layer)
    assert_same_layer(layer, twin, case)
    for mine, theirs in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()


@ALL
def test_pickle(case: Case) -> None:
    layer = case.layer()
    assert_same_layer(pickle.loads(pickle.dumps(layer)), layer, case)


@ALL
def test_weights_are_saved_and_loaded_alone(case: Case) -> None:
    layer, other = case.layer(), case.layer()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_layer(other, layer, case)


def test_a_whole_layer_is_saved_and_loaded(tmp_path: Path) -> None:
    layer = case("BatchNorm2d").layer()
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    assert_same_layer(loaded, layer, case("BatchNorm2d"))


@ALL
def test_meta_device_knows_shapes_without_values(case: Case) -> None:
    with torch.device("meta"):
        layer = case.make()
        x = torch.empty(case.shape)
        options = case.options(case.shape, torch.float32)
    for training in (True, False):
        y = layer.train(training)(x, **options)
        assert y.is_meta
        assert y.shape == case.shape
    # To a real device without its values, and initialized there.
    empty = layer.to_empty(device="cpu")
    assert all(not t.is_meta for t in empty.state_dict().values())


def test_parameters_are_made_where_and_as_asked() -> None:
    for layer in (
        evenorm.BatchNorm2d(6, device="meta", dtype=torch.float64),
        evenorm.GroupNorm(2, 6, device="meta", dtype=torch.float64),
        evenorm.LayerNorm(6, device="meta", dtype=torch.float64),
        evenorm.RMSNorm2d(6, device="meta", dtype=torch.float64),
        evenorm.GhostBatchNorm1d(6, 2, device="meta", dtype=torch.float64),
        evenorm.Norm("n [c]", c=6, device="meta", dtype=torch.float64),
    ):
        assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())


@HALF
@pytest.mark.parametrize("kernel", AVAILABLE)
@ALL
def test_float32_parameters_keep_a_half_input_half(case: Case, kernel: str, dtype: torch.dtype) -> None:
    """And the parameters' gradients are float32, of the products in full precision."""
    layer = case.layer(torch.float32, kernel if case.fused else None)
    for training in (True, False):
        layer.train(training)
        x = seeded_input(case.shape, dtype)
        dy = torch.randn(case.shape).to(dtype)
        options = case.options(case.shape, torch.float32)
        expected = expect(case, layer, x, dy, options)
        found = step(layer, x, dy, options)
        assert found.y.dtype == dtype
        assert found.weight is None or found.weight.dtype == torch.float32
        assert_step(found, expected, f"{case} {dtype}")


@pytest.mark.parametrize("kernel", AVAILABLE)
def test_parameters_of_two_dtypes(kernel: str) -> None:
    layer = case("LayerNorm").layer(torch.float32, kernel)
    layer.bias = nn.Parameter(layer.bias.to(torch.bfloat16))
    x, dy = seeded_input((4, 12), torch.bfloat16), torch.randn(4, 12).bfloat16()
    expected = expect(case("LayerNorm"), layer, x, dy, {})
    found = step(layer, x, dy, {})
    assert found.bias is not None
    assert found.bias.dtype == torch.bfloat16
    assert_step(found, expected, "two dtypes")


@HALF
@ALL
def test_autocast_keeps_the_inputs_dtype(case: Case, dtype: torch.dtype) -> None:
    layer = case.layer(torch.float32).eval()
    for kind in (torch.float32, dtype):
        x = seeded_input(case.shape, kind)
        options = case.options(case.shape, kind)
        dy = torch.randn(case.shape).to(kind)
        expected = expect(case, layer, x, dy, options)
        with torch.autocast("cpu", dtype):
            y = layer(x.requires_grad_(), **options)
        assert y.dtype == kind
        assert_within(y, expected.y, f"{case} under autocast")
        (dx,) = torch.autograd.grad(y, x, dy)
        assert_within(dx, expected.x, f"{case} under autocast: dx")


def test_autocast_network_trains() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), evenorm.BatchNorm2d(6), nn.Flatten(), nn.LazyLinear(4), evenorm.RMSNorm(4)
    )
    x = torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) >= 4], ids=str)
def test_channels_last_in_and_out(case: Case, kernel: str) -> None:
    memory = torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d
    layer = case.layer(torch.float32, kernel)
    for dense in (True, False):
        x = seeded_input(case.shape, torch.float32)
        x = (x.contiguous(memory_format=memory) if dense else x).requires_grad_()
        y = layer(x, **case.options(case.shape, torch.float32))
        assert y.stride() == x.stride()
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        # Autograd lays out the gradient that it sums of a short last chunk and the whole ones.
        assert dx.stride() == x.stride() or "Ghost" in str(case)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm_2", "LayerNorm", "RMSNorm"])
def test_parametrized_weight_is_used_and_learns(name: str) -> None:
    layer, twin = case(name).layer(), case(name).layer()
    twin.load_state_dict(layer.state_dict())
    parametrize.register_parametrization(layer, "weight", Doubled())
    twin.weight = nn.Parameter(2 * twin.weight.detach())
    x = seeded_input(case(name).shape, torch.float64)
    dy = torch.randn_like(x)
    ours, theirs = layer(x), twin(x)
    torch.testing.assert_close(ours, theirs)
    ours.backward(dy)
    theirs.backward(dy)
    original = layer.get_parameter("parametrizations.weight.original")
    assert original.grad is not None
    torch.testing.assert_close(original.grad, 2 * twin.weight.grad)
    assert type(layer).__mro__[1] is type(twin)


def test_torchs_own_parametrizations_take_our_layers() -> None:
    layer = parametrizations.weight_norm(evenorm.LayerNorm([3, 4]))
    assert layer(torch.randn(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("case", [case("BatchNorm2d"), case("LayerNorm"), case("GhostBatchNorm2d")], ids=str)
def test_activation_checkpointing(case: Case) -> None:
    layer = case.layer().eval()
    x, dy = seeded_input(case.shape, torch.float64).requires_grad_(), torch.randn(case.shape, dtype=torch.float64)
    (plain,) = torch.autograd.grad(layer(x), x, dy)
    (saved,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, dy)
    assert torch.equal(plain, saved)


@pytest.mark.parametrize("case", [case("BatchNorm2d"), case("LayerNorm"), case("GhostBatchNorm2d")], ids=str)
def test_hooks_and_saved_tensor_hooks(case: Case) -> None:
    layer, seen = case.layer(), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward"))
    x = seeded_input(case.shape, torch.float64).requires_grad_()
    dy = torch.randn_like(x)
    (plain,) = torch.autograd.grad(layer(x), x, dy)
    assert seen == ["forward", "backward"]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
        (unpacked,) = torch.autograd.grad(layer(x), x, dy)
    torch.testing.assert_close(plain, unpacked)


@pytest.mark.parametrize("kernel", AVAILABLE)
def test_nothing_keeps_a_graph_alive(kernel: str) -> None:
    """Without the help of the garbage collector, which large tensors do not wait for."""
    layer = case("BatchNorm2d").layer(kernel=kernel)
    x = seeded_input((4, 6, 5, 3), torch.float64).requires_grad_()
    y = layer(x * 1)
    alive = weakref.ref(y), weakref.ref(x)
    y.sum().backward()
    del x, y
    assert [ref() for ref in alive] == [None, None]


class Tagged(Tensor):
    """A subclass without a rule of its own."""


@ALL
def test_tensor_subclass_is_kept(case: Case) -> None:
    layer = case.layer().eval()
    x, options = seeded_input(case.shape, torch.float64), case.options(case.shape)
    y = layer(x.as_subclass(Tagged), **options)
    assert type(y) is Tagged
    torch.testing.assert_close(y.as_subclass(Tensor), layer(x, **options), rtol=1e-12, atol=1e-12)


@ALL
def test_fake_tensors(case: Case) -> None:
    with FakeTensorMode():
        layer = case.make()
        x = torch.empty(case.shape, requires_grad=True)
        options = case.options(case.shape, torch.float32)
        y = layer(x, **options)
        assert y.shape == case.shape
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == case.shape


@ALL
def test_make_fx_records_torchs_operations(case: Case) -> None:
    """And the graph computes the layer, for other values too."""
    layer = case.layer().eval()
    x, options = seeded_input(case.shape, torch.float64), case.options(case.shape)
    graph = make_fx(lambda x: layer(x, **options))(x)
    assert "evenorm" not in graph.code
    other = torch.randn_like(x)
    torch.testing.assert_close(graph(other), layer(other, **options), rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    store = f"file://{tmp_path_factory.mktemp('store') / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=["sharded", "replicated"])
@pytest.mark.parametrize(
    "name", ["BatchNorm2d_untracked", "LayerNorm", "RMSNorm", "GroupNorm_2", "InstanceNorm2d_affine", "Norm_heads"]
)
def test_dtensor_takes_torchs_operations(name: str, placement: Shard | Replicate, mesh: DeviceMesh) -> None:
    """Its memory holds a part, or nothing that a pointer leads to: the eager kernel, with the same numbers."""
    layer = case(name).layer()
    x = seeded_input(case(name).shape, torch.float64)
    dy = torch.randn_like(x)
    expected = expect(case(name), layer, x, dy, {})
    for parameter_name, parameter in list(layer.named_parameters()):
        placed = distribute_tensor(parameter.detach(), mesh, [Replicate()])
        setattr(layer, parameter_name, nn.Parameter(placed))
    spread = distribute_tensor(x, mesh, [placement]).requires_grad_()
    y = layer(spread)
    assert isinstance(y, DTensor)
    assert_within(y.full_tensor(), expected.y, "y")
    (dx,) = torch.autograd.grad(y, spread, distribute_tensor(dy, mesh, [placement]))
    assert isinstance(dx, DTensor)
    assert_within(dx.full_tensor(), expected.x, "dx")


def test_dtensor_history_is_updated(mesh: DeviceMesh) -> None:
    layer, twin = case("BatchNorm2d").layer(), case("BatchNorm2d").layer()
    twin.load_state_dict(layer.state_dict())
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        placed = distribute_tensor(tensor.detach(), mesh, [Replicate()])
        setattr(layer, name, nn.Parameter(placed) if name in ("weight", "bias") else placed)
    x = seeded_input((4, 6, 5, 3), torch.float64)
    layer(distribute_tensor(x, mesh, [Replicate()]))
    twin(x)
    mean = layer.get_buffer("running_mean")
    assert isinstance(mean, DTensor)
    torch.testing.assert_close(array(mean.full_tensor()), array(twin.get_buffer("running_mean")))


def test_replicated_modules_of_one_process() -> None:
    """Swapping tensors and sharing parameters, as torch.func's functional_call does."""
    layer = case("BatchNorm2d").layer()
    x = seeded_input((4, 6, 5, 3), torch.float64)
    state = {name: torch.rand_like(p) for name, p in layer.named_parameters()}
    buffers = {"running_mean": torch.zeros(6).double(), "running_var": torch.ones(6).double()}
    before = layer.get_buffer("running_mean").clone()
    y = torch.func.functional_call(layer, {**state, **buffers}, (x,))
    normal = evenorm.normalize(x, "[n] c [...]", state["weight"], state["bias"], affine="c")
    torch.testing.assert_close(y, normal)
    assert torch.equal(layer.get_buffer("running_mean"), before)
    torch.testing.assert_close(buffers["running_mean"], 0.1 * x.mean((0, 2, 3)))
