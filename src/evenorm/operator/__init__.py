"""The operator: normalization with its gradient, of this batch alone (fused) or of more than it (staged)."""

from evenorm.operator.fused import fused
from evenorm.operator.settings import Settings
from evenorm.operator.staged import staged
from evenorm.operator.step import Step
from evenorm.operator.straight import Straight
from evenorm.operator.summed import summed

__all__ = ["Settings", "Step", "Straight", "fused", "staged", "summed"]
