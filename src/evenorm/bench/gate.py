"""The gate: no speed without a result that agrees with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from evenorm.bench.case import Case, Data
from evenorm.bench.expected import Bounded, array, rows, slices, totals
from evenorm.bench.peers import OURS, Outputs

__all__ = ["Verdict", "check"]


@dataclass
class Verdict:
    """How far off each output is: the largest error, its share of the bound, the largest value."""

    errors: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The worst error of an output, in units of the output's largest value."""
        return max((e / (self.largest[name] or 1.0) for name, e in self.errors.items()), default=0.0)

    @property
    def share(self) -> float:
        """The worst share of a bound; 1 is the limit."""
        return max(self.shares.values(), default=0.0)

    @property
    def fault(self) -> str | None:
        """What is wrong, if anything."""
        if not self.shares:
            return "there is no output to compare"
        if self.share <= 1:
            return None
        name = max(self.shares, key=self.shares.__getitem__)
        return f"{name} is off by {self.errors[name]:.2g}, {self.shares[name]:.1f} times its bound"

    def compare(self, name: str, found: Any, expected: Bounded, ours: bool) -> None:
        """Take one output, or a part of it, into the verdict. What is not finite is infinitely wrong."""
        values, bound = expected.values, expected.ours if ours else expected.peers
        difference = np.abs(array(found).reshape(values.shape) - values)
        difference[np.isnan(difference)] = np.inf
        for kept, new in (
            (self.errors, difference),
            (self.shares, difference / bound),
            (self.largest, np.abs(values)),
        ):
            kept[name] = max(kept.get(name, 0.0), float(new.max(initial=0)))


def check(case: Case, data: Data, outputs: Mapping[str, Outputs]) -> dict[str, Verdict]:
    """Compare every variant's outputs with the reference, slice by slice."""
    verdicts = {name: Verdict() for name in outputs}
    outputs = {name: {output: _dense(t) for output, t in found.items()} for name, found in outputs.items()}
    sums = []
    for part in slices(case, data):
        for name, found in outputs.items():
            for output in part.elements.keys() & found.keys():
                given = rows(case, found[output])[part.where]
                verdicts[name].compare(output, given, part.elements[output], name == OURS)
        sums.append(part.sums)
    for output, expected in totals(case, sums).items():
        for name, found in outputs.items():
            if output in found:
                verdicts[name].compare(output, found[output], expected, name == OURS)
    return verdicts


def _dense(values: Any) -> Any:
    """Slices of channels are cut fast where the channels do not lie innermost."""
    return values.detach().contiguous() if isinstance(values, Tensor) else np.ascontiguousarray(values)
