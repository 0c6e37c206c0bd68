"""Which normalizer a model calls for, from what was measured on it: the articles' "when to use each", with numbers.

What decides is not the batch size but the values per channel on one process: samples × positions. Articles name 8, 16
and 32 as the least; the standard error of a scale of n values is 1/√(2n).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from evenorm.doctor.probes.geometry import is_synchronized, processes
from evenorm.doctor.probes.padding import marked
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Call

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Advice", "advise"]

LEAST, MIDDLE, ENOUGH = 8, 16, 32
FEW_PARAMETERS = 10_000
CURVE = "the error by batch size: `evenorm lab run batch-size`"
NAMES = {"layer": "layer norm", "rms": "RMS norm", "group": "group norm", "instance": "instance norm"}


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

        from evenorm.doctor.formats.text import Indented

        yield Text(f"{self.layers}: {self.use}", style="bold")
        yield Indented(Text(self.because), first=4)
        if self.convert:
            yield Indented(Text(self.convert, style="green"), first=4, rest=8)


def advise(subject: Subject) -> list[Advice]:
    """Advice for every kind of normalizer that one pass reaches.

    >>> import torch
    >>> from evenorm.doctor.inputs import Inputs
    >>> subject = Subject(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), Inputs.of(torch.randn(4, 4)))
    >>> [(advice.layers, advice.use) for advice in advise(subject)]
    [('1 batch norm', 'layer norm')]
    """
    return [] if subject.trace is None else list(_advice(subject, subject.trace.calls))


def _advice(subject: Subject, calls: Sequence[Call]) -> Iterator[Advice]:
    batch = [call for call in calls if call.site.kind == "batch" and not call.recomputed]
    learning = [call for call in batch if call.site.uses_batch(training=True)]
    if learning:
        yield from _for_batches(learning, Network.of(subject, learning))
    frozen = [call for call in batch if not call.site.uses_batch(training=True)]
    if frozen:
        because = "its statistics are frozen: neither the batch size nor the mode touches them"
        yield Advice(_named(frozen, "frozen batch norm"), "frozen batch norm", because, "")
    for kind, name in NAMES.items():
        own = [call for call in calls if call.site.kind == kind]
        if own:
            yield _for_samples(own, name)


def _for_batches(calls: Sequence[Call], network: Network) -> Iterator[Advice]:
    """For batch norms: layers of one advice together, with the figures of the one that has the fewest values."""
    together: dict[tuple[str, str], list[tuple[Facts, str]]] = {}
    for call in _fewest_of_each(calls):
        facts = Facts.of(call, network)
        use, because, convert = next(found for case in CASES if (found := case(facts)) is not None)
        together.setdefault((use, convert), []).append((facts, because))
    for (use, convert), group in together.items():
        _, because = min(group, key=lambda found: found[0].values)
        yield Advice(_named([facts.call for facts, _ in group], "batch norm"), use, because, convert)


def _fewest_of_each(calls: Sequence[Call]) -> list[Call]:
    """Of each site the call with the fewest values."""
    fewest: dict[Site, Call] = {}
    for call in calls:
        if call.site not in fewest or call.values < fewest[call.site].values:
            fewest[call.site] = call
    return list(fewest.values())


@dataclass(frozen=True)
class Network:
    """What was measured of the whole model.

    Attributes:
        samples: of the batch.
        size: of the training's batches, on one process.
        world: processes that train together.
        repeated: the most calls of one layer in a pass.
        recurrent, attentive: the class of a recurrent layer, and whether there is attention.
        lengths: the shortest and the longest item, where a mask or lengths are given.
        parameters: of the whole model.
    """

    samples: int
    size: int
    world: int
    repeated: int
    recurrent: str | None
    attentive: bool
    lengths: tuple[int, int] | None
    parameters: int

    @staticmethod
    def of(subject: Subject, calls: Sequence[Call]) -> Network:
        """Count."""
        samples = max(subject.inputs.samples, 1) if subject.inputs is not None else 1
        modules = list(subject.model.modules())
        functional = subject.trace.functional if subject.trace is not None else []
        found = marked(subject)
        lengths = found.valid.sum(1) if found is not None else None
        return Network(
            samples=samples,
            size=subject.batch_size or samples,
            world=processes(subject),
            repeated=max(Counter(call.site for call in calls).values()),
            recurrent=next((type(m).__name__ for m in modules if isinstance(m, (nn.RNNBase, nn.RNNCellBase))), None),
            attentive=any(isinstance(m, nn.MultiheadAttention) for m in modules)
            or any(call.name == "attention" for call in functional),
            lengths=None if lengths is None else (int(lengths.min()), int(lengths.max())),
            parameters=sum(p.numel() for p in subject.model.parameters()),
        )


@dataclass(frozen=True)
class Facts:
    """What was measured for one batch norm.

    Attributes:
        network: what was measured of the model around it.
        call: the one with the fewest values per channel.
        values: those, on one process, at the training's batch size.
        synced: whether the layer takes the statistics of all processes.
        vectors: whether its input has no positions.
    """

    network: Network
    call: Call
    values: int
    synced: bool
    vectors: bool

    @staticmethod
    def of(call: Call, network: Network) -> Facts:
        """Count."""
        values = max(call.values * network.size // network.samples, 1)
        return Facts(network, call, values, is_synchronized(call.site), len(call.shape) < 3)

    @property
    def together(self) -> int:
        """Values per channel that the layer takes its statistics from."""
        return self.values * (self.network.world if self.synced else 1)

    @property
    def counted(self) -> str:
        """The count in words."""
        ranks = f" on each of {self.network.world} processes" if self.network.world > 1 else ""
        return (
            f"{self.values} values per channel{ranks} at {self.call.site.path or 'the root'} with a batch of "
            f"{self.network.size}: the scale is uncertain by {(2 * self.together) ** -0.5:.0%}"
        )

    @property
    def per_sample(self) -> tuple[str, str]:
        """A normalizer that does not look at the batch, and the line that puts it in."""
        if self.vectors:
            return "layer norm", "evenorm.LayerNorm(features)  # in place of each BatchNorm1d(features)"
        return "group norm", 'evenorm.convert(model, to="group")'

    @property
    def per_position(self) -> tuple[str, str]:
        """A normalizer that looks at one position alone."""
        return "layer norm", "evenorm.LayerNorm(features)  # over the last axis, in place of each batch norm"


Case = Callable[[Facts], "tuple[str, str, str] | None"]


def _online(facts: Facts) -> tuple[str, str, str] | None:
    if facts.network.size > 1:
        return None
    use, convert = facts.per_sample
    return (
        use,
        f"{facts.counted}; one sample at a time (online learning) leaves no batch to take statistics of",
        convert,
    )


def _recurrent(facts: Facts) -> tuple[str, str, str] | None:
    if facts.network.recurrent is None and (facts.network.repeated < 3 or not facts.vectors):
        return None
    use, convert = facts.per_position
    what = (
        f"{facts.network.recurrent} is recurrent"
        if facts.network.recurrent
        else f"one layer runs {facts.network.repeated} times in a pass"
    )
    return use, f"{what}: each step has statistics of its own, and running averages mix them", convert


def _of_many_lengths(facts: Facts) -> tuple[str, str, str] | None:
    if facts.network.lengths is None or facts.network.lengths[0] == facts.network.lengths[1]:
        return None
    use, convert = facts.per_position
    shortest, longest = facts.network.lengths
    return use, f"items have {shortest} to {longest} positions: padding is in the statistics, unless masked", convert


def _attentive(facts: Facts) -> tuple[str, str, str] | None:
    if not facts.network.attentive:
        return None
    use, convert = facts.per_position
    return use, f"the model has attention, over sequences that vary from batch to batch; {facts.counted}", convert


def _scarce(facts: Facts) -> tuple[str, str, str] | None:
    if facts.together >= ENOUGH:
        return None
    least = f"{facts.counted}; articles name {LEAST}, {MIDDLE} and {ENOUGH} as the least ({CURVE})"
    if facts.network.world > 1 and not facts.synced and facts.values * facts.network.world >= ENOUGH:
        together = f"; all processes have {facts.values * facts.network.world} together"
        return "synchronized batch norm", least + together, 'evenorm.convert(model, to="sync")'
    use, convert = facts.per_sample
    if facts.together < LEAST:
        return use, least, convert
    return f"batch norm with care, or {use}", f"{least}; try both with `evenorm compare`", convert


def _small(facts: Facts) -> tuple[str, str, str] | None:
    if facts.network.parameters >= FEW_PARAMETERS:
        return None
    parameters = f"in a network of {facts.network.parameters:,} parameters"
    because = f"{facts.counted}; {parameters} a normalizer may cost more than it wins"
    return "batch norm, or none", because, "torch.nn.Identity()  # in place of each batch norm, to compare"


def _enough(facts: Facts) -> tuple[str, str, str]:
    return "batch norm", facts.counted, ""


# The first that applies decides.
CASES: tuple[Case, ...] = (_online, _recurrent, _of_many_lengths, _attentive, _scarce, _small, _enough)


def _for_samples(calls: Sequence[Call], name: str) -> Advice:
    """For normalizers that take their statistics from one sample."""
    fewest = min(calls, key=lambda call: call.values)
    where = f"{fewest.values} values at {fewest.site.path or 'the root'}"
    if fewest.values < LEAST and fewest.site.kind in ("group", "instance"):
        because = f"a statistic has {where} at the least: little but signs is left of so few"
        return Advice(_named(calls, name), "group norm of fewer groups", because, "evenorm.GroupNorm(1, channels)")
    because = f"a statistic has {where} at the least, of one sample: batch size and other items do not touch it"
    return Advice(_named(calls, name), name, because, "")


def _named(calls: Sequence[Call], name: str) -> str:
    sites: dict[str, Site] = {call.site.path: call.site for call in calls}
    return f"{len(sites)} {name}{'s' * (len(sites) != 1)}"
