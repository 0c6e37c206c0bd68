"""The package as it is installed: metadata, `evenorm env`, the extension."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

from evenorm.kernels.environment import environment

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "evenorm", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    ).stdout


def test_needs_four_packages_and_no_more() -> None:
    required = [line for line in metadata.requires("evenorm") or [] if "extra ==" not in line]
    names = {re.split(r"[<>=;]", line)[0].strip() for line in required}
    # Python 3.10 has no reader of TOML of its own.
    assert names - {"tomli"} == {"torch", "numpy", "typer", "rich"}
    assert [line for line in required if line.startswith("tomli")] == ['tomli; python_version < "3.11"']


def test_is_typed() -> None:
    assert resources.files("evenorm").joinpath("py.typed").is_file()


def test_env_fits_80_columns() -> None:
    printed = run("env")
    assert all(name in printed for name in environment())
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_env_prints_json() -> None:
    lines = json.loads(run("env", "--json"))
    assert lines["evenorm"] == metadata.version("evenorm")
    assert lines.keys() == environment().keys()


def test_extension_is_built_where_a_compiler_is() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler here: the pure-Python kernels are what is installed")
    assert environment()["extension"] == "built"


def test_one_openmp_runtime() -> None:
    script = (
        "import torch, evenorm._cpu;from evenorm.kernels.environment import environment;print(environment()['openmp'])"
    )
    if environment()["extension"] != "built":
        pytest.skip("the extension is not built")
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert len(printed.split(",")) == 1
    assert "omp" in printed


@pytest.mark.slow
def test_installs_without_a_compiler(tmp_path: Path) -> None:
    """The pure-Python kernels are what is left, and `evenorm env` says so."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.so", "__pycache__", "tests", ".*_cache")
    )
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*install, "--target", str(tmp_path / "installed"), str(tree)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CC": "/no/such/compiler", "CXX": "/no/such/compiler"},
    )
    # The finder of an editable installation would come first.
    script = (
        "import sys, runpy;"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__];"
        "import evenorm, torch;"
        "assert evenorm.BatchNorm2d(3)(torch.ones(2, 3, 4, 4)).sum() == 0;"
        "print(evenorm.__file__);"
        "sys.argv = ['evenorm', 'env', '--json'];"
        "runpy.run_module('evenorm', run_name='__main__')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    ).stdout
    file, said = printed.split("\n", 1)
    assert file.startswith(str(tmp_path))
    assert json.loads(said)["extension"] != "built"
