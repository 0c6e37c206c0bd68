"""What makes the site's pages: pictures, tables, citations, and the check of public names."""

import ast
import doctest
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import evenorm
from evenorm import Pattern
from evenorm.bench import readme
from evenorm.bench.interval import Interval
from evenorm.bench.machine import machine
from evenorm.bench.row import Row, Timing
from evenorm.bench.run import Command, Run
from fenced import ROOT

sys.path.insert(0, str(ROOT / "docs"))

from generator import block, comparison, evidence, examples, layers, macros, names, performance

DOCS = ROOT / "docs"
WRITTEN = [page for page in DOCS.rglob("*.md") if page.name not in ("evidence.md", "log.md")]


@pytest.mark.parametrize(
    ("text", "shape", "count"),
    [
        ("[n] c [...]", (4, 6, 2, 2), 16),
        ("... [d]", (4, 5, 6), 6),
        ("n (g=2 [c]) [...]", (4, 6, 2, 2), 12),
        ("(k=2 [n]) c [...]", (4, 6, 4), 8),
        ("n [c] h w", (4, 6, 2, 2), 6),
        ("[n] c", (4, 6), 4),
    ],
)
def test_a_picture_colors_what_shares_a_statistic(text: str, shape: tuple[int, ...], count: int) -> None:
    drawn = block.Block(Pattern.parse(text), shape)
    assert drawn.shared.sum() == count
    assert drawn.shared[-1, -1, 0]
    # As the pattern says it: normalizing an input that marks one statistic moves nothing outside of it.
    x = np.random.default_rng(0).normal(size=shape)
    moved = x + 100 * np.random.default_rng(1).normal(size=shape) * drawn.shared.reshape(shape)
    before, after = (evenorm.normalize(torch.from_numpy(v), text).numpy() for v in (x, moved))
    np.testing.assert_array_equal(~np.isclose(before, after).reshape(drawn.shared.shape), drawn.shared)


@pytest.mark.parametrize("module", [block, names])
def test_doctests_of_the_generator(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_docstrings_become_markdown() -> None:
    docstrings = pytest.importorskip("generator.docstrings", reason="griffe is in the extra evenorm[docs]")
    text = """Divide.

    .. math:: y = a,\\quad
        z = b

    As :class:`Norm`, not :func:`elsewhere`.

    >>> 1 + 1
    2
    """
    assert docstrings.markdown(text, frozenset({"Norm"})).split("\n    ") == [
        "Divide.\n",
        "$$",
        "y = a,\\quad z = b",
        "$$\n",
        "As [`Norm`][evenorm.Norm], not `elsewhere`.\n",
        "```pycon",
        ">>> 1 + 1",
        "2",
        "```",
        "",
    ]


def test_a_layer_of_two_dimensions_has_the_source_of_one() -> None:
    docstrings = pytest.importorskip("generator.docstrings", reason="griffe is in the extra evenorm[docs]")
    texts = {
        "Norm1d": "One.\n\n.. math:: y = x\n\nBoth.\n\nArgs:\n    n: size.\n\nShape:\n    (N,).\n\nSource:\n    Who.\n",
        "Norm2d": "Two; see :class:`Norm1d`.\n\nShape:\n    (N, N).\n\n>>> 1\n1\n",
        "Other": "As in :class:`Norm1d`.",
    }
    assert docstrings.completed("Norm2d", texts).split("\n\n") == [
        "Two; see :class:`Norm1d`.",
        ".. math:: y = x",
        "Args:\n    n: size.",
        "Shape:\n    (N, N).",
        "Source:\n    Who.",
        ">>> 1\n1",
    ]
    assert docstrings.completed("Other", texts) == texts["Other"]


def test_formulas_become_mathml() -> None:
    formulas = pytest.importorskip("generator.formulas", reason="latex2mathml is in the extra evenorm[docs]")
    drawn = formulas.drawn('<p>a <span class="arithmatex">\\(x &lt; 1\\)</span></p>')
    assert "<mi>x</mi><mo>&#x0003C;</mo><mn>1</mn>" in drawn
    assert "arithmatex" not in drawn


def test_the_picture_in_the_readme_is_made_of_the_patterns() -> None:
    assert (DOCS / "images" / "normalizers.svg").read_text(encoding="utf-8") == block.sheet()


def test_every_layer_has_its_page() -> None:
    made = layers.pages()
    assert {f"layers/{name}.md" for name in evenorm.layers.__all__ if name != "Layer"} < made.keys()
    page = made["layers/BatchNorm2d.md"]
    assert "| 32 × 64 × 28 × 28 | 64 | 25,088 | 128 | 520 bytes |" in page
    assert "::: evenorm.BatchNorm2d" in page
    assert "| [`GroupNorm`](GroupNorm.md) | `n (g [c]) [...]` | `g c` |" in made["layers/index.md"]
    assert "| [`RMSNorm`](RMSNorm.md) | `... [d]`, not centered | `d` |" in made["layers/index.md"]


def test_every_public_name_is_on_one_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in WRITTEN] + list(layers.pages().values())
    assert names.faults(pages) == []


def test_a_name_without_a_page_is_found() -> None:
    pages = [f"::: evenorm.{name}\n" for name in evenorm.__all__ if name not in ("fold", "explain", "lockstep")]
    pages += ["::: evenorm.explain.explain\n", "::: evenorm.Norm\n", "::: evenorm.Fold\n"]
    assert names.faults(pages) == [
        "evenorm.Fold does not exist",
        "evenorm.fold is on no page",
        "evenorm.lockstep is on no page",
        "evenorm.Norm is on 2 pages",
    ]


EVIDENCE = """# The evidence

| experiment | claim | effect [95 % interval] | seeds | verdict |
|---|---|---|---|---|
| speed | It is faster. | 2.1 × [1.9, 2.3] | 5, full | holds |
| depth | It is deep. | no seed has finished | 0, full | undecided |

## speed

- **holds**: It is faster. (Who, figure 1: “fast”)
  steps without, divided by steps with: 2.1 × [1.9, 2.3]. Holds where the whole interval is at least 2 ×, is reversed …
- **does not hold**: It is ten times as fast. (Who)
  the same: 2.1 × [1.9, 2.3]. Holds where the whole interval is at least 10 ×, …

## depth

- **undecided**: It is deep. (Who)
  layers: no seed has finished. Holds where …
"""


def test_evidence_is_cited_with_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "evidence.md"
    file.write_text(EVIDENCE, encoding="utf-8")
    cited = evidence.read(file)
    link = "([speed](evidence.md#speed))"
    assert str(cited["speed", 1]) == f"*It is faster:* **holds**, 2.1 × [1.9, 2.3], 5 seeds, full {link}"
    assert cited["speed", 2].verdict == "does not hold"
    assert str(cited["depth", 1]) == "not measured yet ([depth](evidence.md#depth))"


def test_every_claim_of_the_evidence_is_read() -> None:
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    assert len(evidence.read(DOCS / "evidence.md")) == len(re.findall(r"^- \*\*", text, re.MULTILINE)) > 90


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_cite_what_the_lab_has(page: Path) -> None:
    assert "{{" not in macros.filled(page.read_text(encoding="utf-8"))


def test_a_citation_of_nothing_is_refused() -> None:
    with pytest.raises(evidence.EvidenceError, match="claim 9 of 'batch-size'"):
        macros.filled("{{ evidence: batch-size 9 }}")


def test_no_figure_is_typed_where_the_lab_has_it() -> None:
    """A verdict or an interval stands in the evidence and nowhere else."""
    for page in WRITTEN:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\*\*(holds|does not hold|reversed|undecided)\*\*", text), page
        assert not re.search(r"\d ?[×%] ?\[[\d.]+, [\d.]+\]", text), page


@pytest.mark.parametrize("page", [ROOT / "README.md", *WRITTEN], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_speed_is_typed(page: Path) -> None:
    """Times and ratios stand where their command is named: the benchmark's block, the evidence, the log."""
    text = page.read_text(encoding="utf-8")
    if page.name == "README.md":
        before, _, rest = text.partition(readme.BEGIN)
        text = before + rest.partition(readme.END)[2]
    assert not re.search(r"\d ?(×(?! \d)|%|[mµn]s\b|[GT]B/s|times (as|faster))", text)


def test_every_cell_of_the_comparison_has_a_source(tmp_path: Path) -> None:
    page = comparison.page(DOCS / "comparison.toml")
    assert len(re.findall(r" \[\[\d+\]\]\(.+?\)", page)) == page.count("\n| **") * len(comparison.LIBRARIES)
    file = tmp_path / "comparison.toml"
    file.write_text('about = "x"\n[sources]\n[[row]]\nwhat = "eps"\nevenorm = ["1e-5", "nowhere"]\n', encoding="utf-8")
    with pytest.raises(comparison.ComparisonError, match="'eps', evenorm: expected a text and its source"):
        comparison.page(file)


def test_sources_of_the_comparison_are_used_and_here() -> None:
    page = comparison.page(DOCS / "comparison.toml")
    toml = (DOCS / "comparison.toml").read_text(encoding="utf-8")
    sources = toml.partition("[sources]")[2].partition("[[row]]")[0]
    for name, address in re.findall(r'^(\w+) = "([^"]+)"$', sources, re.MULTILINE):
        assert f"]({address})\n" in page, f"{name} is the source of no cell"
        made = address.startswith(("layers/", "http"))
        assert made or (DOCS / address).is_file(), address


def test_performance_without_a_run_says_so(tmp_path: Path) -> None:
    page = performance.page(tmp_path)
    assert "No run has been recorded" in page
    assert "make bench" in page
    assert not re.search(r"\d+\.\d", page)


def test_performance_shows_the_newest_run(tmp_path: Path) -> None:
    def interval(value: float) -> Interval:
        return Interval(value, 0.9 * value, 1.1 * value)

    ours = Timing(seconds=interval(0.002), error=1e-7, share=0.25)
    theirs = Timing(seconds=interval(0.005), ratio=interval(2.5), excess=interval(-0.003))
    row = Row(
        *("layers", "BatchNorm2d(64)", "", "BatchNorm2d", "32×64×56×56", "float32", True, "forward", "fresh"),
        *(6_422_528, 25_690_112, 1.0, {"evenorm": ours, "torch": theirs}),
    )
    for date, command in (("2026-01-02", "older"), ("2026-03-04", "evenorm bench layers")):
        Run(machine(), [Command(command, date, "0.0")], [row]).write(tmp_path / f"{date}.json")
    page = performance.page(tmp_path)
    assert "evenorm bench layers" in page
    assert "older" not in page
    assert "benchmarks/2026-03-04.json" in page
    assert "| BatchNorm2d(64) 32×64×56×56 | float32 | forward | fresh | 2 | 2.50 [2.25, 2.75] | 0.25 |" in page
    assert "Nothing was run or measured on a GPU yet" in page
    (tmp_path / "2026-01-02.json").rename(tmp_path / "2026-01-02-gpu.json")
    page = performance.page(tmp_path)
    assert "Nothing was run" not in page
    assert "`benchmarks/2026-01-02-gpu.json`, by `older`" in " ".join(page.split())
    assert "benchmarks/2026-03-04.json" in page


def test_the_readme_shows_the_newest_run_of_the_cpu() -> None:
    file = performance.newest(ROOT / "benchmarks")[0]
    shown = readme.figures(Run.read(file), file.relative_to(ROOT))
    assert f"{readme.BEGIN}\n{shown}{readme.END}" in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "make readme-figures"
    )


def test_examples_are_shown_whole() -> None:
    page = examples.page(ROOT / "examples")
    for file in (ROOT / "examples").glob("*.py"):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert f"## {file.stem}\n\n{said}\n" in page
        assert file.read_text(encoding="utf-8").partition('"""\n\n')[2].strip() in page
