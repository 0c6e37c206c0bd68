"""A compiler's backend that compares each operator of a graph with what its fake kernel told of it: strides too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._subclasses.fake_utils import CrossRefFakeMode

__all__ = ["AS_TOLD"]


def _compared(graph: fx.GraphModule, inputs: Any) -> Any:
    def run(*given: Tensor) -> Any:
        with CrossRefFakeMode(check_strides=True):
            return graph(*given)

    return make_boxed_func(run)


AS_TOLD = aot_autograd(fw_compiler=_compared)
