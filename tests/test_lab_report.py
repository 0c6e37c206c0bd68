"""The lab's page: whole, honest about what is missing, and well-mannered in a browser."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")
pytest.importorskip("sklearn", reason="the extra evenorm[lab] is not installed")

from browser import MISSING, NARROW, WIDE, opened, violations
from evenorm.lab import curves
from evenorm.lab.experiment import VERDICTS, Claim, Experiment, Observation, Plot, Result, Rule, Verdict
from evenorm.lab.report.claims import page, write
from evenorm.lab.setting import Setting

IN_A_BROWSER = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

VALUES: dict[Verdict, list[float]] = {
    "holds": [2.0, 2.1, 2.3],
    "does not hold": [1.2, 1.3, 1.1],
    "reversed": [0.5, 0.6, 0.4],
    "undecided": [1.2, 2.5, 1.0],
    "not testable here": [],
}
PLOTS = (
    Plot("curve", "A curve & its <range>", "step", "loss, nats", logarithmic="xy"),
    Plot("bar", "Bars", "", "error, %", kind="bars"),
    Plot("picture", "Pictures", kind="pictures"),
)


def result(verdict: Verdict) -> Result:
    """A result of every kind of figure, of three seeds that lead to a verdict."""
    claim = Claim("a", f"It {verdict} & <more>.", "someone", "what was measured", Rule(holds=1.5, reverses=1.0))
    observations = {}
    for seed in range(3):
        picture = [[0.1 * seed, 1.0], [0.5, 0.0]]
        observations[seed] = Observation(
            effects={"a": VALUES[verdict][seed]} if VALUES[verdict] else {},
            reasons={} if VALUES[verdict] else {"a": "there is no such machine"},
            figures={"steps": 10.0 + seed, "never": math.nan},
            curves={
                "curve": {name: ([1, 10, 100], [3.0 + seed, 2.0, None]) for name in ("none", "batch", "batch, late")},
                "bar": {"held-out": (["none", "batch"], [4.0 + seed, 2.0])},
                "picture": {"before": (picture, []), "after": (picture, [])},
            },
        )

    def nothing(setting: Setting, seed: int) -> Observation:
        raise NotImplementedError

    nothing.__module__ = f"made.it_{verdict.replace(' ', '_')}"
    experiment = Experiment(f"Does it {verdict}?", "As made up here.", (claim,), "Nothing.", nothing, PLOTS, ())
    return Result(experiment, Setting(), observations, {3: "ValueError: <as asked>"})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lab") / "lab.html"
    write([result(verdict) for verdict in VERDICTS], output)
    return output


def test_the_page_says_everything_and_loads_nothing(file: Path) -> None:
    html = file.read_text(encoding="utf-8")
    body = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    for verdict in VERDICTS:
        assert f"data-verdict='{verdict}'" in body
    for words in (
        "Provisional",
        "there is no such machine",
        "ValueError: &lt;as asked&gt;",
        "Nothing.",
        "2.13 × [2, 2.3]",
    ):
        assert words in body or words.replace(" [", "</span> <span class='kept'>[") in body, words
    assert "evenorm lab run it-does-not-hold --scale quick" in body
    assert "<more>" not in body
    assert not re.search(r"(src|href)='?\"?(https?:)?//", body)
    assert body.count("<img src='data:image/png;base64,") == 2 * len(VERDICTS)


def test_full_runs_are_not_provisional() -> None:
    full = result("holds")
    full.setting = Setting("full")
    assert "Provisional" not in page([full])


def test_curves_are_means_with_the_range_of_the_seeds() -> None:
    drawn = curves.figures(result("holds"))
    assert [figure.title for figure in drawn] == ["A curve & its <range>", "Bars"]
    reach, middle = drawn[0].traces[:2]
    assert middle["x"] == [1, 10, 100]
    assert middle["y"] == [4.0, 2.0, None]
    assert reach["y"][:2] == [3.0, 2.0]
    assert reach["y"][-1] == 5.0
    assert middle["line"]["color"] == "--none"
    assert drawn[0].layout["xaxis"]["type"] == drawn[0].layout["yaxis"]["type"] == "log"
    (bar,) = drawn[1].traces
    assert bar["y"] == [5.0, 2.0]
    assert bar["error_y"]["array"] == [1.0, 0.0]


class TestPage:
    pytestmark = IN_A_BROWSER

    @pytest.mark.parametrize(
        ("width", "scheme"),
        [
            (WIDE, "light"),
            (NARROW, "dark"),
            pytest.param(WIDE, "dark", marks=pytest.mark.slow),
            pytest.param(NARROW, "light", marks=pytest.mark.slow),
        ],
    )
    def test_manners(self, chromium: Any, file: Path, width: int, scheme: Any) -> None:
        with opened(chromium, file, width=width, scheme=scheme) as shown:
            shown.page.evaluate("for (const group of document.querySelectorAll('details')) group.open = true")
            shown.read()
            assert shown.overflow <= 0
            assert violations(shown.page) == []
            assert shown.complaints == []
            assert shown.left == []
            assert shown.page.locator(".plot").count() == shown.page.locator(".plot:has(svg.main-svg)").count() > 0

    def test_the_keyboard_hides_a_verdict(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            rows = shown.page.locator("table.claims tbody tr:visible")
            assert rows.count() == len(VERDICTS)
            shown.page.locator(".filters button").first.focus()
            shown.page.keyboard.press("Enter")
            assert rows.count() == len(VERDICTS) - 1
            shown.page.keyboard.press("Enter")
            assert rows.count() == len(VERDICTS)

    def test_it_prints_with_its_plots(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            assert len(shown.page.pdf()) > 20_000
            assert shown.complaints == []
