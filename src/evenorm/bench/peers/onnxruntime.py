"""onnxruntime: one ONNX operator in a session. Forward alone, in float32 and with torch's memory format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from evenorm.bench.case import Case, Data
from evenorm.bench.peers import Outputs, Unavailable

__all__ = ["Session"]

# The first opset that has all of the operators below.
_OPSET = 23


class Session:
    """The operator of a layer, run on the input's own memory."""

    def __init__(self, case: Case, data: Data) -> None:
        reason = _declines(case)
        if reason is not None:
            raise Unavailable(reason)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its arena would keep its memory warm where the others' is fresh.
        options.enable_cpu_mem_arena = False
        model = _model(case, data, case.ours())
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.feed = {"x": data.x.detach().numpy()}

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed."""
        if direction != "forward":
            raise Unavailable("onnxruntime is measured forward alone")
        return lambda: self.session.run(None, self.feed)

    def outputs(self) -> Outputs:
        """The output."""
        return {"y without grad": self.session.run(None, self.feed)[0]}


def _declines(case: Case) -> str | None:
    if case.dtype != "float32":
        return "onnxruntime is measured in float32"
    if case.channels_last:
        return "onnxruntime's operators take channels first"
    if case.family == "BatchNorm" and case.training:
        return "onnxruntime's batch normalization is for evaluation"
    if case.fuses or case.layer in ("LayerNorm2d", "RMSNorm2d"):
        return "no operator for it"
    return None


def _model(case: Case, data: Data, layer: Any) -> bytes:
    """A graph of the layer's operator with its parameters as constants."""
    eps: dict[str, Any] = {"epsilon": float(layer.eps)}
    names, attributes = ["weight", "bias"], eps
    if case.family == "BatchNorm":
        names = [*names, "mean", "variance"]
        operator = "BatchNormalization"
    elif case.family == "GroupNorm":
        operator, attributes = "GroupNormalization", {**eps, "num_groups": case.groups}
    elif case.family == "RMSNorm":
        names = ["weight"]
        operator, attributes = "RMSNormalization", {**eps, "axis": -1}
    elif case.family == "LayerNorm":
        operator, attributes = "LayerNormalization", {**eps, "axis": -1}
    else:
        operator = "InstanceNormalization"
    constants = [numpy_helper.from_array(getattr(data, name).numpy(), name) for name in names]
    node = helper.make_node(operator, ["x", *names], ["y"], **attributes)
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, case.shape) for name in ("x", "y")]
    graph = helper.make_graph([node], case.layer, edges[:1], edges[1:], constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    onnx.checker.check_model(model)
    return model
