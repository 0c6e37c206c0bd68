"""The answer of `explain`: fields for programs, a page of text for people."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from evenorm.explain.drawing import CHOSEN, Drawing, spell_out
from evenorm.kernels import Candidate
from evenorm.pattern import Pattern
from evenorm.plan import Plan
from evenorm.recipe import Recipe
from evenorm.statistics import Batch

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Explanation"]

_WIDTH = 80
_NO_BREAK = "\N{NO-BREAK SPACE}"
_STYLES = {
    CHOSEN: "not dim bold cyan",
    r"^(pattern|input|axes|source|plan|kernels|note)\b": "dim",
    r"^ *[\d,]+ (?=statistic|value|parameter|byte)": "bold",
    r"(?<=\d )reduced\b": "cyan",
    r"\bchosen\b.*": "green",
    r"\bdeclines\b": "yellow",
}


@dataclass(frozen=True, repr=False)
class Explanation:
    """What :func:`evenorm.explain` found. Printed it is a page of text; ``to_dict()`` is for programs.

    Attributes:
        subject: the layer or pattern, as it prints.
        recipe: the normalizer, spelled out.
        pattern: what shares statistics in this call: the recipe's pattern, or the running average's.
        shape, dtype, memory_format, device: the input.
        statistics: how many there are.
        values: values per statistic.
        parameters: values of weight and bias together.
        history_bytes: memory of the running average.
        plan: how a fused kernel walks the memory, or why it cannot.
        candidates: every kernel, with the reason why it declines.
        chosen: the kernel that takes the call; ``None`` where the one that was asked for declines.
        remembers: whether the running average normalizes, and not this batch.
        note: what else is worth knowing.
    """

    subject: str
    recipe: Recipe
    pattern: Pattern
    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_format: str
    device: str
    statistics: int
    values: int
    parameters: int
    history_bytes: int
    plan: Plan | str
    candidates: tuple[Candidate, ...]
    chosen: str | None
    remembers: bool = False
    note: str = ""

    @property
    def drawing(self) -> Drawing:
        """The tensor as cells, in which equal letters share one statistic."""
        return Drawing.of(self.pattern, self.shape, _WIDTH - 2)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and text alone, for JSON."""
        plan = self.plan
        levels = ("batch", "outer", "group", "inner", "span", "count", "stretch")
        return {
            "subject": self.subject,
            "recipe": str(self.recipe),
            "pattern": self.pattern.text,
            "shape": list(self.shape),
            "dtype": _name(self.dtype),
            "memory_format": self.memory_format,
            "device": self.device,
            "axes": [part._asdict() for part in self.drawing.axes],
            "statistics": self.statistics,
            "values_per_statistic": self.values,
            "parameters": self.parameters,
            "history_bytes": self.history_bytes,
            "from_history": self.remembers,
            "plan": None if isinstance(plan, str) else {level: getattr(plan, level) for level in levels},
            "no_plan": plan if isinstance(plan, str) else None,
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "chosen": self.chosen,
            "note": self.note,
        }

    def __str__(self) -> str:
        drawing = textwrap.indent(str(self.drawing), "  ")
        sections = (
            textwrap.wrap(self.subject, _WIDTH) + self._input(),
            drawing.splitlines() + self._legend(),
            self._numbers(),
            self._source() + self._plan() + self._kernels() + _entry("note", self.note),
        )
        return "\n\n".join("\n".join(lines) for lines in sections)

    __repr__ = __str__

    def __rich__(self) -> Text:
        from rich.text import Text

        text = Text(str(self))
        start = text.plain.index("\n\n")
        text.stylize("bold", 0, text.plain.index("\npattern"))
        text.stylize("dim", start, start + 2 + len(textwrap.indent(str(self.drawing), "  ")))
        for pattern, style in _STYLES.items():
            text.highlight_regex(f"(?m){pattern}", style)
        return text

    def _input(self) -> list[str]:
        spelled = spell_out(self.pattern, len(self.shape)).text
        here = f", here {spelled}" if spelled not in ("", self.pattern.text) else ""
        sizes = " × ".join(f"{size:,}" for size in self.shape) or "one number"
        return [
            *_entry("pattern", f"{self.pattern}{here}"),
            *_entry("input", f"{sizes}, {_name(self.dtype)}, {self.memory_format}, on {self.device}"),
            *_entry("axes", " | ".join(str(part).replace(" ", _NO_BREAK) for part in self.drawing.axes)),
        ]

    def _legend(self) -> list[str]:
        if not all(self.shape):
            return []
        shared = "mean and one variance" if self.recipe.centered else "mean square"
        return [
            f"Cells marked {CHOSEN} share one {shared}, and so do equal letters.",
            *textwrap.wrap(self.drawing.caption, _WIDTH),
        ]

    def _numbers(self) -> list[str]:
        affine = self.recipe.affine
        moments = "mean and variance" if self.recipe.centered else "mean square"
        scale = f"{affine.offset:g} + weight" if affine.offset else "weight"
        two = self.parameters > prod(self.pattern.bind(self.shape).sizes(affine.axes))
        names = f"{scale} and bias" if two else scale
        numbers = (
            (self.statistics, "statistics", f"{moments} each"),
            (self.values, "values per statistic", ""),
            (self.parameters, "parameters", f"{names} on {' '.join(affine.axes)}"),
            (self.history_bytes, "bytes of history", "running mean and variance, number of updates"),
        )
        width = max(len(f"{number:,}") for number, _, _ in numbers)
        return [
            f"{number:>{width},} {_counted(number, noun):<22}{detail if number else ''}".rstrip()
            for number, noun, detail in numbers
        ]

    def _source(self) -> list[str]:
        if isinstance(self.recipe.statistics, Batch):
            return _entry("source", "statistics of this batch, in training and in evaluation alike")
        now = "the running average" if self.remembers else "this batch"
        return _entry("source", f"{self.recipe.statistics}; in this call: {now}")

    def _plan(self) -> list[str]:
        plan = self.plan
        if isinstance(plan, str):
            return _entry("plan", f"none: {plan}")
        loops = (f"{name} {getattr(plan, name):,}" for name in ("batch", "outer", "group", "inner"))
        lines = _entry("plan", " × ".join(loops))
        lines += _entry("", "Loops over memory, outermost first; outer and inner are reduced.")
        if plan.x is None:
            lines += _entry("", "The input does not lie in this order and is copied into it first.")
        return lines

    def _kernels(self) -> list[str]:
        width = max(len(candidate.name) for candidate in self.candidates)
        answers = []
        for candidate in self.candidates:
            if candidate.name == self.chosen:
                answer = "chosen" if self.recipe.kernel != self.chosen else "chosen, asked for by name"
            elif candidate.reason is not None:
                answer = f"declines: {candidate.reason}"
            else:
                answer = "could take it too"
            answers.append(f"{candidate.name:<{width}}  {answer}")
        if self.chosen is None:
            answers.append(f"None is chosen: {self.recipe.kernel!r} was asked for by name, so the call fails.")
        return [line for k, text in enumerate(answers) for line in _entry("" if k else "kernels", text)]


def _entry(label: str, text: str) -> list[str]:
    """A text beside its label; nothing where there is no text."""
    lines = textwrap.wrap(text, _WIDTH, initial_indent=f"{label:<9}", subsequent_indent=" " * 9)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _counted(number: int, noun: str) -> str:
    """``1 value per statistic``, ``2 values per statistic``."""
    first, _, rest = noun.partition(" ")
    return noun if number != 1 else f"{first[:-1]} {rest}".strip()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
