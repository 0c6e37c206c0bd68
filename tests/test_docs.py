"""Every block of code in the README and in the documentation runs."""

import re
from pathlib import Path

import pytest

from fenced import ROOT, blocks, missed, play

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    play(blocks(page), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_missed(page: Path) -> None:
    assert missed(page) == []


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_what_is_no_code_is_a_drawing(page: Path) -> None:
    """A block without a language runs nowhere: only the README has such, its pipeline and its files."""
    drawings = [block for block in blocks(page) if not block.language]
    assert all(re.search("[─►]", block.code) or block.code.startswith("src/") for block in drawings)
    assert len(drawings) == (2 if page.name == "README.md" else 0)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_a_file_is_used(page: Path) -> None:
    """A block with a title is written to a file, and a later block runs what is in it."""
    found = blocks(page)
    for number, block in enumerate(found):
        if block.title:
            module = Path(block.title).stem
            assert any(re.search(rf"\b{module}:|import {module}\b", later.code) for later in found[number + 1 :])


def test_a_missed_block_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. First\n\n    ```python\n    1 / 0\n    ```\n\n~~~bash\nevenorm fly\n~~~\n")
    assert missed(page) == [3, 5, 7, 9]


def test_a_wrong_block_is_found(tmp_path: Path) -> None:
    for code in ("```python\nassert 1 + 1 == 3\n```\n", "```pycon\n>>> 1 + 1\n3\n```\n", "```bash\nevenorm fly\n```\n"):
        page = tmp_path / "page.md"
        page.write_text(code)
        with pytest.raises(AssertionError):
            play(blocks(page), tmp_path)


def test_a_failure_names_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as failure:
        play(blocks(page), tmp_path)
    last = failure.traceback[-1]
    assert (Path(str(last.path)), last.lineno + 1) == (page, 5)
