"""Every block of code in the README and in the documentation runs."""

from pathlib import Path

import pytest

from fenced import ROOT, blocks, play

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    play(blocks(page), tmp_path)


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
