"""Model surgery: operations on the normalizers of a model, each of which checks itself and reports."""

from evenorm.surgery.accelerate import accelerate, revert
from evenorm.surgery.convert import convert
from evenorm.surgery.fold import fold
from evenorm.surgery.freeze import freeze, unfreeze
from evenorm.surgery.proof import Proof, ProofError
from evenorm.surgery.recalibrate import recalibrate
from evenorm.surgery.report import SurgeryReport
from evenorm.surgery.tidy import drop_dead_bias, fix_momentum, split_weight_decay

__all__ = [
    "Proof",
    "ProofError",
    "SurgeryReport",
    "accelerate",
    "convert",
    "drop_dead_bias",
    "fix_momentum",
    "fold",
    "freeze",
    "recalibrate",
    "revert",
    "split_weight_decay",
    "unfreeze",
]
