"""The end of a comparison in three plain sentences: recommendation, figures, next command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenorm.lab.comparison.advice import Choice, accuracy_noise, best, choose, find
from evenorm.lab.comparison.compare import Comparison, Protocol, Row


@dataclass(frozen=True)
class Conclusion:
    """Three sentences; the last one ends in a command."""

    recommendation: str
    evidence: str
    next: str
    command: str

    @property
    def sentences(self) -> tuple[str, str, str]:
        """The three, as text."""
        return self.recommendation, self.evidence, f"{self.next}: {self.command}"


def conclude(comparison: Comparison) -> Conclusion:
    """Say what follows from a comparison with at least one result."""
    choice = choose(comparison)
    return Conclusion(recommendation(choice), evidence(comparison, choice), *next_step(comparison, choice))


def recommendation(choice: Choice) -> str:
    """Say what to use and which rule decided."""
    where = at_sizes(choice.chosen)
    parts = [f"{called(name)} at batch size {size}" for size, name in choice.chosen.items()]
    if choice.rule == "nothing":
        return "No recommendation: no network learned more than to name the most frequent class."
    if choice.rule == "one seed":
        first = listed(list(dict.fromkeys(parts)))
        return f"No recommendation: {first} came out first, but one seed cannot tell that from noise."
    if choice.rule == "split":
        return f"Use {listed(parts)}: no row is among the most accurate at every batch size."
    chosen = next(iter(choice.chosen.values()))
    others = [name for name in choice.tied if name != chosen]
    use = f"Use {called(chosen)} for this data"
    if choice.rule == "accuracy":
        return f"{use}: {where} every other row is less accurate, by more than noise."
    tie = f"{listed(others)} {'is' if len(others) == 1 else 'are'} as accurate within noise {where}"
    if choice.rule == "steps":
        return f"{use}: {tie}, but {chosen} reaches 90 % in fewer steps, by more than noise."
    return f"{use}: {tie}, steps to 90 % decide nothing beyond noise either, and it takes the least memory."


def evidence(comparison: Comparison, choice: Choice) -> str:
    """Give the figures behind the recommendation."""
    if choice.rule == "nothing":
        tops = [best(rows) for size in comparison.protocol.batch_sizes if (rows := comparison.shown(size))]
        parts = [f"{percent(top)} at batch size {top.batch_size} ({top.normalizer})" for top in tops]
        return f"The highest accuracies on held-out images are {listed(parts)}."
    parts = [figures(comparison, find(comparison, name, size)) for size, name in choice.chosen.items()]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def figures(comparison: Comparison, row: Row) -> str:
    """Give a row's figures, and beside them those of the row to hold it against."""
    others = [other for other in comparison.shown(row.batch_size) if other is not row]
    right, pace = "", ""
    if others:
        rival = next((other for other in others if other.normalizer == "none"), best(others))
        noise = accuracy_noise(comparison, row.batch_size)
        margin = noise.margin(len(row.outcomes), len(rival.outcomes))
        hidden = f"; up to {100 * margin:.1f} points are noise" if math.isfinite(margin) else ""
        right = f" ({called(rival.normalizer)}: {percent(rival)}{hidden})"
        pace = f" ({reached(rival)})"
    return (
        f"at batch size {row.batch_size} {row.normalizer} gets {percent(row)} of held-out images right{right} "
        f"and reaches 90 % {reached(row)}{pace}"
    )


def next_step(comparison: Comparison, choice: Choice) -> tuple[str, str]:
    """Say what to do next, and the command for it."""
    protocol = comparison.protocol
    if comparison.partial:
        far = f"{comparison.finished} of {comparison.total} runs"
        return f"Next, since this was stopped after {far}, run it whole", invocation(comparison)
    if choice.rule == "nothing":
        other = "cnn" if protocol.model == "mlp" else "mlp"
        return (
            "Next, look at the images and their labels, then try another network",
            invocation(comparison, model=other),
        )
    if choice.rule == "one seed":
        return "Next, to tell a difference from noise", invocation(comparison, seeds=Protocol().seeds)
    if choice.rule == "memory" and len(choice.tied) < len(protocol.normalizers):
        return (
            "Next, to tell the tied rows apart with more seeds",
            invocation(comparison, norms=",".join(choice.tied), seeds=3 * protocol.seeds),
        )
    if protocol.model in ("mlp", "cnn"):
        other = "mlp" if protocol.model == "cnn" else "resnet"
        return (
            "Next, to see whether that holds in another network",
            invocation(comparison, model=other),
        )
    if comparison.folder is None:
        return "Next, to see whether that holds for your images", "evenorm compare --data DIR"
    return "Next, to see whether that holds with more seeds", invocation(comparison, seeds=3 * protocol.seeds)


def invocation(comparison: Comparison, **changes: object) -> str:
    """Return the command that makes this comparison, with some options changed."""
    protocol, usual = comparison.protocol, Protocol()
    options: dict[str, object] = {}
    if comparison.folder is not None:
        options["data"] = shlex.quote(str(comparison.folder))
    if protocol.model != usual.model:
        options["model"] = protocol.model
    if protocol.placement != usual.placement:
        options["placement"] = protocol.placement
    if protocol.normalizers != usual.normalizers:
        options["norms"] = ",".join(protocol.normalizers)
    if protocol.batch_sizes != usual.batch_sizes:
        options["batch-size"] = protocol.batch_sizes
    if protocol.rate is not None:
        options["lr"] = f"{protocol.rate:g}"
    if protocol.seeds != usual.seeds:
        options["seeds"] = protocol.seeds
    words = ["evenorm compare"]
    for name, value in {**options, **changes}.items():
        each = value if isinstance(value, tuple) else (value,)
        words += [f"--{name} {entry}" for entry in each]
    return " ".join(words)


def called(name: str) -> str:
    """Return a row's name in a sentence."""
    return "no normalization" if name == "none" else f"{name} normalization"


def listed(parts: Sequence[str]) -> str:
    """Join parts as a sentence does.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def at_sizes(sizes: Iterable[int]) -> str:
    """Return where something holds.

    >>> at_sizes([64, 4])
    'at batch sizes 64 and 4'
    """
    named = [str(size) for size in sizes]
    return f"at batch size{'s' * (len(named) > 1)} {listed(named)}" if named else ""


def percent(row: Row) -> str:
    """Return a row's accuracy, with its spread where there are several seeds."""
    spread = f" ± {100 * row.accuracy_spread:.1f}" if len(row.outcomes) > 1 else ""
    return f"{100 * row.accuracy:.1f}{spread} %"


def reached(row: Row) -> str:
    """Return when a row reached 90 %."""
    return f"after {row.median_steps:.0f} steps" if math.isfinite(row.median_steps) else f"in none of {row.steps} steps"
