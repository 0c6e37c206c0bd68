"""A graph that normalizes with the batch, exported or about to be.

What it finds:
    Batch normalization with ``training=True`` written into a traced or exported graph; and, for a model that is to
    be exported, batch norms that are in training or have no running statistics.

Why it matters:
    An export keeps the mode of its moment for ever. The deployed model answers each sample by the samples beside
    it, and single ones with NaN; runtimes disagree with torch and with each other.

Instead:
    ``model.eval()`` before the export, and running statistics in every batch norm.

Fix:
    ``eval()`` for a model that has yet to be exported; a graph has to be exported again.

References:
    microsoft/onnxruntime#3873, microsoft/onnxruntime#26584, pytorch/pytorch#75252, pytorch/pytorch#49229,
    pytorch/pytorch#52867, microsoft/onnxscript#1791
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.mending import spelled
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

ADVICE = "call model.eval() and export again"


def check(subject: Subject) -> Iterator[Symptom]:
    """Read the graphs, and the modes of what shall become one."""
    for path, module in subject.model.named_modules():
        count = _in_graph(module) if isinstance(module, GraphModule) else _in_script(module)
        if count:
            yield Symptom(
                path,
                f"{counted(count, 'batch normalization')} of the graph with training=True: it was captured in training",
                ADVICE,
                {"batch normalizations in training": count},
            )
    if subject.intent != "export":
        return
    for site in subject.sites:
        if site.kind != "batch" or not site.uses_batch():
            continue
        where = "is in training" if site.remembers else "has no running statistics"
        eval_ = Fix(f"{spelled(site.path)}.eval()", site.module.eval)
        yield Symptom(
            site.path,
            f"{where}: exported so, it normalizes with whatever batch comes",
            ADVICE if site.remembers else "build it with running statistics, and recalibrate them",
            {"training": site.training, "running statistics": site.remembers},
            eval_ if site.remembers else None,
        )


def _in_graph(module: GraphModule) -> int:
    """Batch normalizations with training=True among the nodes."""
    return sum(_is_training(module, node) for node in module.graph.nodes if node.op == "call_function")


def _is_training(module: GraphModule, node: Node) -> bool:
    if "batch_norm" not in str(getattr(node.target, "__name__", node.target)):
        return False
    arguments = node.normalized_arguments(module, normalize_to_only_use_kwargs=True)
    return arguments is not None and any(arguments.kwargs.get(name) is True for name in ("training", "train"))


def _in_script(module: nn.Module) -> int:
    """Likewise in a traced module's own graph; what was scripted reads its mode."""
    if not isinstance(module, torch.jit.ScriptModule) or not hasattr(module, "graph"):
        return 0
    graph: Any = module.graph
    nodes = graph.findAllNodes("aten::batch_norm")
    return sum(list(node.inputs())[5].toIValue() is True for node in nodes)


class Functional(nn.Module):
    """A batch norm by function, whose mode a tracer writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return functional.batch_norm(x, mean, var, training=self.training)


def _export(model: nn.Module) -> dict[str, Any]:
    return {"intent": "export"}


def _network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())


def ailing() -> Iterator[Specimen]:
    """Captured, or to be captured, in training."""
    yield Specimen("traced in training", torch.fx.symbolic_trace(Functional()))
    yield Specimen("to be exported, in training", _network(nn.BatchNorm2d(8)), options=_export)
    bare = _network(nn.BatchNorm2d(8, track_running_stats=False)).eval()
    yield Specimen("to be exported without running statistics", bare, options=_export)


def healthy() -> Iterator[Specimen]:
    """In evaluation, or without a mode."""
    yield Specimen("traced in evaluation", torch.fx.symbolic_trace(Functional().eval()))
    yield Specimen("to be exported, in evaluation", _network(nn.BatchNorm2d(8)).eval(), options=_export)
    yield Specimen("to be exported with instance norms", _network(nn.InstanceNorm2d(8)).eval(), options=_export)
    yield Specimen("group norms in training", _network(nn.GroupNorm(2, 8)), options=_export)
    yield Specimen("to be trained", _network(nn.BatchNorm2d(8)))
