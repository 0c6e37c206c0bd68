"""The blocks of code of a Markdown page, and how each is run: one page after the other, as a reader would."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from evenorm.cli import app

__all__ = ["ROOT", "Block", "blocks", "missed", "play"]

ROOT = Path(__file__).parent.parent

_FENCE = re.compile(r"^```(?P<language>[\w-]*)(?P<rest>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_ENDS_WITH = re.compile(r"# ends with (\d+)")
# Minutes of work, or a server's: their options are read, and they run elsewhere in the tests.
_LONG = ("bench", "compare", "lab")


@dataclass(frozen=True)
class Block:
    """One block of code, with the page and the line where it begins."""

    page: Path
    line: int
    language: str
    title: str
    code: str


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        title = _TITLE.search(fence["rest"])
        line = text.count("\n", 0, fence.start("code")) + 1
        found.append(Block(page, line, fence["language"], title[1] if title else "", fence["code"]))
    return found


def missed(page: Path) -> list[int]:
    """Lines of a page that begin or end a block of code in a way that :func:`blocks` does not see."""
    seen = {edge for block in blocks(page) for edge in (block.line - 1, block.line + block.code.count("\n"))}
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    return [number for number, line in lines if line.lstrip(" >-*").startswith(("```", "~~~")) and number not in seen]


def play(found: list[Block], folder: Path) -> None:
    """Run the blocks of one page in order, in one namespace; files with a title are written to the folder first."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in found:
        if block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            # So that a failure shows the page and its line.
            code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
            exec(code, names)
        elif block.language == "pycon":
            _converse(block, names)
        elif block.language == "bash":
            for line in _lines(block.code):
                _command(line)
        else:
            # A drawing: of the files, of the pipeline.
            assert not block.language, f"{block.page}:{block.line}: nothing runs {block.language}"


def _converse(block: Block, names: dict[str, Any]) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(block.code, names, block.page.name, str(block.page), block.line - 1)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    names.update(test.globs)


def _lines(code: str) -> Iterator[str]:
    """Commands, with those joined that a backslash continues."""
    yield from (line.strip() for line in code.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#")


def _command(line: str) -> None:
    """Run a command of ours; of others, see that what they name is there."""
    wanted = int(found[1]) if (found := _ENDS_WITH.search(line)) else 0
    words = shlex.split(line, comments=True)
    match words:
        case ["evenorm", *arguments]:
            _ours(arguments, wanted)
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        case ["pip", "install", *what]:
            _installable(what[-1])
        case ["python" | "torchrun" | "pytest", *arguments]:
            files = [word for word in arguments if word.endswith(".py")]
            assert files, line
            assert all((ROOT / file).is_file() for file in files), line
        case _:
            raise AssertionError(f"nothing runs or checks {line!r}")


def _installable(what: str) -> None:
    extras = re.search(r"\[([\w,]+)\]", what)
    known = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    for extra in extras[1].split(",") if extras else ():
        assert re.search(rf"^{extra} = ", known, re.MULTILINE), f"there is no extra {extra!r}"
    assert what.partition("[")[0] in (".", "evenorm"), what


def _ours(arguments: list[str], wanted: int) -> None:
    if arguments[0] in _LONG:
        command: Any = typer.main.get_command(app)
        context = command.make_context("evenorm", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, list(arguments), parent=context)
        return
    known = set(sys.modules)
    result = CliRunner().invoke(app, arguments)
    # A page's own module is no other page's.
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == Path.cwd():
            del sys.modules[name]
    assert result.exit_code == wanted, f"evenorm {shlex.join(arguments)}: {result.output}{result.exception or ''}"
