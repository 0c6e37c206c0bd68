"""What an experiment is: a question, claims with rules fixed beforehand, and how one seed is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from evenorm.lab.interval import bootstrap, center
from evenorm.lab.setting import Data, Setting

Verdict = Literal["holds", "does not hold", "reversed", "undecided", "not testable here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Rule:
    """Decides by where the whole interval lies; what is wanted lies on the side of ``holds``.

    >>> faster = Rule(holds=1.5, reverses=1.0)
    >>> [faster(low, high) for low, high in [(1.6, 2.0), (1.1, 1.3), (0.5, 0.9), (1.4, 1.6)]]
    ['holds', 'does not hold', 'reversed', 'undecided']
    >>> small = Rule(holds=0.1, reverses=1.0)
    >>> small(0.0, 0.01), small(2.0, 3.0)
    ('holds', 'reversed')

    Attributes:
        holds: from here on the claim holds.
        reverses: from here on, in the other direction, its opposite does.
    """

    holds: float
    reverses: float

    def __post_init__(self) -> None:
        if self.holds == self.reverses:
            raise ValueError(f"Rule: holds and reverses must differ, got {self.holds:g} twice")

    def __call__(self, low: float, high: float) -> Verdict:
        """Decide on an interval."""
        sign = 1 if self.holds > self.reverses else -1
        worst, best = sorted((sign * low, sign * high))
        if worst >= sign * self.holds:
            return "holds"
        if best <= sign * self.reverses:
            return "reversed"
        return "does not hold" if best < sign * self.holds else "undecided"

    def text(self, unit: str) -> str:
        """Say it before anything is measured."""
        up = self.holds > self.reverses
        wanted, opposite = ("least", "most") if up else ("most", "least")
        marks = {name: f"{value:.3g}{' ' * bool(unit)}{unit}".replace("-", "−") for name, value in vars(self).items()}
        return (
            f"Holds where the whole interval is at {wanted} {marks['holds']}, is reversed where it is at {opposite} "
            f"{marks['reverses']}, is undecided where it crosses {marks['holds']}; otherwise it does not hold."
        )


@dataclass(frozen=True)
class Claim:
    """One claim, and what decides it.

    Attributes:
        key: a word for it; the key of its effect in an observation.
        text: the claim, in a sentence.
        source: who makes it.
        effect: what is measured of every seed.
        rule: decides, fixed before the run.
        unit: of the effect; "×" is a ratio, whose seeds are averaged geometrically.
        timed: whether it is a time, which no seed repeats.
    """

    key: str
    text: str
    source: str
    effect: str
    rule: Rule
    unit: str = "×"
    timed: bool = False


@dataclass(frozen=True)
class Plot:
    """One figure of an experiment; its curves are in the observations, under the same key.

    Attributes:
        kind: lines over a numeric x, bars by the name of x, or pictures (values in rows, 0 black, 1 white).
        logarithmic: the axes that are: "", "x", "y" or "xy".
    """

    key: str
    title: str
    x: str = ""
    y: str = ""
    kind: Literal["lines", "bars", "pictures"] = "lines"
    logarithmic: Literal["", "x", "y", "xy"] = ""


# Values of one name in one figure: y, over x.
Curve = tuple[Sequence[Any], Sequence[Any]]


@dataclass
class Observation:
    """What one seed showed: plain numbers only, so that it is kept as JSON.

    Attributes:
        effects: by the claim's key.
        reasons: why a claim cannot be tested here, by its key.
        figures: numbers behind the effects, by name.
        curves: by the plot's key, then by name: ``{"accuracy": {"batch": (steps, values)}}``.
    """

    effects: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One question, answered by measuring.

    Attributes:
        question: in a sentence.
        protocol: what is trained and measured, and on what.
        claims: the first one decides the experiment's verdict, the others have their own.
        changes: what would change the verdict.
        measure: measures one seed; a function of its module, so that other processes find it.
        plots: the figures.
        data: what it learns from; what is made up by the experiment itself needs no mention.
    """

    question: str
    protocol: str
    claims: tuple[Claim, ...]
    changes: str
    measure: Callable[[Setting, int], Observation]
    plots: tuple[Plot, ...] = ()
    data: tuple[Data, ...] = ("images",)

    def __post_init__(self) -> None:
        if not self.claims:
            raise ValueError(f"{self.slug}: an experiment needs a claim")

    @property
    def module(self) -> str:
        """The module that it is the whole of."""
        return self.measure.__module__

    @property
    def slug(self) -> str:
        """Its name: that of its file, with hyphens."""
        return self.module.rpartition(".")[2].replace("_", "-")


@dataclass(frozen=True)
class Finding:
    """What became of one claim.

    Attributes:
        values: the effect by seed, in the order of seeds.
        effect, low, high: their average and its 95 % bootstrap interval; not a number where there is none.
        reason: why it could not be tested.
    """

    claim: Claim
    values: tuple[float, ...]
    effect: float
    low: float
    high: float
    verdict: Verdict
    reason: str = ""

    @property
    def text(self) -> str:
        """The effect with its interval, in the claim's unit."""
        if not self.values:
            return self.reason or "no seed has finished"
        unit = f" {self.claim.unit}" if self.claim.unit else ""
        return f"{self.effect:.3g}{unit} [{self.low:.3g}, {self.high:.3g}]".replace("-", "−")


@dataclass
class Result:
    """The findings of one experiment, and the seeds that they come from."""

    experiment: Experiment
    setting: Setting
    observations: dict[int, Observation]
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """One for each claim, the deciding one first."""
        return [find(claim, [self.observations[seed] for seed in self.seeds]) for claim in self.experiment.claims]

    @property
    def seeds(self) -> list[int]:
        """The seeds that have finished."""
        return sorted(self.observations)

    @property
    def verdict(self) -> Verdict:
        """That of the first claim."""
        return self.findings[0].verdict


def find(claim: Claim, observations: Sequence[Observation]) -> Finding:
    """Decide a claim by its rule; with less than two seeds there is no interval, and nothing is decided."""
    # A kept seed has null where there was no finite number.
    found = [o.effects.get(claim.key) for o in observations]
    values = [effect for effect in found if effect is not None and math.isfinite(effect)]
    reason = next((o.reasons[claim.key] for o in observations if claim.key in o.reasons), "")
    ratio = claim.unit == "×"
    if not values:
        verdict: Verdict = "not testable here" if reason else "undecided"
        return Finding(claim, (), math.nan, math.nan, math.nan, verdict, reason)
    low, high = bootstrap(values, ratio)
    verdict = claim.rule(low, high) if len(values) > 1 else "undecided"
    return Finding(claim, tuple(values), center(values, ratio), low, high, verdict)
