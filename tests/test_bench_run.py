"""The benchmark's command and its files: a row that is finished is kept, whatever happens then."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evenorm.bench import command, machine, readme, session
from evenorm.bench.peers import OURS
from evenorm.bench.row import Descent, Row, Timing
from evenorm.bench.run import Command, Run
from evenorm.bench.saved import Bytes, Saved
from evenorm.cli import app
from rows import row_of, run_of

# Files.


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(row_of(1.0, 2.0), replace(row_of(1.0, 2.0), timings={OURS: Timing(absent="wrong")}))
    run.take(row_of(1.0, 2.0, suite="models", descent=Descent(10, 1e-6, 2.5, 2.25)))
    run.count(Saved("LayerNorm", "norm+relu", "8×8", "float32", 256, Bytes(256, 64), Bytes(512, 32)))
    run.write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == run


def test_a_file_without_what_is_saved_is_read(tmp_path: Path) -> None:
    run = run_of(row_of(1.0, 2.0))
    run.write(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    del content["saved"], content["rows"][0]["descent"]
    (tmp_path / "run.json").write_text(json.dumps(content), encoding="utf-8")
    assert Run.read(tmp_path / "run.json") == run


def test_a_row_is_a_line(tmp_path: Path) -> None:
    rows = [row_of(1.0, 2.0, size=size) for size in ("1×1", "2×2", "3×3")]
    texts = []
    for size in ("1×1", "9×9"):
        run_of(rows[0], replace(rows[1], size=size), rows[2]).write(tmp_path / "run.json")
        texts.append((tmp_path / "run.json").read_text(encoding="utf-8").splitlines())
    assert [a == b for a, b in zip(*texts, strict=True)].count(False) == 1


def test_a_row_measured_again_takes_its_place() -> None:
    run = run_of(row_of(1.0, 2.0), row_of(1.0, 2.0, size="16×16"))
    run.take(row_of(1.0, 3.0))
    run.take(row_of(1.0, 4.0, direction="forward"))
    assert [(row.size, row.ratio("torch")) for row in run.rows] == [("8×8", 3.0), ("16×16", 2.0), ("8×8", 4.0)]


def test_a_command_called_again_stands_once() -> None:
    run = run_of()
    for text, date in (("evenorm bench models", "2026-01-02"), ("evenorm bench", "2026-01-03")):
        run.begin(Command(text, date, "0.0"))
    assert [(c.text, c.date) for c in run.commands] == [
        ("evenorm bench models", "2026-01-02"),
        ("evenorm bench", "2026-01-03"),
    ]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    run_of(row_of(1.0, 2.0)).write(file)

    def full(*_: object, **__: object) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        run_of(row_of(1.0, 3.0)).write(file)
    assert Run.read(file).rows[0].ratio("torch") == 2.0


# Figures for the README.


def test_readme_takes_figures_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    run = run_of(row_of(1.0, 2.0))
    for _ in range(2):
        readme.insert(run, Path("benchmarks/2026-01-01.json"), file)
        text = file.read_text()
        assert text.startswith(f"before\n{readme.BEGIN}\n")
        assert text.endswith(f"{readme.END}\nafter\n")
        assert "2.00×" in text
        assert "old" not in text
    file.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        readme.insert(run, None, file)


def test_figures_are_one_table_of_what_the_file_has() -> None:
    steps = row_of(1.0, 1.5, suite="models", network="ResNet-50", direction="training", elements=10)
    jax = row_of(1.0, 2.0)
    jax.timings["jax"] = row_of(1.0, 9.0).timings["torch"]
    fused = row_of(1.0, 3.0, suite="fused norm+act")
    run = run_of(steps, fused, jax, row_of(1.0, 8.0, size="16×16"), row_of(1.0, 100.0, size="2×2", elements=4))
    table = [line for line in readme.figures(run, None).splitlines() if line.startswith("|")]
    assert table == [
        "| | rows | torch | JAX |",
        "|---|---|---|---|",
        "| layers, float32, forward + backward | 2 | 4.00× | 9.00× (1) |",
        "| fused with activation or residual, float32, forward + backward | 1 | 3.00× | – |",
        "| ResNet-50, training step | 1 | 1.50× | – |",
    ]


def test_figures_say_where_they_are_from_and_what_is_slower() -> None:
    run = run_of(row_of(1.0, 0.5), row_of(1.0, 2.0, size="1×1"))
    run.begin(Command("evenorm bench models", "2026-01-02", "0.5"))
    said = " ".join(readme.figures(run, Path("benchmarks/2026-01-01.json")).split())
    assert "From `benchmarks/2026-01-01.json`, by `evenorm bench` (2026-01-01, load 0.0 at the start); " in said
    assert "`evenorm bench models` (2026-01-02, load 0.5 at the start), on a cpu" in said
    assert "Slower than torch by more than a tenth or 3 µs: 1 of all 2 rows; wrong, so that they" in said
    assert "learning rates" not in said


def test_figures_of_models_name_the_learning_rates_of_equal_losses() -> None:
    descent = Descent(10, 1e-7, 2.5, 2.25)
    steps = row_of(1.0, 1.5, suite="models", network="MobileNetV2", direction="training", descent=descent)
    said = " ".join(readme.figures(run_of(steps), None).split())
    assert "losses are torch's to 1e-4, step by step: MobileNetV2 rate 1e-07, loss 2.5 → 2.25 in 10 steps." in said


def test_figures_say_what_a_command_left_out() -> None:
    run = run_of(row_of(1.0, 2.0))
    run.begin(Command("evenorm bench models", "2026-01-02", "0.5", ["Ctrl-C ended it after 1 of 8 rows"]))
    said = " ".join(readme.figures(run, None).split())
    assert "(2026-01-02, load 0.5 at the start; Ctrl-C ended it after 1 of 8 rows)" in said


# The command.


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("bench")
    printed = subprocess.run(
        [
            *(sys.executable, "-m", "evenorm", "bench", "layers", "--quick", "--against", "torch", "--threads", "1"),
            *("--only", "(BatchNorm2d|RMSNorm|decoding).*float32|U-Net", "--json", folder / "run.json"),
            *("--html", folder / "run.html"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    ).stdout
    return printed, folder


def test_the_table_fits_80_columns(quick_run: tuple[str, Path]) -> None:
    printed, _ = quick_run
    assert max(map(len, printed.splitlines())) <= 80
    assert "RMSNorm · float32 · reused memory" in printed
    assert "slower than torch eager by more than" in printed
    assert "wrong" not in printed


def test_json_holds_every_row(quick_run: tuple[str, Path]) -> None:
    printed, folder = quick_run
    run = Run.read(folder / "run.json")
    assert len(run.rows) == len(re.findall(r" (fwd|bwd|f\+b) +\d", printed.split("slower than")[0]))
    assert run.machine["threads"] == "1"
    (called,) = run.commands
    assert called.text.startswith("evenorm bench layers --against torch")
    assert all(row.ours.error is not None for row in run.rows)
    assert len(json.loads((folder / "run.json").read_text())["rows"]) == len(run.rows)


def test_the_page_loads_nothing(quick_run: tuple[str, Path]) -> None:
    page = (quick_run[1] / "run.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert page.count("<tr") > 10


def test_an_earlier_run_is_shown_again(quick_run: tuple[str, Path]) -> None:
    printed, folder = quick_run
    result = CliRunner().invoke(app, ["bench", "--from", str(folder / "run.json")])
    assert result.exit_code == 0
    assert result.output.strip() in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer"], "SUITE 'layer': expected any of layers, fused, threads, models, saved, dist, monitor"),
        (["--against", "tensorflow"], "--against 'tensorflow': expected any of torch"),
        (["--memory", "old"], "--memory 'old': expected any of fresh, reused"),
        (["--threads", "0"], "--threads 0: expected 1 or more"),
        (["--only", "("], "--only '('"),
        (["--only", "no such row"], "there is no such row"),
        (["--html", "no/such/folder/page.html"], "expected a file in a folder that exists"),
        (["--readme", __file__], "has no line"),
        (["--from", "no-such-file.json"], "no-such-file.json"),
        (["--from", __file__], "expected what evenorm bench --json writes"),
        (["--json", __file__], "expected what evenorm bench --json writes"),
    ],
)
def test_wrong_arguments_are_answered(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == command.WRONG_ARGUMENTS
    assert message in result.stderr


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError])
def test_what_is_finished_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: type[BaseException]) -> None:
    file = tmp_path / "run.json"

    def ended(*_: object) -> Iterator[Row]:
        yield row_of(1e-3, 2e-3)
        raise fault

    monkeypatch.setattr(session, "play", ended)
    result = CliRunner().invoke(app, ["bench", "layers", "--quick", "--json", str(file)])
    assert len(Run.read(file).rows) == 1
    if fault is KeyboardInterrupt:
        assert result.exit_code == command.INTERRUPTED
        assert "2.00×" in result.output
        assert re.search(r"Ctrl-C ended it after 1 of \d+ rows", result.output)
        assert "after 1 of" in Run.read(file).commands[0].notes[-1]
    else:
        assert isinstance(result.exception, fault)


def test_a_file_that_is_there_takes_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = str(tmp_path / "run.json")
    for suite, row in (("layers", row_of(1.0, 2.0)), ("fused", row_of(1.0, 2.0, suite="fused norm+act"))):
        monkeypatch.setattr(session, "play", lambda *_, row=row: iter([row]))
        assert CliRunner().invoke(app, ["bench", suite, "--quick", "--json", file]).exit_code == 0
    run = Run.read(Path(file))
    assert [row.suite for row in run.rows] == ["layers", "fused norm+act"]
    assert [called.text.split()[2] for called in run.commands] == ["layers", "fused"]


def test_figures_of_another_machine_are_not_mixed_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    before = run_of(row_of(1.0, 2.0))
    before.machine = {**machine.machine(), "torch": "1.0"}
    before.write(file)
    monkeypatch.setattr(session, "play", lambda *_: iter([row_of(1.0, 3.0)]))
    result = CliRunner().invoke(app, ["bench", "layers", "--quick", "--json", str(file)])
    assert result.exit_code == command.WRONG_ARGUMENTS
    assert f"another machine (torch: there 1.0, here {machine.machine()['torch']}); name another file" in result.stderr
    assert Run.read(file) == before


def test_what_is_left_out_late_is_kept_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(plans: object, seconds: float, notes: list[str], device: object) -> Iterator[Row]:
        yield row_of(1.0, 2.0)
        notes.append("the rest was left out")

    monkeypatch.setattr(session, "play", late)
    file = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["bench", "layers", "--quick", "--against", "torch", "--json", str(file)])
    assert "the rest was left out" in result.output
    assert Run.read(file).commands[0].notes == ["the rest was left out"]
