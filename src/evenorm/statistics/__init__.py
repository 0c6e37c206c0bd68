"""Where statistics come from: this batch, a running average, other ranks, other micro-batches, a domain's past."""

from evenorm.statistics.absorb import absorbed
from evenorm.statistics.accumulated import Accumulated
from evenorm.statistics.average import Batch, Cumulative, Frozen, Running
from evenorm.statistics.domain import PerDomain
from evenorm.statistics.group import Group, SyncError, Tag, numbered
from evenorm.statistics.history import History, Window
from evenorm.statistics.lockstep import lockstep
from evenorm.statistics.renorm import Ramp, Renorm
from evenorm.statistics.source import Composed, Source, Statistics, parts
from evenorm.statistics.synced import Synced

__all__ = [
    "Accumulated",
    "Batch",
    "Composed",
    "Cumulative",
    "Frozen",
    "Group",
    "History",
    "PerDomain",
    "Ramp",
    "Renorm",
    "Running",
    "Source",
    "Statistics",
    "SyncError",
    "Synced",
    "Tag",
    "Window",
    "absorbed",
    "lockstep",
    "numbered",
    "parts",
]
