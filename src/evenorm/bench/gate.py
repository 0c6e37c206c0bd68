"""The gate: no speed without a result that agrees with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evenorm.bench.case import Case, Data
from evenorm.bench.expected import Bounded, Reference, Where, array
from evenorm.bench.peers import OURS, Outputs

__all__ = ["Verdict", "check"]

_BARE = "y without grad"


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
        difference = np.subtract(array(found).reshape(expected.values.shape), expected.values)
        np.abs(difference, out=difference)
        self._raise(self.errors, name, difference)
        difference /= expected.ours if ours else expected.peers
        self._raise(self.shares, name, difference)
        self._raise(self.largest, name, np.abs(expected.values))

    def merge(self, other: Verdict) -> None:
        """Take another slice's verdict in."""
        for mine, theirs in (
            (self.errors, other.errors),
            (self.shares, other.shares),
            (self.largest, other.largest),
        ):
            for name, value in theirs.items():
                mine[name] = max(mine.get(name, 0.0), value)

    def repeat(self, name: str, other: str) -> None:
        """Say of an output what was found of another."""
        for kept in (self.errors, self.shares, self.largest):
            kept[name] = kept[other]

    @staticmethod
    def _raise(kept: dict[str, float], name: str, values: Any) -> None:
        # A maximum is NaN where one value is.
        most = float(values.max(initial=0))
        kept[name] = max(kept.get(name, 0.0), most if most == most else np.inf)


def check(case: Case, data: Data, outputs: Mapping[str, Outputs]) -> dict[str, Verdict]:
    """Compare every variant's outputs with the reference, slice by slice."""
    exact = Reference(case, data)
    # Half of the time goes where an output lies in another order.
    distinct = {name: _distinct(found) for name, found in outputs.items()}
    laid = {name: {output: exact.rows(t) for output, t in found.items()} for name, found in distinct.items()}

    def judge(where: Where) -> tuple[dict[str, Verdict], dict[str, Any]]:
        part = exact.slice(where)
        verdicts = {name: Verdict() for name in laid}
        for name, found in laid.items():
            for output in part.elements.keys() & found.keys():
                verdicts[name].compare(output, found[output][where], part.elements[output], name == OURS)
        return verdicts, part.sums

    verdicts, sums = {name: Verdict() for name in outputs}, []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for found, part in pool.map(judge, exact.wheres()):
            sums.append(part)
            for name, verdict in found.items():
                verdicts[name].merge(verdict)
    for name in outputs:
        if len(distinct[name]) < len(outputs[name]):
            verdicts[name].repeat(_BARE, "y")
    for output, expected in exact.totals(sums).items():
        for name, given in outputs.items():
            if output in given:
                verdicts[name].compare(output, given[output], expected, name == OURS)
    return verdicts


def _distinct(outputs: Outputs) -> Outputs:
    """The outputs, and the y that is made without gradients only where it has other bits."""
    if not {"y", _BARE} <= outputs.keys():
        return outputs
    same = torch.equal if isinstance(outputs["y"], torch.Tensor) else np.array_equal
    if not same(outputs["y"], outputs[_BARE]):  # type: ignore[arg-type]
        return outputs
    return {name: found for name, found in outputs.items() if name != _BARE}
