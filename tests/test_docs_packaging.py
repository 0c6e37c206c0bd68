"""What surrounds the code says the same as the code: versions, targets, pins."""

import re
from importlib import metadata

import pytest

from fenced import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_one_version() -> None:
    version = metadata.version("evenorm")
    assert f'version = "{version}"' in PYPROJECT
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version {version}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflow_runs_what_make_runs() -> None:
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8")
    commands = re.findall(r"^ +- run: (.+)$", workflow, re.MULTILINE)
    assert commands
    for command in commands:
        words = command.split()
        known = words[0] == "make" and words[1] in targets()
        assert known or (ROOT / words[0]).is_file(), command


def test_only_tested_pythons_are_claimed() -> None:
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8")
    tested = re.findall(r'"(3\.\d+)"', re.findall(r"^ +python: (\[.+\])$", workflow, re.MULTILINE)[0])
    assert re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT) == tested
    assert f'requires-python = ">={tested[0]}"' in PYPROJECT
    for page in ("README.md", "docs/getting-started.md"):
        assert f"On Linux with Python {tested[0]} to {tested[-1]}" in (ROOT / page).read_text(encoding="utf-8")


def test_every_target_is_listed_and_says_what_it_does() -> None:
    named = targets() - {"help"}
    described = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert named <= described
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert named <= set(phony[1].split())


def test_hooks_call_what_make_check_calls() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    check = MAKEFILE.partition("\ncheck:")[2].partition("\n\n")[0]
    for tool in re.findall(r"entry: \.venv/bin/(\w+)", hooks):
        assert f"$(BIN)/{tool}" in check


def test_what_the_extras_need_is_pinned() -> None:
    extras = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    pinned = {
        re.split(r"[=<>; ]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    }
    needed = {re.split(r"[<>=\[]", name)[0] for name in re.findall(r'"([\w.<>=\[\],-]+)"', extras)} - {"evenorm"}
    assert {"mkdocs-material", "mkdocstrings", "auditwheel", "onnx"} <= needed
    assert {name.lower() for name in needed} <= pinned


@pytest.mark.parametrize("file", ["wheel", "tar.gz"])
def test_distributions_are_tried_without_a_compiler(file: str) -> None:
    script = (ROOT / ".ci" / "try-distribution").read_text(encoding="utf-8")
    assert 'export PATH="$place/env/bin:$place/bin"' in script
    assert not re.search(r"for tool in .*\b(cc|gcc|c\+\+|g\+\+|cmake|clang)\b", script)
    assert ("dist/*.whl built" if file == "wheel" else "dist/*.tar.gz absent") in MAKEFILE
