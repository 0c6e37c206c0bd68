"""evenorm: every normalization layer out of one engine.

>>> import torch, evenorm
>>> evenorm.BatchNorm2d(8)(torch.randn(4, 8, 5, 5)).shape
torch.Size([4, 8, 5, 5])
"""

from evenorm.pattern import Pattern, PatternError
from evenorm.affine import Affine
from evenorm.moments import Moments
from evenorm.statistics import Batch, Cumulative, Frozen, History, Running
from evenorm.recipe import Recipe
from evenorm.functional import normalize
from evenorm.layers import *
from evenorm.norm import Norm
from evenorm.weights import spectral_norm, weight_norm
