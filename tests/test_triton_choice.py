"""When Triton's kernels are chosen, and what is said where they are not; the GPU's benchmark without a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from typer.testing import CliRunner

import evenorm
from evenorm import Affine, Pattern, kernels
from evenorm.bench import dist, gate, suites
from evenorm.bench.case import Case, Data
from evenorm.bench.device import DEVICES, Device
from evenorm.bench.peers import OURS, build
from evenorm.bench.row import Timing
from evenorm.cli import app
from evenorm.kernels import KernelError, Signature, candidates, triton
from evenorm.kernels.environment import environment

ROWS, LAST = Pattern.parse("... [d]"), Affine("d")


def signature(**changes: object) -> Signature:
    return Signature.of(torch.ones(4, 6))._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with Triton, not interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton, "installed", lambda: True)
    kernels.choice.cache_clear()
    yield
    kernels.choice.cache_clear()


@pytest.mark.usefixtures("compiled")
def test_a_gpu_gets_triton() -> None:
    assert triton.declines(signature(device="cuda"), ROWS, LAST) is None


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the tensor is on cpu"),
        ({"device": "mps"}, "the tensor is on mps"),
        ({"device": "cuda", "dtype": torch.int32}, "torch.int32 is not among its dtypes"),
        ({"device": "cuda", "shape": torch.Size((0, 6))}, "the tensor is empty"),
        ({"device": "cuda", "layout": torch.sparse_coo}, "Tensor is not torch's own dense tensor"),
        ({"device": "cuda", "negated": True}, "the tensor is a negative view, which x.resolve_neg() makes plain"),
    ],
    ids=str,
)
def test_why_it_declines(changes: dict[str, object], reason: str) -> None:
    assert triton.declines(signature(**changes), ROWS, LAST) == reason


@pytest.mark.usefixtures("compiled")
def test_without_a_plan_it_declines() -> None:
    found = signature(device="cuda", shape=torch.Size((4, 6, 10)), strides=(60, 10, 1))
    reason = triton.declines(found, Pattern.parse("n ([g=3] c) ([k=2] l)"), Affine("c"))
    assert reason is not None
    assert "is more than keep, reduce, keep, reduce" in reason


def test_without_triton_it_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton, "installed", lambda: False)
    assert triton.declines(signature(device="cuda"), ROWS, LAST) == "Triton is not installed"
    assert triton.state() == "not installed: tensors on a GPU take torch's own operations"
    assert "triton" not in environment()["kernels"]


@pytest.mark.usefixtures("compiled")
def test_on_gpus_that_it_does_not_know_it_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), (7, 0))[index])
    assert triton.declines(signature(device="cuda"), ROWS, LAST) is None
    assert triton.ready()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), (6, 1))[index])
    reason = "a GPU here has compute capability 6.1, and Triton takes 7.0 and later"
    assert triton.declines(signature(device="cuda"), ROWS, LAST) == reason
    assert triton.state().endswith(reason)
    assert not triton.ready()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    reason = "these kernels are for NVIDIA's GPUs, and this torch is built for ROCm"
    assert triton.declines(signature(device="cuda"), ROWS, LAST) == reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.declines(signature(), ROWS, LAST) is None


@pytest.mark.usefixtures("compiled")
def test_what_it_runs_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenorm.kernels.triton.metadata.version", lambda name: "9.9" if name == "triton" else "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton.state() == "9.9, no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert triton.state() == "9.9, NVIDIA H200"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.state() == "9.9, interpreted"


@pytest.mark.usefixtures("compiled")
def test_a_triton_of_another_distribution_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nightly torch brings one of another name; sources on the path have none."""

    def version(name: str) -> str:
        if name != "pytorch-triton":
            raise PackageNotFoundError(name)
        return "9.9"

    metadata = "evenorm.kernels.triton.metadata"
    monkeypatch.setattr(f"{metadata}.version", version)
    for distributions, said in (({"triton": ["pytorch-triton"]}, "9.9"), ({}, "unknown version")):
        monkeypatch.setattr(f"{metadata}.packages_distributions", lambda found=distributions: found)
        assert triton.state().split(", ")[0] == said


def test_the_choice_does_not_depend_on_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for rows in (1, 2, 5000):
        found = {c.name: c.reason for c in candidates(Signature.of(torch.ones(rows, 8)), ROWS, LAST)}
        assert found["triton"] is None or not triton.installed()


@pytest.mark.usefixtures("compiled")
def test_asked_for_by_name_it_says_why_not() -> None:
    layer = evenorm.LayerNorm(6)
    layer.kernel = "triton"
    with pytest.raises(KernelError, match=r"'triton' cannot take this call: the tensor is on cpu"):
        layer(torch.ones(4, 6))


def test_explain_names_the_reason() -> None:
    assert "declines: the tensor is on cpu" in str(evenorm.explain(evenorm.LayerNorm(6), (4, 6)))


def explained(*arguments: str) -> str:
    """What the command says of a GPU, as one line."""
    found = CliRunner().invoke(app, ["explain", *arguments, "--device", "cuda"], env={"COLUMNS": "80"})
    assert found.exit_code == 0, found.output
    assert max(map(len, found.stdout.splitlines())) <= 80
    return " ".join(found.stdout.split())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("LayerNorm", "--shape", "4,6"), "triton chosen"),
        (("BatchNorm2d", "--shape", "4,6,5,5", "--channels-last", "--eval"), "triton chosen"),
        (("LayerNorm", "--shape", "4,6", "--kernel", "triton"), "triton chosen, asked for by name"),
        (
            ("LayerNorm", "--shape", "4,6", "--dtype", "float8_e4m3fn"),
            "triton declines: torch.float8_e4m3fn is not among its dtypes",
        ),
        (("n [d]", "--shape", "0,6"), "triton declines: the tensor is empty"),
        (
            ("n ([g] c=3) ([k] l=2)", "--shape", "4,6,10"),
            "triton declines: keep n, reduce g, keep c, reduce k, keep l is more than keep, reduce, keep, reduce",
        ),
        (("n [d]", "--shape", "0,6", "--kernel", "triton"), "'triton' was asked for by name, so the call fails"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_terminal_answers_for_a_gpu(arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, too, and what it then takes for granted is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    text = explained(*arguments)
    assert said in text
    assert "There is no GPU here: the answer is for one of NVIDIA's, of compute capability 7.0 or later" in text


@pytest.mark.usefixtures("compiled")
def test_the_terminal_names_what_a_gpu_here_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    text = explained("LayerNorm", "--shape", "4,6")
    assert "triton declines: a GPU here has compute capability 6.1, and Triton takes 7.0 and later" in text
    assert "There is no GPU here" not in text
    kernels.choice.cache_clear()
    monkeypatch.setattr(triton, "installed", lambda: False)
    assert "triton declines: Triton is not installed" in explained("LayerNorm", "--shape", "4,6")


def test_triton_is_not_imported_without_a_gpu() -> None:
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import evenorm\n"
        "layer = evenorm.GroupNorm(2, 6)\n"
        "x = torch.randn(4, 6, 5, requires_grad=True)\n"
        "layer(x).sum().backward()\n"
        "str(evenorm.explain(layer, (4, 6, 5)))\n"
        "print(*sorted(name for name in set(sys.modules) - before if name.split('.')[0] == 'triton'))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_benchmark_refuses_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = CliRunner().invoke(app, ["bench", "layers", "--device", "cuda"])
    assert found.exit_code == 2
    assert "--device cuda: torch finds no GPU here" in found.output
    assert CliRunner().invoke(app, ["bench", "layers", "--device", "tpu"]).exit_code == 2


def test_synchronized_rows_are_a_gpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each GPU, over NCCL; what runs on the CPU alone is said to be left out."""

    def run(shape: tuple[int, ...], seconds: float, device: Device) -> dict[str, Timing]:
        return {OURS: Timing(absent=f"asked for on {device.name}")}

    monkeypatch.setitem(DEVICES, "cuda", DEVICES["cuda"]._replace(missing=lambda: None, processes=lambda: 1))
    monkeypatch.setattr(dist, "_run", run)
    found = CliRunner().invoke(app, ["bench", "dist", "monitor", "--device", "cuda", "--quick"])
    assert found.exit_code == 0, found.output
    assert "synchronized over 1 process, nccl · float32" in found.output
    assert "asked for on cuda" in found.output
    assert "monitor is left out: it runs on the CPU" in found.output


def test_the_gpus_rows() -> None:
    """Every case against torch eager and compiled, large ones beyond any cache."""
    plans = list(suites.plans("layers", [suites.CACHED], DEVICES["cuda"].peers))
    assert all({"torch", "compile", "evenorm compiled"} <= set(plan.variants) for plan in plans)
    assert max(plan.case.bytes for plan in plans) > 4 * 64e6
    assert {plan.memory for plan in plans} == {suites.CACHED}


OFF_PATH = [
    "RMSNorm · bfloat16, float32 weight",
    *("LayerNorm2d · float32", "RMSNorm2d · float32", "InstanceNorm2d · float32 cl", "InstanceNorm3d · float32 cl"),
    *("GroupNorm+silu · bfloat16", "GroupNorm+silu · bfloat16 cl", "GroupNorm+silu · bfloat16 cl 3d"),
    *("BatchNorm2d+add+relu · training · float32", "BatchNorm2d+relu · training · bfloat16 cl"),
    *("BatchNorm1d · training · masked · float32", "InstanceNorm1d · masked · bfloat16"),
]


@pytest.mark.parametrize("name", OFF_PATH)
def test_what_torch_has_no_fast_kernel_for_is_a_row(name: str) -> None:
    cases = [p.case for suite in suites.SUITES for p in suites.plans(suite, [suites.CACHED], DEVICES["cuda"].peers)]
    found = {c.title + " cl" * c.channels_last + " 3d" * (c.layer == "GroupNorm" and len(c.shape) == 5) for c in cases}
    assert name in found


@pytest.mark.parametrize(
    "case",
    [
        Case("", "RMSNorm", (6, 32), "bfloat16", parameters="float32"),
        Case("", "RMSNorm2d", (3, 8, 4, 4), channels_last=True),
        Case("", "InstanceNorm3d", (2, 8, 2, 4, 4), channels_last=True),
        Case("", "GroupNorm", (2, 8, 2, 4, 4), "bfloat16", groups=4, channels_last=True, activation="silu"),
        Case("", "BatchNorm1d", (6, 4, 20), hidden=0.25),
        Case("", "InstanceNorm1d", (6, 4, 20), "bfloat16", hidden=0.25),
    ],
    ids=lambda case: case.title,
)
@pytest.mark.parametrize("name", [OURS, "torch"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_its_rows_are_gated(case: Case, name: str) -> None:
    data = Data.of(case)
    verdict = gate.check(case, data, {name: build(name, case, data).outputs()})[name]
    assert verdict.fault is None
    assert {"y", "dx", "dweight"} <= verdict.errors.keys()
