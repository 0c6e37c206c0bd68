"""The examination itself: it changes nothing, and answers whatever it is given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import evenorm
from evenorm.cli import app
from evenorm.doctor.formats import github, html, sarif
from evenorm.doctor.plugin import assert_healthy
from evenorm.doctor.snapshot import undisturbed


class Busy(nn.Module):
    """A model that changes everything that a forward can change."""

    passes: ClassVar[int] = 0

    def __init__(self, fault: type[BaseException] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.Dropout(0.5))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.seen: list[Tensor] = []
        self.count, self.fault = 0, fault

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        Busy.passes += 1
        self.seen.append(x)
        self.frozen.data.mul_(0.5)
        torch.rand(3)
        self.body[2].eval()
        if self.fault is not None and Busy.passes > 2:
            raise self.fault("stop")
        return self.body(x)


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(t) for t in (*model.parameters(), *model.buffers())],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "asks": [p.requires_grad for p in model.parameters()],
        "random": torch.get_rng_state(),
        "own": (getattr(model, "count", 0), len(getattr(model, "seen", []))),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("fault", [None, RuntimeError, KeyboardInterrupt])
def test_a_model_is_left_bit_for_bit(fault: type[BaseException] | None) -> None:
    model = Busy()
    model.body(torch.randn(6, 4)).sum().backward()
    model.body[0].register_forward_hook(lambda module, args, output: None)
    model.fault, Busy.passes = fault, 0
    before = state(model)
    if fault is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            evenorm.examine(model, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    else:
        evenorm.examine(model, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert same(state(model), before)


def test_a_change_would_be_seen() -> None:
    model = Busy()
    before = state(model)
    with undisturbed(model):
        model(torch.randn(6, 4))
        assert not same(state(model), before)
    assert same(state(model), before)


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
    assert Path(flipped.file).name == "test_doctor.py"
    assert flipped.line == Busy.__init__.__code__.co_firstlineno - 5
    assert {f.code for f in found} == {"EN112", "EN401"}
    assert "EN112" in {f.code for f in found.fix()}
    assert evenorm.examine(model, torch.randn(6, 4), select=["EN112"]).ok


def test_codes_are_ignored_by_path() -> None:
    model = Busy()
    found = evenorm.examine(model, select=["EN112"], ignore_paths={"body.*": ["EN1"]})
    assert found.ok
    with pytest.raises(ValueError, match="no rule is called 'EN999'"):
        evenorm.examine(model, ignore=["EN999"])


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, *, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        y = self.norm(tokens)
        return {"hidden": [y, (y * 2, None)], "text": "no tensor", "loss": y.sum()}


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def scripted() -> nn.Module:
    norm: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    return norm


ANSWERED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "keywords and nested outputs": (Nested, {"tokens": torch.randn(2, 3, 4)}, ""),
    "a batch that does not fit": (Busy, torch.randn(6, 5), "did not run this batch"),
    "a missing keyword": (Nested, torch.randn(2, 4), "did not run this batch"),
    "no normalizer": (without_norms, torch.randn(2, 4), "no normalization layer"),
    "scripted": (scripted, torch.randn(2, 4), "scripted"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), None, "lazy"),
    "compiled": (lambda: torch.compile(Busy()), torch.randn(6, 4), ""),  # type: ignore[dict-item, return-value]
    "on the meta device": (lambda: nn.LayerNorm(4, device="meta"), torch.randn(2, 4), ""),
    "one sample": (without_norms, torch.randn(1, 4), ""),
    "an empty batch": (Busy, torch.randn(0, 4), ""),
    "integers for numbers": (Busy, torch.ones(6, 4, dtype=torch.long), "did not run this batch"),
    "half precision": (lambda: Nested().half(), {"tokens": torch.randn(2, 3, 4).half()}, ""),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_every_model_gets_an_answer(case: str) -> None:
    make, batch, note = ANSWERED[case]
    found = evenorm.examine(make(), batch)
    assert note in " ".join(found.notes)
    assert not any("could not be examined" in text for text in found.notes), found.notes
    json.dumps(sarif.document(found))


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


def test_the_command_obeys_the_project(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.evenorm.examine]\nignore-paths = { "1" = ["EN112"] }\n')
    assert call("examined_project:build").exit_code == 0
    (project / "pyproject.toml").write_text("[tool.evenorm.examine]\nselected = []\n")
    assert call("examined_project:build").exit_code == 2


def test_the_command_fixes(project: Path) -> None:
    pytest.importorskip("safetensors", reason="weights are written with safetensors")
    assert call("examined_project:build", "--fix", "healed.safetensors").exit_code == 1
    assert (project / "healed.safetensors").stat().st_size > 0


def test_the_command_lists_explains_shows_and_advises(project: Path) -> None:
    assert "EN112" in call("--rules").stdout
    assert "Why it matters" in call("--explain", "EN112").stdout
    assert call("--explain", "EN999").exit_code == 2
    rows = json.loads(call("examined_project:build", "--input", "6,4", "--table", "--format", "json").stdout)[0][
        "layers"
    ]
    assert [(row["path"], row["values"], row["updates"]) for row in rows] == [("1", 6, 1)]
    assert set(rows[0]["gradients"]) == {"weight", "bias"}
    advice = json.loads(call("examined_project:build", "--input", "6,4", "--advise", "--format", "json").stdout)
    assert [part["use"] for part in advice] == ["layer norm"]
    assert call("examined_project:build", "--table").exit_code == 2


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
