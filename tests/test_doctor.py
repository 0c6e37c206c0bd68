"""The examination itself: it changes nothing, and answers whatever it is given."""

import copy
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import evenorm
from doctor_busy import Busy
from evenorm.cli import app
from evenorm.doctor import loading
from evenorm.doctor.examine import admit
from evenorm.doctor.formats import github, html, sarif
from evenorm.doctor.plugin import assert_healthy
from evenorm.doctor.table import table


def test_a_graph_that_waits_is_still_good() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    loss = model(torch.randn(6, 4)).sum()
    evenorm.examine(model, torch.randn(6, 4))
    loss.backward()


def test_findings_say_where_and_what() -> None:
    model = Busy()
    found = evenorm.examine(model, torch.randn(6, 4), select=["EN112", "dead-bias"])
    flipped = next(f for f in found if f.code == "EN112")
    assert not found.ok
    assert (flipped.path, flipped.severity, flipped.evidence["momentum"]) == ("body.1", "error", 0.99)
    assert flipped.file is not None
    assert Path(flipped.file).name == "doctor_busy.py"
    assert flipped.line == inspect.getsourcelines(Busy)[1]
    assert {f.code for f in found} == {"EN112", "EN401"}
    assert str(found).startswith("body.1: error EN112 momentum=0.99 keeps 0.01 of the past")
    assert str(found).endswith(found.summary())
    assert "EN112" in {f.code for f in found.fix()}
    assert evenorm.examine(model, torch.randn(6, 4), select=["EN112"]).ok


def test_codes_are_ignored_by_path() -> None:
    model = Busy()
    found = evenorm.examine(model, select=["EN112"], ignore_paths={"body.*": ["EN1"]})
    assert found.ok
    with pytest.raises(ValueError, match="no rule is called 'EN999'"):
        evenorm.examine(model, ignore=["EN999"])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got Tensor"):
        evenorm.examine(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="intent must be"):
        evenorm.examine(nn.LayerNorm(3), intent="play")  # type: ignore[arg-type]


def test_formats_hold_every_finding() -> None:
    found = evenorm.examine(Busy(), torch.randn(6, 4), select=["EN112"])
    run = json.loads(sarif.document(found))["runs"][0]
    assert [r["ruleId"] for r in run["results"]] == ["EN112"]
    assert run["results"][0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "body.1"
    assert github.document(found).startswith("::error file=")
    assert "EN112" in html.document(found)
    assert found.to_dict()["findings"][0]["fix"] == "evenorm.fix_momentum(model)"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    body = "return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))"
    lines = f"from torch import nn\n\n\ndef build():\n    {body}\n"
    (tmp_path / "examined_project.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["examine", *arguments])


def test_the_command_answers_with_a_code(project: Path) -> None:
    found = call("examined_project:build", "--input", "6,4", "--format", "json", "--select", "EN112")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["findings"][0]["code"] == "EN112"
    assert call("examined_project:build", "--input", "6,4", "--ignore", "EN112").exit_code == 0
    assert call("examined_project:nothing").exit_code == 2
    assert call("examined_project:build", "--input", "six").exit_code == 2


def test_a_batch_that_does_not_run_is_no_success(project: Path) -> None:
    unfit = ("examined_project:build", "--input", "6,5")
    assert call(*unfit).exit_code == 1
    silent = call(*unfit, "--ignore", "EN112")
    assert silent.exit_code == 2
    assert "did not run this batch" in silent.stdout
    with pytest.raises(pytest.fail.Exception, match="did not run this batch"):
        assert_healthy(nn.Linear(4, 4), torch.randn(6, 5))


def test_the_command_obeys_the_project(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.evenorm.examine]\nignore-paths = { "1" = ["EN112"] }\n')
    assert call("examined_project:build").exit_code == 0
    (project / "pyproject.toml").write_text("[tool.evenorm.examine]\nselected = []\n")
    assert call("examined_project:build").exit_code == 2


def test_the_command_fixes(project: Path) -> None:
    pytest.importorskip("safetensors", reason="weights are written with safetensors")
    assert call("examined_project:build", "--fix", "healed.safetensors").exit_code == 1
    assert (project / "healed.safetensors").stat().st_size > 0


TRAINED = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

def trained():
    model = build()
    with torch.no_grad():
        for _ in range(60):
            model(torch.randn(32, 4))
    return model

batches = [5 * torch.randn(32, 4) for _ in range(6)]
"""


@pytest.mark.parametrize("mode", [(), ("--eval", "--intent", "infer")], ids=["training", "evaluation"])
@pytest.mark.parametrize("maker", ["trained", "build"])
def test_the_command_examines_what_was_trained(project: Path, maker: str, mode: tuple[str, ...]) -> None:
    """In either mode, and whether the factory or the checkpoint has the weights."""
    (project / "examined_training.py").write_text(TRAINED)
    module = importlib.import_module("examined_training")
    held: dict[str, Any] = module.trained().state_dict()
    held["other.weight"] = torch.zeros(2)
    torch.save(held, project / "weights.pt")
    checkpoint = ("--state-dict", "weights.pt") if maker == "build" else ()
    given = (f"examined_training:{maker}", "--loader", "examined_training:batches", *checkpoint, *mode)
    found = json.loads(call(*given, "--format", "json").stdout)
    assert "EN110" in {finding["code"] for finding in found["findings"]}
    assert "EN101" not in {finding["code"] for finding in found["findings"]}
    note = "1 tensor of the checkpoint fit nothing, other.weight first"
    assert (note in found["notes"]) == (maker == "build")
    if checkpoint:
        # What is written is the checkpoint's; its variances stay, since the data may be what is wrong.
        call(*given, "--fix", "healed.safetensors")
        healed = loading.state_dict(project / "healed.safetensors")
        for name in ("0.weight", "1.running_var", "2.weight"):
            assert torch.equal(healed[name], held[name])


def test_the_command_lists_explains_shows_and_advises(project: Path) -> None:
    assert "EN112" in call("--rules").stdout
    assert "Why it matters" in call("--explain", "EN112").stdout
    assert call("--explain", "EN999").exit_code == 2
    (shown,) = json.loads(call("examined_project:build", "--input", "6,4", "--table", "--format", "json").stdout)
    rows = shown["layers"]
    assert [(row["path"], row["values"], row["updates"]) for row in rows] == [("1", 6, 1)]
    assert set(rows[0]["gradients"]) == {"weight", "bias"}
    assert shown["other gradients"]["0.weight"] > 0
    advice = json.loads(call("examined_project:build", "--input", "6,4", "--advise", "--format", "json").stdout)
    assert [part["use"] for part in advice] == ["layer norm"]
    assert call("examined_project:build", "--table").exit_code == 2


def test_a_table_has_the_figures_of_a_batch() -> None:
    norm = nn.BatchNorm1d(4).eval()
    norm.load_state_dict({"running_mean": torch.ones(4), "running_var": torch.full((4,), 4.0)}, strict=False)
    subject = admit(norm, torch.tensor([1.0, -1.0, 7.0, -7.0])[:, None].expand(4, 4), intent="infer")
    assert subject.trace is not None
    (row,) = table(subject.trace.calls, {}, {}).rows
    assert (row.mode, row.values, row.mean, row.deviation, row.saturated) == ("evaluation", 4, 0.0, 5.0, 0.5)
    assert row.drift == pytest.approx(0.2)
    assert row.ratio == pytest.approx(4 / 25)


def test_the_plugin_fails_with_the_findings() -> None:
    assert_healthy(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), torch.randn(6, 4))
    with pytest.raises(pytest.fail.Exception, match=r"EN112 momentum=0\.99"):
        assert_healthy(Busy(), torch.randn(6, 4))


def test_a_monitor_notes_every_step() -> None:
    model = Busy()
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)
    with evenorm.Monitor(model, optimizer) as monitor:
        for number in range(4):
            optimizer.zero_grad()
            scale = torch.nan if number == 2 else 1.0
            (model(torch.randn(6, 4)) * scale).sum().backward()
            optimizer.step()
    assert [step.updates for step in monitor.record.steps] == [{"body.1": 1}] * 4
    assert monitor.record.first_broken == 2
    row = monitor.to_dict()["layers"][0]
    assert (row["path"], row["mode"], row["values"]) == ("body.1", "training", 6)
    assert "body.1" in monitor.html()
    assert not any(m._forward_hooks for m in model.modules())
    assert "EN112" in monitor.examination().codes


def test_a_copy_of_a_watched_model_is_not_watched() -> None:
    model = Busy()
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)
    with evenorm.Monitor(model, optimizer) as monitor:
        model(torch.randn(6, 4)).sum().backward()
        optimizer.step()
        copy.deepcopy(model).eval()(torch.randn(6, 4))
    assert not monitor.record.tail.forwards
    assert not monitor.record.tail.calls


def test_a_loader_of_few_batches_is_not_left_out_in_silence() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).train()
    for _ in range(30):
        model(torch.randn(16, 4))
    far = [9 * torch.randn(16, 4) for _ in range(8)]
    few, enough = (evenorm.examine(model, far[0], loader=far[:count], intent="infer") for count in (3, 8))
    assert any("it gave 3 of at least 4 batches" in note for note in few.notes)
    assert not any("batches" in note for note in enough.notes)
    assert "EN110" in {finding.code for finding in enough}
