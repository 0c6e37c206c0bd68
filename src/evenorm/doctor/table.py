"""A table of a model's normalizers: mode, running against batch statistics, activations, gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from evenorm.doctor.formats.html import framed
from evenorm.doctor.formats.text import shown
from evenorm.doctor.sites import Site
from evenorm.doctor.trace import Call

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Row", "Table", "table"]

# By attribute of a row: the heading on a page, and in a terminal.
HEADINGS = {
    "path": ("path", "path"),
    "kind": ("kind", "kind"),
    "mode": ("mode", "mode"),
    "values": ("values per statistic", "values"),
    "mean": ("mean", "mean"),
    "deviation": ("standard deviation", "std"),
    "saturated": ("saturated", "flat"),
    "drift": ("running mean off by", "drift"),
    "ratio": ("running variance over batch's", "ratio"),
    "gradients": ("gradient norms", "gradients"),
    "updates": ("updates", "upd."),
}
LEGEND = (
    "values: per statistic; mean, std: of the input; flat: share beyond 3, where a sigmoid would be flat; drift: of "
    "the running means from the batch's, in standard deviations; ratio: of the running variances to the batch's; "
    "gradients: norms, in the order of the parameters; upd.: updates of the running statistics"
)
# Figures that are words, first of all.
WORDS = 2
SHORT = {"training": "train", "evaluation": "eval"}
# Beyond so many standard deviations a sigmoid or tanh is flat.
SATURATED = 3.0


@dataclass(frozen=True)
class Row:
    """One normalizer.

    Attributes:
        mean, deviation, saturated: of its input; the share beyond three standard deviations of 1, where a sigmoid
            or tanh would be flat.
        drift: distance of the running means from the batch's, in the batch's standard deviations, middle channel.
        ratio: of the running variances to the batch's, middle channel.
        gradients: norm of the gradient by parameter.
        updates: of the running statistics, in the pass or since the step before.
    """

    path: str
    kind: str
    mode: str
    values: int
    mean: float
    deviation: float
    saturated: float
    drift: float | None
    ratio: float | None
    gradients: dict[str, float]
    updates: int


@dataclass(frozen=True)
class Table:
    """The rows, in the order of the calls.

    Attributes:
        gradients: norms of the gradients of all other parameters.
    """

    rows: tuple[Row, ...]
    gradients: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"layers": [asdict(row) for row in self.rows], "other gradients": self.gradients}

    def others(self) -> list[tuple[str, str]]:
        """The other parameters' gradient norms, module by module."""
        modules: dict[str, list[str]] = {}
        for name, norm in self.gradients.items():
            module, _, parameter = name.rpartition(".")
            modules.setdefault(module, []).append(f"{parameter} {shown(norm)}")
        return [(module, ", ".join(norms)) for module, norms in modules.items()]

    def cells(self) -> list[list[str]]:
        """Text, row by row."""
        return [[_cell(getattr(row, name)) for name in HEADINGS] for row in self.rows]

    def html(self) -> str:
        """A page of its own."""
        head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in HEADINGS.values())
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.cells())
        rest = "".join(f"<tr><td>{escape(module)}</td><td>{escape(norms)}</td></tr>" for module, norms in self.others())
        other = f"<table><tr><th>other modules</th><th>gradient norms</th></tr>{rest}</table>" if rest else ""
        return framed("Normalization layers", f"<table><tr>{head}</tr>{body}</table>{other}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table as Grid
        from rich.text import Text

        figures = [name for name in HEADINGS if name != "path"]
        lines = [[HEADINGS[name][1] for name in figures]]
        lines += [[_short(getattr(row, name)) for name in figures] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head, *rest = [
            "  "
            + " ".join(
                c.ljust(w) if i < WORDS else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            for cells in lines
        ]
        yield Text(head, style="bold")
        for row, figures_of_row in zip(self.rows, rest, strict=True):
            # A path may be longer than what a line leaves beside ten figures.
            yield Text(row.path or "(the model)")
            yield Text(figures_of_row)
        yield Text(LEGEND, style="dim")
        if self.gradients:
            other = Grid(box=None, padding=(0, 1, 0, 0))
            other.add_column("other modules", overflow="fold")
            other.add_column("gradient norms")
            for module, norms in self.others():
                other.add_row(Text(module or "(the model)"), norms)
            yield Text()
            yield other


def _short(value: object) -> str:
    """A cell of a terminal: numbers of two digits, and no names of parameters."""
    if isinstance(value, dict):
        return " ".join(map(_short, value.values()))
    if isinstance(value, float):
        return f"{value:.2g}"
    return "" if value is None else SHORT.get(str(value), str(value))


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(number)}" for name, number in value.items())
    return "" if value is None else shown(value)


def table(calls: Iterable[Call], gradients: dict[str, float], updates: dict[str, int]) -> Table:
    """The table of the last call of each site."""
    last: dict[str, Call] = {call.site.path: call for call in calls if not call.recomputed}
    rows = tuple(_row(call, gradients, updates.get(path, 0)) for path, call in last.items())
    own = {f"{row.path}.{name}" if row.path else name for row in rows for name in row.gradients}
    return Table(rows, {name: norm for name, norm in gradients.items() if name not in own})


def _row(call: Call, gradients: dict[str, float], updates: int) -> Row:
    site = call.site
    x = call.x.float()
    prefix = f"{site.path}." if site.path else ""
    drift, ratio = _running(site, call)
    return Row(
        path=site.path,
        kind=site.kind,
        mode="training" if call.training else "evaluation",
        values=call.values,
        mean=float(x.mean()),
        deviation=float(x.std(correction=0)),
        saturated=float((x.abs() > SATURATED).float().mean()),
        drift=drift,
        ratio=ratio,
        gradients={name: gradients[prefix + name] for name in site.parameters if prefix + name in gradients},
        updates=updates,
    )


def _running(site: Site, call: Call) -> tuple[float | None, float | None]:
    """How the running statistics stand to the batch's: drift and ratio."""
    mean, variance = site.running_mean, site.running_var
    if mean is None or variance is None or call.mean is None or call.variance is None or mean.shape != call.mean.shape:
        return None, None
    own = call.variance + 1e-12
    drift = (mean.to(call.mean) - call.mean).abs() * own.rsqrt()
    return float(drift.median()), float((variance.to(own) / own).median())
