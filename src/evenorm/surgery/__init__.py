"""Model surgery: operations on the normalizers of a model, each of which checks itself and reports."""

from evenorm.surgery.accelerate import accelerate, revert
from evenorm.surgery.fold import fold
from evenorm.surgery.proof import Proof, ProofError
from evenorm.surgery.report import SurgeryReport

__all__ = ["Proof", "ProofError", "SurgeryReport", "accelerate", "fold", "revert"]
