"""Which kernels this installation has."""

import torch

from evenorm import Affine, Pattern
from evenorm.kernels import Signature, candidates

__all__ = ["AVAILABLE", "WITHOUT_EXTENSION"]

_ANSWERS = candidates(Signature.of(torch.ones(2, 2)), Pattern.parse("n [d]"), Affine())
AVAILABLE = [answer.name for answer in _ANSWERS if answer.reason is None]
WITHOUT_EXTENSION = "cpu" not in AVAILABLE
