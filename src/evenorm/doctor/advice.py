"""Which normalizer a model calls for, from what was measured on it: the articles' "when to use each", with numbers.

For each kind of normalizer in the model: how many values a statistic has, how uncertain it is for that, and the
one line that converts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Call

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Advice", "advise"]

# The smallest batches that articles name for batch normalization; what counts are values per channel.
ARTICLES = (8, 16, 32)
FEW_PARAMETERS = 10_000


@dataclass(frozen=True)
class Advice:
    """What to use for one group of layers.

    Attributes:
        layers: how many, and their kind.
        use: the normalizer.
        because: the numbers behind it.
        convert: the line that does it; empty where nothing changes.
    """

    layers: str
    use: str
    because: str
    convert: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(f"{self.layers}: {self.use}", style="bold")
        yield Text(f"    {self.because}")
        if self.convert:
            yield Text(f"    {self.convert}", style="green")


def advise(subject: Subject) -> list[Advice]:
    """Advice for every kind of normalizer that one pass reaches.

    >>> from evenorm.doctor.inputs import Inputs
    >>> subject = Subject(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), Inputs.of(torch.randn(4, 4)))
    >>> [(advice.layers, advice.use) for advice in advise(subject)]
    [('1 batch norm', 'layer norm')]
    """
    if subject.trace is None:
        return []
    return list(_advice(subject, subject.trace.calls))


def _advice(subject: Subject, calls: list[Call]) -> Iterator[Advice]:
    batch = [call for call in calls if call.site.kind == "batch" and call.site.uses_batch(training=True)]
    if batch:
        yield _for_batch_norms(subject, batch)
    for kind, use in (
        ("layer", "layer norm"),
        ("rms", "RMS norm"),
        ("group", "group norm"),
        ("instance", "instance norm"),
    ):
        own = [call for call in calls if call.site.kind == kind]
        if own:
            values = min(call.values for call in own)
            yield Advice(
                _named(own, use),
                use,
                f"its statistics are per sample, over {values} values at least: batch size and sequence length do not "
                f"touch them",
                "",
            )


def _for_batch_norms(subject: Subject, calls: list[Call]) -> Advice:
    samples = subject.inputs.samples if subject.inputs is not None else 0
    size = subject.batch_size or samples
    least = min(calls, key=lambda call: call.values)
    values = max(least.values * size // max(samples, 1), 1)
    vectors = len(least.shape) < 3
    noise = (2 * values) ** -0.5
    measured = (
        f"{values} values per channel at {least.site.path or 'the root'} with a batch of {size}: the scale is "
        f"uncertain by {noise:.0%}"
    )
    if size == 1:
        return Advice(
            *(_named(calls, "batch norm"), "layer norm" if vectors else "group norm"),
            f"{measured}; one sample at a time (online learning) leaves no batch to take statistics of",
            _conversion(vectors),
        )
    if values < ARTICLES[0]:
        return Advice(
            *(_named(calls, "batch norm"), "layer norm" if vectors else "group norm"),
            f"{measured}; articles name {', '.join(map(str, ARTICLES))} as the least",
            _conversion(vectors),
        )
    if values < ARTICLES[-1]:
        return Advice(
            *(_named(calls, "batch norm"), "batch norm with care"),
            f"{measured}; articles name {', '.join(map(str, ARTICLES))} as the least: try `evenorm compare`, or "
            f"synchronize over processes",
            'evenorm.convert(model, to="sync")',
        )
    small = sum(p.numel() for p in subject.model.parameters()) < FEW_PARAMETERS
    return Advice(
        *(_named(calls, "batch norm"), "batch norm"),
        measured + ("; in a network this small a normalizer may cost more time than it saves" if small else ""),
        "",
    )


def _conversion(vectors: bool) -> str:
    return (
        "evenorm.LayerNorm(features) for each BatchNorm1d(features)"
        if vectors
        else 'evenorm.convert(model, to="group")'
    )


def _named(calls: list[Call], name: str) -> str:
    sites: dict[str, Site] = {call.site.path: call.site for call in calls}
    return f"{len(sites)} {name}{'s' * (len(sites) != 1)}"
