"""The tile: the block of outer x group x inner that one program holds at a time, and how tiles are shared out.

Everything here follows from the length of a statistic alone, never from how many there are: a row's result does not
depend on its neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from evenorm.kernels.triton.view import Along, View

__all__ = ["Parts", "Share", "Tile", "parts", "pieces", "power", "share", "tile", "word"]

# Elements that a program holds at a time: of a loop, of a whole statistic, of one whose gradient is sought as well.
LOOP = 4096
WHOLE = 16384
WHOLE_BACKWARD = 8192
# Elements that one program reads twice rather than leaving them to several.
ALONE = 32768
# Neighboring columns of a tile: at least a sector of memory in every dtype.
COLUMNS = 32
# Rows of a short statistic share a program.
SHORT = 1024
# A piece is at least so many tiles, and there are at most so many.
FEWEST_TILES = 4
MOST_PIECES = 1024
# A multiple of this need not be known as one of more.
WIDEST = 16
# Warps that keep every multiprocessor of a large device busy.
WARPS = 4096


@dataclass(frozen=True)
class Tile:
    """A block, powers of two; how many of them cover one statistic's values, and the groups.

    The places of a run's first elements are multiples of the units, along the level that is dense of more than 1.
    """

    outer: int
    group: int
    inner: int
    outer_unit: int
    group_unit: int
    unit: int
    across: int
    count: int
    blocks: int
    warps: int

    @property
    def single(self) -> bool:
        """Whether a statistic's values are in one tile, so that memory is read once."""
        return self.count == 1


def tile(view: View, whole: int, itemsize: int) -> Tile:
    """The tile for a view.

    Args:
        whole: elements of the largest tile, for all values of a statistic at once.
        itemsize: bytes of an element.
    """
    scale = max(itemsize // 4, 1)
    loop, whole = LOOP // scale, whole // scale
    size = view.size
    wide_inner, wide_outer = power(size.inner), power(size.outer)
    if size.outer == 1:
        group = max(1, SHORT // wide_inner)
    elif view.dense.outer < view.dense.group:
        group = 1
    else:
        group = max(1, COLUMNS // wide_inner)
    most = whole if wide_inner * wide_outer * group <= whole else loop
    inner = min(wide_inner, most)
    outer = min(wide_outer, max(1, most // (inner * group)))
    across = _parts(size.inner, inner)
    elements = outer * group * inner
    dense = view.dense_level
    return Tile(
        outer=outer,
        group=group,
        inner=inner,
        outer_unit=gcd(word(view), outer) if dense == Along.OUTER else 1,
        group_unit=gcd(word(view), group) if dense == Along.GROUP else 1,
        unit=word(view) if dense == Along.INNER else 1,
        across=across,
        count=across * _parts(size.outer, outer),
        blocks=_parts(size.group, group),
        # Threads of columns hold a statistic of each of their elements, so they get fewer.
        warps=min(16, max(1, elements // (256 if group > 1 and outer > 1 else 512))),
    )


def word(view: View) -> int:
    """Elements that are read together: a divisor of the dense level's size, and so of all other strides.

    It follows from the length of a row alone, and so does the order in which threads add the row up.
    """
    run = view.run
    # Of columns the compiler knows full words alone.
    return gcd(WIDEST, run) if view.dense_level == Along.INNER or run % WIDEST == 0 else 1


def pieces(view: View, tile: Tile) -> tuple[int, int]:
    """Into how many pieces a statistic's tiles are cut, and the tiles of each: one piece is one program's."""
    if tile.single or tile.group * view.values <= ALONE:
        return 1, tile.count
    per_piece = max(FEWEST_TILES, _parts(tile.count, MOST_PIECES))
    return _parts(tile.count, per_piece), per_piece


@dataclass(frozen=True)
class Share:
    """How the sums of the gradient are shared out: programs, and the blocks of statistics that each takes in turn.

    ``lanes`` programs have the same parameters, of which each leaves partial sums; none where these are not kept
    along, since a parameter's elements are spread over the tiles. They are ``steady`` where all tiles of a statistic
    have the same parameters.
    """

    programs: int
    rows: int
    lanes: int
    steady: bool


def share(view: View, tile: Tile) -> Share:
    """The sums of the gradient, shared out among programs; each takes several short rows before it stores."""
    blocks, along = view.size.batch * tile.blocks, view.along
    rows = 1
    if tile.single and not along & (Along.BATCH | Along.GROUP):
        rows = _parts(blocks, max(1, WARPS // tile.warps))
    programs = _parts(blocks, rows)
    down = tile.count // tile.across
    steady = (down == 1 or Along.OUTER not in along) and (tile.across == 1 or Along.INNER not in along)
    lanes = programs // _own(view, tile) if steady or Along.INNER not in along else 0
    return Share(programs, rows, lanes, steady)


@dataclass(frozen=True)
class Parts:
    """How the parameters' sums are shared out where rows are long: a program keeps to the parameters of one tile.

    ``own`` sets of parameters, each of so many ``rows`` of blocks, in ``splits`` of ``per_program``; ``repeats`` tiles
    have the same parameters.
    """

    own: int
    rows: int
    splits: int
    per_program: int
    repeats: int


def parts(view: View, tile: Tile) -> Parts:
    """The parameters' sums, shared out among programs."""
    own = _own(view, tile)
    rows = view.size.batch * tile.blocks // own
    per_program = _parts(rows, max(1, WARPS // tile.warps // (own * tile.count)))
    repeats = 1 if Along.OUTER in view.along else tile.count // tile.across
    return Parts(own, rows, _parts(rows, per_program), per_program, repeats)


def _own(view: View, tile: Tile) -> int:
    """How many sets of parameters the blocks of statistics have."""
    batch = view.size.batch if Along.BATCH in view.along else 1
    return batch * (tile.blocks if Along.GROUP in view.along else 1)


def power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _parts(n: int, size: int) -> int:
    return -(-n // size)
