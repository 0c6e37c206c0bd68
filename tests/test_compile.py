"""torch.compile, torch.export, ONNX and torch.fx: one graph, the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export

import evenorm
from cases import CASES, Case, case
from evenorm.layers import Layer
from evenorm.operator import Settings
from oracle import expect
from properties import assert_step, seeded_input, step
from told import AS_TOLD

ALL = pytest.mark.parametrize("case", CASES, ids=str)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# One of each way through the engine, for what takes a second each.
KINDS = [
    case(name)
    for name in (
        "BatchNorm2d",
        "BatchNorm2d_cumulative",
        "GhostBatchNorm2d",
        "InstanceNorm2d_tracked",
        "GroupNorm_2",
        "LayerNorm",
        "RMSNorm_offset",
        "RMSNorm_cast",
        "LayerNorm2d",
        "LayerNorm_given",
        "BatchNorm2d_given",
        "Norm_heads",
        "Norm_affine_order",
        "Norm_frozen",
    )
]
SOME = pytest.mark.parametrize("case", KINDS, ids=str)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """No test runs what another one compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(layer: nn.Module, backend: Any = "aot_eager", **options: Any) -> Any:
    return torch.compile(layer, backend=backend, fullgraph=True, **options)


def agrees_when_compiled(
    case: Case, training: bool, dtype: torch.dtype = torch.float32, backend: Any = AS_TOLD
) -> None:
    layer = case.layer(dtype).train(training)
    options = case.options(case.shape, dtype)
    function = compiled(layer, backend)
    # The second call runs what the first one compiled.
    for _ in range(2):
        x = seeded_input(case.shape, dtype)
        dy = torch.randn(case.shape).to(dtype)
        expected = expect(case, layer, x, dy, options)
        assert_step(step(layer, x, dy, options, function), expected, str(case))


@SOME
@MODES
def test_one_graph_with_the_same_numbers(case: Case, training: bool) -> None:
    agrees_when_compiled(case, training)


@pytest.mark.slow
@ALL
@MODES
def test_every_layer_is_one_graph(case: Case, training: bool) -> None:
    agrees_when_compiled(case, training, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm", "GroupNorm_2", "Norm_affine_order"])
def test_the_default_backend(name: str) -> None:
    agrees_when_compiled(case(name), True, backend="inductor")


@SOME
def test_dynamic_shapes(case: Case) -> None:
    """One graph for all sizes of the batch and of the image."""
    layer = case.layer(torch.float32)
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph

    function = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for grown in (0, 2, 4):
        rows, *rest = case.shape
        wide = [*rest[:-1], rest[-1] + grown] if "n" in case.pattern and len(rest) == 3 else rest
        shape = (rows + grown, *wide)
        x, dy = seeded_input(shape, torch.float32), torch.randn(shape)
        options = case.options(shape, torch.float32)
        expected = expect(case, layer, x, dy, options)
        assert_step(step(layer, x, dy, options, function), expected, f"{case} {shape}")
    assert len(graphs) == 1
    ours = [n for n in graphs[0].graph.nodes if n.target == torch.ops.evenorm.normalize]
    assert len(ours) == 1


def test_a_compiled_call_refuses_what_does_not_fit() -> None:
    """Its graph knows no shapes, and its kernels read memory by address."""
    x = torch.randn(64, 128)
    before = compiled(evenorm.LayerNorm(128, activation=evenorm.Epilogue(residual="before")))
    after = compiled(evenorm.LayerNorm(128))
    for layer in (before, after):
        with pytest.raises(ValueError, match="expected a residual of the input's shape"):
            layer(x, residual=x[:1])
    with pytest.raises(ValueError, match="expected a weight and bias of 128 values"):
        torch.ops.evenorm.normalize(x, torch.ones(7), None, None, None, None, None, "... [d]", "d", *_REST)
    with pytest.raises(ValueError, match="expected a residual of the input's shape"):
        torch.ops.evenorm.add_normalize(x, x[:1], None, None, "... [d]", "", *_REST)


_REST = Settings("")[2:]

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda t: t[:1].expand(t.shape),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
}


@pytest.mark.parametrize("lies", OTHERS)
@pytest.mark.parametrize("lies_beside", OTHERS)
def test_a_sum_lies_as_a_compiled_graph_is_told(lies: str, lies_beside: str) -> None:
    layer = evenorm.GroupNorm(2, 4, activation=evenorm.Epilogue(residual="before"))
    x, r = OTHERS[lies](torch.randn(2, 4, 3, 5)), OTHERS[lies_beside](torch.randn(2, 4, 3, 5))
    y, total = compiled(layer, AS_TOLD)(x, residual=r)
    torch.testing.assert_close(total, x + r)
    torch.testing.assert_close(y, evenorm.GroupNorm(2, 4)(x + r))


def test_history_in_a_compiled_training_loop() -> None:
    """Ten steps of a network: parameters and buffers are those of the uncompiled one."""
    losses, states = [], []
    for wrap in (lambda module: module, compiled):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            evenorm.BatchNorm2d(6),
            nn.ReLU(),
            evenorm.GhostBatchNorm2d(6, 2, momentum=None),
            evenorm.GroupNorm(2, 6),
            nn.Flatten(),
            nn.LazyLinear(5),
            evenorm.RMSNorm(5),
        )
        model(torch.randn(4, 3, 6, 6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run = wrap(model)
        for _ in range(10):
            loss = (run(torch.randn(5, 3, 6, 6)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss)
        states.append(model.state_dict())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*states)


def test_switching_to_evaluation_compiles_anew() -> None:
    layer = case("BatchNorm2d").layer(torch.float32)
    function = compiled(layer)
    x = torch.randn(4, 6, 5, 3)
    function(x)
    layer.eval()
    mean = layer.get_buffer("running_mean")
    before = mean.clone()
    torch.testing.assert_close(function(x), layer(x))
    assert torch.equal(mean, before)


@ALL
def test_export_holds_torchs_operations_alone(case: Case) -> None:
    """In evaluation, with a batch of any size, and the same numbers after loading."""
    layer = case.layer(torch.float32).eval()
    x = seeded_input(case.shape, torch.float32)
    options = case.options(case.shape, torch.float32)
    program = export(layer, (x,), options)
    assert_aten_only(program)
    torch.testing.assert_close(program.module()(x, **options), layer(x, **options))


@pytest.mark.parametrize(
    "name", ["BatchNorm2d", "GroupNorm_2", "LayerNorm", "RMSNorm", "LayerNorm2d", "InstanceNorm1d"]
)
def test_export_with_a_dynamic_batch(name: str) -> None:
    layer = case(name).layer(torch.float32).eval()
    x = seeded_input(case(name).shape, torch.float32)
    program = export(layer, (x,), dynamic_shapes=({0: Dim("batch", min=2)},))
    assert_aten_only(program)
    for rows in (2, 7):
        wide = torch.randn(rows, *x.shape[1:])
        torch.testing.assert_close(program.module()(wide), layer(wide))


@SOME
def test_export_in_training_updates_the_history(case: Case) -> None:
    layer = case.layer(torch.float32).train()
    x = seeded_input(case.shape, torch.float32)
    options = case.options(case.shape, torch.float32)
    program = export(layer, (x,), options)
    assert_aten_only(program)
    module = program.module()
    torch.testing.assert_close(module(x, **options), layer(x, **options))
    torch.testing.assert_close(dict(module.named_buffers()), dict(layer.named_buffers()))


def assert_aten_only(program: torch.export.ExportedProgram) -> None:
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    calls = [n.target for graph in graphs for n in graph.nodes if n.op == "call_function"]
    spaces = {getattr(call, "namespace", None) or call.__module__ for call in calls}
    # Of the higher order is what torch makes of no_grad.
    assert "aten" in spaces
    assert spaces <= {"aten", "higher_order", "_operator"}


# Torch's exporter warns of torch's own code.
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "BatchNorm2d",
        pytest.param("GroupNorm_2", marks=pytest.mark.slow),
        "LayerNorm",
        pytest.param("RMSNorm_offset", marks=pytest.mark.slow),
        pytest.param("InstanceNorm2d_affine", marks=pytest.mark.slow),
        pytest.param("LayerNorm2d", marks=pytest.mark.slow),
    ],
)
def test_onnx_runs_to_the_same_numbers(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra 'bench'")
    pytest.importorskip("onnxscript", reason="onnxscript is in the extra 'bench'")
    layer = case(name).layer(torch.float32).eval()
    x = seeded_input(case(name).shape, torch.float32)
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-4, atol=1e-5)


class Two(nn.Module):
    """A layer, and the same layer again with a scale of the call's."""

    def __init__(self, layer: Layer, given: bool) -> None:
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x, scale=scale) if self.given else self.layer(x)


@ALL
def test_fx_keeps_a_layer_whole(case: Case) -> None:
    layer = case.layer().eval()
    options = case.options(case.shape) or {"scale": torch.ones(1)}
    model = Two(layer, bool(case.given))
    traced = fx.symbolic_trace(model)
    calls = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    assert [(n.op, n.target) for n in calls] == [("call_module", "layer")]
    x = seeded_input(case.shape, torch.float64)
    torch.testing.assert_close(traced(x, options["scale"]), model(x, options["scale"]))


def test_fx_traces_a_network_whose_first_module_is_ours() -> None:
    model = nn.Sequential(evenorm.LayerNorm(6), nn.Linear(6, 6), evenorm.RMSNorm(6))
    targets = [n.target for n in fx.symbolic_trace(model).graph.nodes if n.op == "call_module"]
    assert targets == ["0", "1", "2"]


def test_jit_trace_records_torchs_operations() -> None:
    layer = case("BatchNorm2d").layer(torch.float32).eval()
    x = torch.randn(4, 6, 5, 3)
    traced = torch.jit.trace(layer, x)
    assert "evenorm::" not in str(traced.inlined_graph)
    wider = torch.randn(7, 6, 5, 3)
    torch.testing.assert_close(traced(wider), layer(wider))
