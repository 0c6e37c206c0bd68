"""The rooms: who may import whom, how long a file may be, what `import evenorm` may cost."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import evenorm

PACKAGE = Path(evenorm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# In the order in which data flows. Rooms on one line do not import each other.
ORDER = (
    ("cache", "pattern"),
    ("affine", "epilogue"),
    ("plan",),
    ("moments",),
    ("kernels",),
    ("statistics",),
    ("recipe",),
    ("operator",),
    ("functional",),
    ("layers", "weights"),
    ("explain", "surgery"),
    ("doctor", "lab", "bench"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
DOORS = {"__init__", "__main__"}  # they open onto every room


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(source: str) -> set[str]:
    """The rooms of evenorm that a source imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out, from evenorm.room import name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("evenorm.")}


def faults(room: str, imported: set[str]) -> set[str]:
    """What a room imports that does not stand above it."""
    own = {room, "_cpu"} if room == "kernels" else {room}
    return {other for other in imported - own if FLOOR.get(other, len(ORDER)) >= FLOOR[room]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_from_above(file: Path) -> None:
    room = room_of(file)
    if room in DOORS:
        return
    assert room in FLOOR, f"{room} is no room; give it its place in ORDER and in the design"
    assert not faults(room, imported_rooms(file.read_text()))


def test_a_wrong_import_is_found() -> None:
    source = "def f() -> None:\n    from evenorm.layers import Norm\n"
    assert faults("kernels", imported_rooms(source)) == {"layers"}
    assert faults("pattern", imported_rooms("from evenorm import Norm")) == {"Norm"}
    assert faults("layers", imported_rooms("import evenorm.kernels.eager")) == set()


def test_no_room_for_everything() -> None:
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "helpers", "common", "core"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_is_under_400_lines(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines < 400


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_import_brings_in_nothing_heavy() -> None:
    # torch imports some of them itself where they are installed.
    script = "import torch, sys; before = set(sys.modules); import evenorm\n"
    new = set(python(script + "print(*(set(sys.modules) - before))").split())
    heavy = ("triton", "sklearn", "plotly", "PIL", "evenorm.lab", "evenorm.bench", "typer", "rich")
    assert not {name for name in new if name.startswith(heavy)}


def test_import_costs_under_a_fifth_of_a_second_beyond_torch() -> None:
    # Of the processor: the other worker's tests are no cost of ours.
    script = "import torch, time; start = time.process_time(); import evenorm\nprint(time.process_time() - start)"
    assert min(float(python(script)) for _ in range(5)) < 0.2


def file_map() -> list[str]:
    """The rooms that the README's map names, in its order; every file that it names is there."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = text.partition("src/evenorm/\n")[2].partition("\ncpp/")[0]
    rooms: list[str] = []
    for line in block.splitlines():
        tree, _, rest = line.partition("── ")
        inside = tree.startswith("│")
        for name in re.findall(r"[a-z_]+(?:\.py|/(?= ))", rest):
            folder = PACKAGE / rooms[-1] if inside else PACKAGE
            assert (folder / name).exists(), f"the README's map names {name}, which is not in {folder.name}"
            if not inside:
                rooms.append(name.removesuffix(".py").rstrip("/"))
    return rooms


def test_the_readme_maps_every_room_in_order() -> None:
    rooms = file_map()
    assert set(rooms) == {room_of(file) for file in FILES} - DOORS
    assert rooms == sorted(rooms, key=FLOOR.__getitem__)
