"""The fused C++ kernels, called with raw pointers.

The extension knows nothing of PyTorch. What is wide goes through it; what is one number per statistic stays
in torch.
"""
from __future__ import annotations
from torch import Tensor
name = "cpu"
def declines(x, pattern, affine):
    return "the C++ extension is not built"
