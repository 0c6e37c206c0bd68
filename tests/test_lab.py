"""The lab's frame: rules, intervals, kept seeds, executors, the commands."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")
pytest.importorskip("sklearn", reason="the extra evenorm[lab] is not installed")

from evenorm.lab import command, evidence, store
from evenorm.lab.catalog import UnknownExperimentError, catalog, choose
from evenorm.lab.data import DataError
from evenorm.lab.experiment import VERDICTS, Claim, Experiment, Observation, Result, Rule, Verdict, find
from evenorm.lab.experiments import ORDER
from evenorm.lab.interval import bootstrap, center
from evenorm.lab.run import Task, advance, measure, missing, recall, run
from evenorm.lab.setting import SEEDS, Setting
from evenorm.lab.store import Store
from evenorm.lab.text import encode, read
from evenorm.lab.workers import check

CLAIMS = {f"{slug}-{claim.key}": claim for slug, one in catalog().items() for claim in one.claims}


# Rules


def made_up(claim: Claim, verdict: Verdict) -> list[Observation]:
    """Observations that must lead to a verdict: effects on either side of the rule's marks, or none."""
    if verdict == "not testable here":
        return [Observation(reasons={claim.key: "no such machine"})] * 3
    holds, reverses = claim.rule.holds, claim.rule.reverses

    def between(share: float) -> float:
        """A value so far on the way from the mark of reversal to the other; of ratios, on a logarithmic way."""
        if claim.unit == "×":
            return reverses * math.exp(share * math.log(holds / reverses))
        return reverses + share * (holds - reverses)

    values = {
        "holds": [holds, between(1.4), between(1.7)],
        "reversed": [reverses, between(-0.1), between(-0.2)],
        "does not hold": [between(-0.1), between(0.4), between(0.7)],
        "undecided": [holds, between(0.7), between(1.3)],
    }[verdict]
    return [Observation(effects={claim.key: value}) for value in values]


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_every_rule_can_come_out_every_way(claim: Claim) -> None:
    for verdict in VERDICTS:
        assert find(claim, made_up(claim, verdict)).verdict == verdict


def test_one_seed_decides_nothing() -> None:
    claim = Claim("a", "", "", "", Rule(holds=2.0, reverses=1.0))
    assert find(claim, [Observation(effects={"a": 5.0})]).verdict == "undecided"
    assert find(claim, [Observation(effects={"a": 5.0}), Observation(effects={"a": 5.0})]).verdict == "holds"
    assert find(claim, []).verdict == "undecided"


def test_a_rule_needs_two_marks() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Rule(holds=1.0, reverses=1.0)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    intervals = [bootstrap(draw.normal(3.0, 1.0, 20).tolist()) for _ in range(200)]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.98
    assert bootstrap([1.0, 100.0], ratio=True) == pytest.approx((1.0, 100.0))
    assert center([1.0, 100.0], ratio=True) == pytest.approx(10.0)


# The catalog


def test_every_experiment_has_its_place_and_its_words() -> None:
    found = catalog()
    assert set(found) <= set(ORDER), "give it its place in experiments/__init__.py"
    for slug, one in found.items():
        assert one.slug == slug
        assert one.question.endswith("?"), slug
        for words in (one.protocol, one.changes, *(text for c in one.claims for text in (c.text, c.source, c.effect))):
            assert len(words) > 10, (slug, words)
        assert len({claim.key for claim in one.claims}) == len(one.claims), slug
        assert len({plot.key for plot in one.plots}) == len(one.plots), slug


def test_a_wrong_name_is_answered() -> None:
    with pytest.raises(UnknownExperimentError, match=r"'faster-traning'; there is faster-training"):
        choose(["faster-traning"])


# A small experiment, in this module so that other processes find it.


def count(setting: Setting, seed: int) -> Observation:
    if setting.limit == seed:
        raise ArithmeticError("as asked")
    value = float(torch.rand(())) + 2.0
    return Observation(effects={"more": value}, curves={"curve": {"one": ([0, 1], [value, math.inf])}})


def silent(setting: Setting, seed: int) -> Observation:
    return Observation()


def slow(setting: Setting, seed: int) -> Observation:
    end = time.monotonic() + (0.05 if seed == 0 else 60)
    while time.monotonic() < end:
        check()
        time.sleep(0.02)
    return Observation(effects={"more": 2.0})


CLAIM = Claim("more", "There is more.", "this test", "how much more", Rule(holds=1.5, reverses=1.0))
COUNT = Experiment("Is there more?", "Counts.", (CLAIM,), "Less.", count, data=())
SILENT = Experiment("Is it silent?", "Says nothing.", (CLAIM,), "A word.", silent, data=())


def test_a_seed_gives_the_same_twice_and_leaves_no_trace() -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second, other = (measure(Task(COUNT, Setting(), seed)) for seed in (3, 3, 4))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_claim_without_a_word_is_a_failure() -> None:
    with pytest.raises(ValueError, match="no effect and no reason for more"):
        measure(Task(SILENT, Setting(), 0))


def test_any_executor_carries_the_runs_and_a_failed_seed_is_not_fatal(tmp_path: Path) -> None:
    setting, kept = Setting(limit=1), Store(tmp_path)
    results = recall([COUNT], setting, kept)
    tasks = missing(results)
    assert [task.seed for task in tasks] == [0, 1, 2]
    with ThreadPoolExecutor(3) as executor:
        assert {task.seed for task in advance(results, tasks, kept, executor)} == {0, 1, 2}
    assert results[0].seeds == [0, 2]
    assert results[0].failures == {1: "ArithmeticError: as asked"}
    # The finished seeds are there, as they were measured but for what no JSON holds; the failed one comes again.
    again = recall([COUNT], setting, kept)
    assert [task.seed for task in missing(again)] == [1]
    assert again[0].observations[0].effects == results[0].observations[0].effects
    assert again[0].observations[0].curves["curve"]["one"][1][1] is None


def test_processes_carry_the_runs(tmp_path: Path) -> None:
    first, again = (run(["identity"], seeds=2, folder=tmp_path) for _ in range(2))
    assert [result.seeds for result in first] == [[0, 1]]
    assert first[0].findings == again[0].findings


def test_what_a_seed_depends_on_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Store(tmp_path)
    experiment = catalog()["identity"]
    files = [
        kept.file(experiment, setting, seed).name
        for setting, seed in [(Setting(), 0), (Setting(), 1), (Setting("full"), 0), (Setting(limit=3), 0)]
    ]
    monkeypatch.setattr(torch, "__version__", "9.9")
    files.append(kept.file(experiment, Setting(), 0).name)
    assert len(set(files)) == 5


def test_the_key_follows_the_code_and_not_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '"""Words."""\nfrom evenorm.lab.training import stream\n\ndef measure():\n    return 1\n\nEXPERIMENT = 1\n'
    texts = {
        "same": source.replace("Words", "Other words").replace("EXPERIMENT = 1", "EXPERIMENT = 2") + "# a comment\n",
        "other": source.replace("return 1", "return 2"),
    }
    real = store._source

    def digest(text: str) -> str:
        store.code.cache_clear()
        monkeypatch.setattr(store, "_source", lambda name: text if name == "made.up" else real(name))
        return store.code("made.up")

    before = digest(source)
    assert digest(texts["same"]) == before
    assert digest(texts["other"]) != before
    # Something below it, at the second depth: training uses fit.
    changed = real("evenorm.lab.fit").replace("rate * pace(step)", "rate * pace(step) * 2")
    monkeypatch.setattr(
        store, "_source", lambda name: {"made.up": source, "evenorm.lab.fit": changed}.get(name) or real(name)
    )
    store.code.cache_clear()
    assert store.code("made.up") != before
    store.code.cache_clear()


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    kept.save(COUNT, Setting(), 0, Observation(effects={"more": 2.0}))
    file = kept.file(COUNT, Setting(), 0)
    assert kept.load(COUNT, Setting(), 0) == Observation(effects={"more": 2.0})
    file.write_text(file.read_text()[:-5])
    assert kept.load(COUNT, Setting(), 0) is None


# Text


def test_text_is_cut_and_its_targets_follow() -> None:
    text = encode("letters", "abcdefghij" * 2000)
    x, target = next(text.batches(4, 8, steps=1, seed=0))
    assert torch.equal(x[:, 1:], target[:, :-1])
    assert ((x % 10) + 1 == target.where(target != 10, target)).float().mean() > 0.5
    held, _ = text.held_out(5, 8)
    assert held.shape == (5, 8)
    assert text.cut == 18_000


def test_unusable_text_is_answered(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    with pytest.raises(DataError, match="expected a text of 10,000 or more"):
        read(short)
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a readable UTF-8 text"):
        read(short)


def test_the_default_text_ships_with_python() -> None:
    text = Setting().text
    assert len(text.codes) > 100_000
    assert len(text.characters) < 120


# The commands


def result(verdict: Verdict = "holds") -> Result:
    return Result(COUNT, Setting(), dict(enumerate(made_up(CLAIM, verdict))))


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_has_its_own_column(verdict: Verdict) -> None:
    page = evidence.markdown([result(verdict)])
    heads, _, cells = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    )
    assert dict(zip(heads, cells, strict=True))["verdict"] == verdict
    assert cells[0] == "test-lab"


def test_the_committed_evidence_has_a_row_for_every_experiment() -> None:
    page = (Path(__file__).parents[1] / "docs" / "evidence.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("|")
    ]
    verdicts = {row[0].strip("| "): row[-1].strip("| ") for row in rows[2:]}
    assert list(verdicts) == list(catalog())
    assert set(verdicts.values()) <= set(VERDICTS)


def test_json_holds_every_seed() -> None:
    read_back = json.loads(evidence.records([result()]))
    assert read_back[0]["verdict"] == "holds"
    assert len(read_back[0]["seeds"]) == 3
    assert read_back[0]["claims"][0]["interval"] == pytest.approx([1.5, 1.5**1.7])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["run", "no-such-thing"], "no experiment is called 'no-such-thing'"),
        (["run", "identity", "--scale", "huge"], "--scale 'huge': expected one of quick, full, large"),
        (["run", "identity", "--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["run", "identity", "--workers", "0"], "--workers 0: expected 1 or more"),
        (["run", "identity", "--data", "nowhere"], "--data nowhere: nothing there"),
        (["run"], "pass --all"),
        (["report", "--store", "nowhere"], "evenorm lab run --all"),
    ],
)
def test_a_wrong_argument_is_answered(arguments: list[str], answer: str) -> None:
    from typer.testing import CliRunner

    from evenorm.cli import app

    done = CliRunner().invoke(app, ["lab", *arguments])
    assert done.exit_code == 2
    assert answer in " ".join(done.stderr.replace("│", " ").split())


def test_the_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.show(as_json=True) == 0
    assert [row["experiment"] for row in json.loads(capsys.readouterr().out)] == list(catalog())


def test_ctrl_c_keeps_what_had_finished(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_lab as t\n"
        "from evenorm.lab import command\n"
        "from dataclasses import replace\n"
        "command.choose = lambda names: [replace(t.COUNT, measure=t.slow)]\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(command.run(command.Order(folder=Path(sys.argv[2])), 1, False))\n"
    )
    file = tmp_path / "interrupted.py"
    file.write_text(script)
    words = [sys.executable, str(file), str(Path(__file__).parent), str(tmp_path / "kept")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "kept").rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == command.INTERRUPTED, err
    assert "goes on from there" in err
    assert "Traceback" not in err
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 1


def test_scales_grow() -> None:
    assert list(SEEDS.values()) == sorted(SEEDS.values())
    assert SEEDS["quick"] == 3
    assert SEEDS["full"] >= 5
