"""`evenorm compare`: data, training, the rules of its advice, its outputs, and how it stops."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")

from PIL import Image

from evenorm.lab import workers
from evenorm.lab.comparison import command, terminal
from evenorm.lab.comparison.advice import choose
from evenorm.lab.comparison.compare import Comparison, Outcome, Protocol, Task, begin, perform
from evenorm.lab.comparison.record import record
from evenorm.lab.comparison.sentences import conclude
from evenorm.lab.data import Bytes, DataError, Images, Labels, load, stratify
from evenorm.lab.networks import MODELS, PLACEMENTS, Model, Placement, build
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.probes import SavedBytes
from evenorm.lab.report.comparison import page
from evenorm.lab.training import Run, Schedule, predictions, train
from evenorm.lab.workers import gather, processes

# Data


def stripes(count: int, side: int = 8, classes: int = 2) -> tuple[Bytes, Labels]:
    """Images (count, side, side) that a network can tell apart: class k is bright in its own rows."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes
    pixels = draw.integers(0, 60, (count, side, side))
    for index, label in enumerate(labels):
        pixels[index, label::classes] += 150
    return pixels.astype(np.uint8), labels.astype(np.int64)


def write_idx(path: Path, values: Bytes) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_pair(folder: Path, count: int, prefix: str = "t10k", suffix: str = "") -> tuple[Bytes, Labels]:
    pixels, labels = stripes(count)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    return pixels, labels


@pytest.fixture
def images(tmp_path: Path) -> Images:
    write_pair(tmp_path, 60)
    return load(tmp_path)


def test_without_a_folder_the_digits() -> None:
    images = load(None)
    assert (len(images.train_labels), len(images.test_labels)) == (1438, 359)
    assert images.shape == (1, 8, 8)
    assert len(images.classes) == 10


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_lone_idx_pair_is_cut(tmp_path: Path, suffix: str) -> None:
    pixels, labels = write_pair(tmp_path, 50, suffix=suffix)
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (40, 10)
    read = {image.tobytes(): label for image, label in zip(images.train_pixels, images.train_labels, strict=True)}
    read |= {image.tobytes(): label for image, label in zip(images.test_pixels, images.test_labels, strict=True)}
    assert read == {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}


def test_two_idx_pairs_are_not_cut(tmp_path: Path) -> None:
    pixels, _ = write_pair(tmp_path, 30, "train", ".gz")
    write_pair(tmp_path, 12)
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (30, 12)
    assert np.array_equal(images.train_pixels[:, 0], pixels)


def test_every_class_is_cut_alike() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    larger, smaller = stratify(labels)
    assert np.bincount(labels[smaller]).tolist() == [20, 10, 2]
    assert sorted([*larger, *smaller]) == list(range(160))


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 40).save(path)


def test_class_folders_are_resized(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        for index in range(5):
            save(tmp_path / name / f"{index}.png", (60 + index, 40))
    images = load(tmp_path)
    assert images.classes == ("cats", "dogs")
    assert images.shape == (3, 32, 32)
    assert "resized to 32 × 32 pixels" in images.origin
    assert np.bincount(images.test_labels).tolist() == [1, 1]


def test_small_gray_pictures_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(2):
            save(tmp_path / name / f"{index}.png", (12, 10), "L")
    images = load(tmp_path)
    assert images.shape == (1, 10, 12)
    assert "12 × 10 pixels as they are" in images.origin


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    for name, level in (("a", 257 * 7), ("b", 65535)):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.full((8, 8), level, np.uint16)).save(tmp_path / name / f"{index}.png")
    images = load(tmp_path)
    assert np.unique(images.train_pixels).tolist() == [7, 255]


def test_class_folders_cut_already(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for index in range(count):
                save(tmp_path / part / name / f"{index}.png", (8, 8), "L")
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (6, 4)


def no_labels(folder: Path) -> None:
    write_pair(folder, 20)
    (folder / "t10k-labels-idx1-ubyte").unlink()


def too_few_labels(folder: Path) -> None:
    write_pair(folder, 20)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))


def cut_short(folder: Path) -> None:
    write_pair(folder, 20)
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def damaged_gzip(folder: Path) -> None:
    write_pair(folder, 20, suffix=".gz")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def one_class(folder: Path) -> None:
    save(folder / "cats" / "0.png", (8, 8))
    save(folder / "cats" / "1.png", (8, 8))


def rare_class(folder: Path) -> None:
    one_class(folder)
    save(folder / "dogs" / "0.png", (8, 8))


def no_picture(folder: Path) -> None:
    rare_class(folder)
    (folder / "dogs" / "1.png").write_text("a dog")


def tiny_pictures(folder: Path) -> None:
    for name in ("a", "b"):
        for index in range(2):
            save(folder / name / f"{index}.png", (3, 3))


@pytest.mark.parametrize(
    ("prepare", "answer"),
    [
        (lambda folder: None, "no labeled images there (found: nothing). Pass a folder with IDX files"),
        (no_labels, "no labels of the same name beside it (labels found: none). Expected t10k-labels-idx1-ubyte"),
        (too_few_labels, "holds 20 images and t10k-labels-idx1-ubyte 19 labels"),
        (cut_short, "the header promises 1,280 values of shape (20, 8, 8), the file holds 1,275"),
        (damaged_gzip, "a damaged gzip file"),
        (one_class, "found one class, 'cats'"),
        (rare_class, "class 'dogs' has fewer than 2 images"),
        (no_picture, "not a readable picture"),
        (tiny_pictures, "3 × 3 pixels; at least 4 × 4"),
    ],
)
def test_unusable_data_is_answered(tmp_path: Path, prepare: Callable[[Path], None], answer: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError) as fault:
        load(tmp_path)
    assert answer in str(fault.value)
    assert "\n" not in str(fault.value)


# Networks and training


APPLY = [
    (model, name, placement)
    for model in MODELS
    for name in NORMALIZERS
    for placement in PLACEMENTS
    if not NORMALIZERS[name].declines(model, 8)
]


@pytest.mark.parametrize(("model", "name", "placement"), APPLY)
def test_measuring_changes_no_bit(images: Images, model: Model, name: str, placement: Placement) -> None:
    def trained(measure: bool) -> tuple[dict[str, torch.Tensor], Run]:
        network = build(model, images.shape, 2, NORMALIZERS[name], placement, seed=1)
        run = train(network, images, Schedule(8, 6, 0.1, 1), measure)
        return network.state_dict(), run

    (plain, quiet), (probed, loud) = trained(False), trained(True)
    assert all(torch.equal(plain[key], probed[key]) for key in plain)
    assert quiet.losses == loud.losses
    assert len(loud.probed) == 6
    layers = [layer for layer, _ in build(model, images.shape, 2, NORMALIZERS[name], placement).hidden()]
    assert list(loud.activations) == layers
    assert list(loud.gradients) == [*layers, "output"]
    assert all(norm > 0 for norms in loud.gradients.values() for norm in norms[:1])
    assert loud.saved_bytes > 0


def test_rows_start_from_the_same_weights() -> None:
    starts = []
    for row in NORMALIZERS.values():
        weights = [block.linear.weight for _, block in build("cnn", (1, 8, 8), 10, row, seed=3).hidden()]
        # Spectral normalization divides them by their norm.
        starts.append(
            [torch.nn.functional.normalize(w.flatten(), dim=0) for w in weights if isinstance(w, torch.Tensor)]
        )
        assert len(starts[-1]) == 4
    for other in starts[1:]:
        for first, second in zip(starts[0], other, strict=True):
            torch.testing.assert_close(first, second)


def test_a_network_learns(images: Images) -> None:
    network = build("cnn", images.shape, 2, NORMALIZERS["batch"])
    run = train(network, images, Schedule(8, 40, 0.1, 0))
    assert run.accuracy == 1.0
    assert run.reached is not None
    assert 0 < run.reached < 40
    assert run.losses[-1] < 0.3 < run.losses[0]
    assert np.array_equal(predictions(network, images, images.test_pixels), images.test_labels)


def test_batch_statistics_make_a_gap_and_others_none(images: Images) -> None:
    def changed(name: str) -> float:
        network = build("mlp", images.shape, 2, NORMALIZERS[name])
        return train(network, images, Schedule(2, 2, 0.01, 0)).changed

    assert changed("batch") > 0
    assert changed("layer") == 0


def test_divergence_is_seen_and_ends_the_run(images: Images) -> None:
    network = build("mlp", images.shape, 2, NORMALIZERS["none"])
    run = train(network, images, Schedule(8, 50, 1e30, 0))
    assert run.diverged
    assert len(run.losses) < 50
    assert run.last_loss() == math.inf


def test_a_run_stops_when_asked(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("mlp", images.shape, 2, NORMALIZERS["none"])
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(workers, "_stop", stop)
    with pytest.raises(workers.Stopped):
        train(network, images, Schedule(8, 50, 0.1, 0))


def test_saved_bytes_counts_a_storage_once() -> None:
    x, weight = torch.ones(10, 10, requires_grad=True), torch.ones(10, 10, requires_grad=True)
    memory = SavedBytes()
    with memory.watching([weight]):
        y = x * weight
        assert (y @ weight + y.T @ weight).shape == (10, 10)
    # x for the product and y for both; the weight is apart.
    assert memory.total == 800


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
