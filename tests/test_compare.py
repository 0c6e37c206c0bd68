"""`evenorm compare`: the rules of its advice, its outputs, and how it stops."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pictures import write_pair

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")

from evenorm.lab.comparison import command, terminal
from evenorm.lab.comparison.advice import choose
from evenorm.lab.comparison.compare import Comparison, Outcome, Protocol, Task, begin, perform
from evenorm.lab.comparison.record import record
from evenorm.lab.comparison.sentences import conclude
from evenorm.lab.data import Images, load
from evenorm.lab.report.comparison import page
from evenorm.lab.training import Run
from evenorm.lab.workers import gather, processes


@pytest.fixture
def images(tmp_path: Path) -> Images:
    write_pair(tmp_path, 60)
    return load(tmp_path)


def without_times(outcome: Outcome) -> Outcome:
    outcome.run.step_seconds = 0.0
    outcome.run.seconds = []
    return outcome


def test_a_task_gives_the_same_twice(images: Images) -> None:
    protocol = Protocol(normalizers=("spectral",), batch_sizes=(48,), model="mlp")
    first, second = (without_times(perform(images, Task("spectral", 48, 2), protocol)) for _ in range(2))
    assert first == second


def test_the_best_trial_gives_the_rate_unless_one_is_asked_for(images: Images) -> None:
    outcome = perform(images, Task("layer", 48, 0), Protocol(model="mlp"))
    assert outcome.rate == min(outcome.trials, key=lambda rate: outcome.trials[rate])
    assert outcome.largest is not None
    assert outcome.trials[outcome.largest] < 0.95 * math.log(2)
    assert perform(images, Task("layer", 48, 0), Protocol(model="mlp", rate=0.07)).rate == 0.07


# Workers


def divide(task: float) -> float:
    return 8.0 / task


def test_workers_give_results_and_faults() -> None:
    with processes(2) as executor:
        found = dict(gather(executor, divide, [1.0, 0.0, 4.0]))
    assert found[1.0] == 8.0
    assert found[4.0] == 2.0
    assert isinstance(found[0.0], ZeroDivisionError)


# Advice


def outcome(accuracy: float, reached: float, memory: int = 1000) -> Outcome:
    run = Run(
        losses=[2.0, 1.0, 0.5],
        accuracy=accuracy,
        train_accuracy=accuracy,
        reached=int(reached) if math.isfinite(reached) else None,
        changed=0.0,
        step_seconds=0.002,
        saved_bytes=memory,
        probed=[0, 2],
        activations={"conv 1": [[-1.0, -0.5, 0.0, 0.5, 1.0], [-2.0, -1.0, 0.0, 1.0, math.inf]]},
        gradients={"conv 1": [1.0, 0.0], "output": [0.5, 0.2]},
    )
    return Outcome({0.1: 0.5, 0.3: math.inf}, 0.1, 0.1, run)


def made_up(
    rows: dict[str, Sequence[tuple[float, float]] | None],
    small: dict[str, Sequence[tuple[float, float]] | None] | None = None,
    seeds: int = 3,
    memory: dict[str, int] | None = None,
) -> Comparison:
    """Comparison with given (accuracy, steps to 90 %) by row and seed, at batch sizes 64 and 4."""
    labels = np.arange(2000) % 10
    pixels = np.zeros((2000, 1, 8, 8), np.uint8)
    images = Images("2,000 images", "made up", tuple("0123456789"), pixels, labels, pixels, labels)
    sizes = (64,) if small is None else (64, 4)
    comparison = begin(Protocol(tuple(rows), sizes, seeds), images)
    for size, given in zip(sizes, (rows, small), strict=False):
        assert given is not None
        for row in comparison.at(size):
            values = given[row.normalizer] or []
            bytes_kept = (memory or {}).get(row.normalizer, 1000)
            row.outcomes = {seed: outcome(*value, bytes_kept) for seed, value in enumerate(values)}
            comparison.finished += len(values)
    return comparison


GOOD = [(0.97, 30), (0.972, 31), (0.968, 29)]
ALSO = [(0.971, 30), (0.969, 30), (0.97, 31)]
SLOW = [(0.97, 60), (0.971, 62), (0.969, 59)]
POOR = [(0.90, 80), (0.902, 82), (0.898, 81)]
LOST = [(0.1, math.inf)] * 3
WILD = [(0.97, 30), (0.1, math.inf), (0.97, 30)]


@pytest.mark.parametrize(
    ("comparison", "rule", "chosen"),
    [
        (made_up({"none": POOR, "batch": GOOD, "layer": POOR}), "accuracy", {64: "batch"}),
        (made_up({"none": SLOW, "batch": GOOD, "layer": POOR}), "steps", {64: "batch"}),
        (made_up({"none": GOOD, "batch": ALSO}, memory={"batch": 2000}), "memory", {64: "none"}),
        (made_up({"none": GOOD, "batch": ALSO}, memory={"none": 2000}), "memory", {64: "batch"}),
        (made_up({"batch": GOOD, "layer": POOR}, {"batch": POOR, "layer": GOOD}), "split", {64: "batch", 4: "layer"}),
        (
            made_up({"batch": GOOD, "layer": ALSO}, {"batch": POOR, "layer": GOOD}),
            "accuracy",
            {64: "layer", 4: "layer"},
        ),
        (made_up({"none": LOST, "batch": LOST}), "nothing", {}),
        (made_up({"none": WILD, "batch": GOOD, "layer": POOR}), "accuracy", {64: "batch"}),
        (made_up({"none": GOOD[:1], "batch": POOR[:1]}, seeds=1), "one seed", {64: "none"}),
    ],
)
def test_every_rule_decides(comparison: Comparison, rule: str, chosen: dict[int, str]) -> None:
    choice = choose(comparison)
    assert (choice.rule, choice.chosen) == (rule, chosen)
    sentences = conclude(comparison).sentences
    assert len(sentences) == 3
    assert all(name in sentences[0] for name in chosen.values() if name != "none")
    assert "evenorm compare" in sentences[2]


def test_noise_is_called_noise() -> None:
    near = conclude(made_up({"none": GOOD, "batch": ALSO}))
    assert "batch is as accurate within noise" in near.recommendation
    far = conclude(made_up({"none": POOR, "batch": GOOD}))
    assert "every other row is less accurate, by more than noise" in far.recommendation
    assert "(no normalization: 90.0 ± 0.2 %; up to" in far.evidence
    assert re.search(r"up to 1\.\d points are noise", far.evidence)


def test_few_images_are_noise_too() -> None:
    """The same accuracies that differ beyond noise on 2,000 images do not on 50."""
    comparison = made_up({"none": [(0.95, 30), (0.951, 30), (0.949, 30)], "batch": GOOD})
    assert choose(comparison).tied == ("batch",)
    few = Images("", "", tuple("0123456789"), *[value[:50] for value in [*vars(comparison.images).values()][3:7]])
    comparison.images = few
    assert choose(comparison).tied == ("none", "batch")


def test_the_next_command_keeps_what_was_asked_for() -> None:
    comparison = made_up({"none": GOOD, "batch": POOR, "layer": ALSO}, memory={"layer": 2000})
    comparison.folder = Path("my images")
    command = conclude(comparison).command
    assert command == "evenorm compare --data 'my images' --norms none,layer --batch-size 64 --seeds 9"


# Outputs


@pytest.fixture
def mixed() -> Comparison:
    """Return a comparison with a row that does not apply, one that has not finished, and a failure."""
    comparison = made_up({"none": POOR, "batch": GOOD, "instance": None, "layer": GOOD[:1]})
    comparison.failures = ["layer, batch size 64, seed 1: RuntimeError: <out of luck>"]
    instance = next(row for row in comparison.rows if row.normalizer == "instance")
    instance.reason = "there is a reason"
    return comparison


def test_the_terminal_output_fits_80_columns(mixed: Comparison) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.summary(mixed, conclude(mixed)))
    lines = console.export_text().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines[: text[: text.index("1. ")].count("\n")])) <= 80
    assert "instance does not apply: there is a reason." in text
    assert "layer: 1 of 3 seeds." in text
    assert "97.0 ± 0.2 *" in text


class Loads(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}={value}" for name, value in attrs if name in {"src", "href", "srcset", "data"}]


def test_the_report_loads_nothing(mixed: Comparison) -> None:
    html = page(mixed, conclude(mixed))
    loads = Loads()
    loads.feed(html)
    assert loads.found == ["link href=data:,"]
    assert "default-src 'none'" in html
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == 1
    assert not re.search(r"url\(|@import|http", styles[0])


def test_the_report_says_what_is_missing(mixed: Comparison) -> None:
    html = page(mixed, conclude(mixed))
    assert "This report is partial." in html
    assert "stopped after 7 of 12 runs" in html
    assert "does not apply: there is a reason" in html
    assert "RuntimeError: &lt;out of luck&gt;" in html
    whole = page(made_up({"none": POOR, "batch": GOOD}), conclude(mixed))
    assert "partial" not in whole.replace("plotly", "")[: whole.index("<script")]


def test_json_has_every_run_and_no_infinity(mixed: Comparison) -> None:
    text = record(mixed, conclude(mixed).sentences)
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["rows"][0]["outcomes"]["2"]["run"]["accuracy"] == 0.898
    assert content["rows"][2]["reason"] == "there is a reason"
    assert content["runs"] == {"finished": 7, "of": 12}
    assert len(content["conclusion"]) == 3


# The command


def arguments(**changes: object) -> dict[str, object]:
    usual: dict[str, object] = {
        "norms": "none",
        "batch_sizes": [64],
        "rate": None,
        "seeds": 1,
        "placement": "before",
        "model": "mlp",
        "folder": None,
        "output": Path("report.html"),
        "show": False,
        "as_json": False,
    }
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"norms": "none,bach"}, "--norms 'bach': expected one of none, batch, layer"),
        ({"batch_sizes": [64, 0]}, "--batch-size 0: expected 1 or more."),
        ({"batch_sizes": [2000]}, "--batch-size 2000: there are 1,438 images to train on; pass fewer."),
        ({"seeds": 0}, "--seeds 0: expected 1 or more."),
        ({"rate": math.nan}, "--lr nan: expected a number above 0."),
        ({"placement": "within"}, "--placement 'within': expected one of before, after."),
        ({"model": "vgg"}, "--model 'vgg': expected one of mlp, cnn, resnet."),
        ({"folder": Path("nowhere")}, "--data nowhere: expected a folder, found nothing there."),
        ({"output": Path("no/where.html")}, "--output no/where.html: expected a file in a folder that exists."),
        ({"norms": "instance"}, "--norms: none applies here (instance: an MLP has one value"),
        ({"norms": "batch", "batch_sizes": [1]}, "--norms: none applies here (batch: a batch of one image"),
    ],
)
def test_a_wrong_argument_is_answered_in_a_line(
    capsys: pytest.CaptureFixture[str], changes: dict[str, object], answer: str
) -> None:
    assert command.run(**arguments(**changes)) == 2  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.err.startswith(f"evenorm compare: {answer}")
    assert said.err.count("\n") == 1
    assert not said.out


COMPARE = [sys.executable, "-m", "evenorm", "compare", "--model", "mlp", "--batch-size", "32", "--norms"]


def test_the_command_end_to_end(tmp_path: Path) -> None:
    write_pair(tmp_path, 60, suffix=".gz")
    done = subprocess.run(
        [*COMPARE, "none,batch,instance", "--seeds", "1", "--data", ".", "--output", "out.html", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [len(row["outcomes"]) for row in content["rows"]] == [1, 1, 0]
    assert "Which normalization" in (tmp_path / "out.html").read_text()


def test_ctrl_c_after_the_first_run_leaves_a_report(tmp_path: Path) -> None:
    write_pair(tmp_path, 60)
    # Rich draws its bars for a terminal only.
    terminal_like = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*COMPARE, "none,layer", "--seeds", "500", "--data", "."],
        cwd=tmp_path,
        env=terminal_like,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    seen = ""
    while not re.search(r"\b[1-9]\d*/1000", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen)):
        read = process.stderr.read(80)
        assert read, seen
        seen += read
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in seen + err
    assert "since this was stopped after" in out
    assert "This report is partial." in (tmp_path / "report.html").read_text()
