"""The way back: the sums of the gradient, the input's gradient, and the parameters' where rows are long."""

import triton
import triton.language as tl

from evenorm.kernels.triton.device.blocks import BATCH, GROUP, OUTER, groups, place, total
from evenorm.kernels.triton.device.gradients import (
    backward_tile,
    per_parameter,
    statistics_of,
    store_input,
    store_parts,
)

__all__ = ["grad_input", "grad_parameters", "gradient"]


@triton.jit
def _lane(row: tl.tensor, program: tl.tensor, blocks: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """Where partial sums go: a row for each of the programs that have the same parameters."""
    if BATCH & LEVELS:
        lane = row * 0 if GROUP & LEVELS else row % blocks
    elif GROUP & LEVELS:
        lane = row // blocks
    else:
        lane = program
    return lane


@triton.jit
def _row(own: tl.tensor, k: tl.tensor, blocks: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """A block of statistics: where the parameters change along batch or group, it is the program's own there."""
    if BATCH & LEVELS:
        row = own if GROUP & LEVELS else own * blocks + k
    elif GROUP & LEVELS:
        row = k * blocks + own
    else:
        row = k
    return row


@triton.jit
def gradient(
    dy: tl.tensor,
    x: tl.tensor,
    dx: tl.tensor,
    dresidual: tl.tensor,
    carried: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    counts: tl.tensor,
    beside: tl.tuple,
    sums: tl.tensor,
    parts: tl.tensor,
    space: tl.tuple,
    slots: tl.tuple,
    values: tl.tensor,
    pieces: tl.tensor,
    per_piece: tl.tensor,
    rows: tl.tensor,
    per_program: tl.tensor,
    statistics: tl.tensor,
    SPREAD: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    SINGLE: tl.constexpr,
    STEADY: tl.constexpr,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Σ γ·dz and Σ γ·dz·x̂ of some blocks of statistics, Σ dz·x̂ and Σ dz of their parameters; dx, where it is wanted.

    Sums stay in a tile of registers while the parameter of each of its elements does: over all of a statistic where
    they are STEADY, else to the end of a run of the inner axis. A program with several blocks keeps the parameters'
    sums from one to the next. Without ``parts`` the parameters are another kernel's.
    """
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0)
    piece = program % pieces
    first = piece * per_piece
    last = tl.minimum(first + per_piece, space.tiles)
    first_row = program // pieces * per_program
    kept_weighted = per_parameter(tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL), LAYOUT.levels)
    kept_plain = per_parameter(tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL), LAYOUT.levels)
    for row in range(first_row, tl.minimum(first_row + per_program, rows)):
        b = (row // space.blocks).to(tl.int64)
        g = groups(row % space.blocks, TILE)
        s, here = b * space.size.group + g, g < space.size.group
        scale, n = statistics_of(mean, spread, counts, values, s, here, SPREAD, EPS, REAL)
        if SINGLE:
            spot, inside = place(b, g, first, space, TILE)
            x_hat, dz, gamma, present = backward_tile(
                dy, x, beside, spot, inside, scale, space, LAYOUT, FINISH, TILE, REAL
            )
            plain = total(gamma * dz).to(tl.float64)
            weighted = total(gamma * dz * x_hat).to(tl.float64)
            kept_plain = kept_plain + per_parameter(dz, LAYOUT.levels)
            kept_weighted = kept_weighted + per_parameter(dz * x_hat, LAYOUT.levels)
        else:
            plain = tl.full((1, TILE.group, 1), 0, tl.float64)
            weighted = tl.full((1, TILE.group, 1), 0, tl.float64)
            held_plain = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
            held_weighted = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
            for t in range(first, last):
                spot, inside = place(b, g, t, space, TILE)
                x_hat, dz, gamma, present = backward_tile(
                    dy, x, beside, spot, inside, scale, space, LAYOUT, FINISH, TILE, REAL
                )
                if parts is None:
                    held_plain = held_plain + gamma * dz
                    held_weighted = held_weighted + gamma * dz * x_hat
                else:
                    held_plain = held_plain + dz
                    held_weighted = held_weighted + dz * x_hat
                    end = last
                    if not STEADY:
                        end = tl.minimum((t // space.across + 1) * space.across, last)
                    if t + 1 == end:
                        plain = plain + total(gamma * held_plain).to(tl.float64)
                        weighted = weighted + total(gamma * held_weighted).to(tl.float64)
                        lane = piece * slots.lanes + _lane(row, row, space.blocks, LAYOUT.levels)
                        store_parts(
                            *(parts, slots, lane, spot, space),
                            *(per_parameter(held_weighted, LAYOUT.levels), per_parameter(held_plain, LAYOUT.levels)),
                            *(LAYOUT.levels, TILE),
                        )
                        held_plain = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
                        held_weighted = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
            if parts is None:
                plain = total(held_plain).to(tl.float64)
                weighted = total(held_weighted).to(tl.float64)
        if sums is not None:
            at = sums + piece.to(tl.int64) * 2 * statistics + s
            tl.store(at, plain, mask=here)
            tl.store(at + statistics, weighted, mask=here)
        if dx is not None:
            c1 = tl.full((1, 1, 1), 0, REAL)
            if CENTERED:
                c1 = (plain / n).to(REAL)
            c2 = (weighted / n).to(REAL)
            if SINGLE:
                store_input(
                    *(dx, dresidual, carried, x_hat, dz, gamma, c1, c2),
                    *(scale, spot, inside, present, space, TILE),
                )
            else:
                for t in range(first, last):
                    spot, inside = place(b, g, t, space, TILE)
                    x_hat, dz, gamma, present = backward_tile(
                        dy, x, beside, spot, inside, scale, space, LAYOUT, FINISH, TILE, REAL
                    )
                    store_input(
                        dx, dresidual, carried, x_hat, dz, gamma, c1, c2, scale, spot, inside, present, space, TILE
                    )
    if SINGLE:
        # All blocks of a program have the same parameters.
        b = (first_row // space.blocks).to(tl.int64)
        spot, _ = place(b, groups(first_row % space.blocks, TILE), first, space, TILE)
        lane = _lane(first_row, program, space.blocks, LAYOUT.levels)
        store_parts(parts, slots, lane, spot, space, kept_weighted, kept_plain, LAYOUT.levels, TILE)


@triton.jit
def grad_input(
    dy: tl.tensor,
    x: tl.tensor,
    dx: tl.tensor,
    dresidual: tl.tensor,
    carried: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    beside: tl.tuple,
    space: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """dx of given sums over the count, one tile."""
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0)
    b = (program // space.blocks // space.tiles).to(tl.int64)
    g = groups(program % space.blocks, TILE)
    spot, inside = place(b, g, program // space.blocks % space.tiles, space, TILE)
    s, here = b * space.size.group + g, g < space.size.group
    scale, _ = statistics_of(mean, rstd, None, 1, s, here, "rstd", 0.0, REAL)
    first = tl.full((1, 1, 1), 0, REAL)
    second = tl.full((1, 1, 1), 0, REAL)
    if c1 is not None:
        first = tl.load(c1 + s, mask=here, other=0.0).to(REAL)
    if c2 is not None:
        second = tl.load(c2 + s, mask=here, other=0.0).to(REAL)
    x_hat, dz, gamma, present = backward_tile(dy, x, beside, spot, inside, scale, space, LAYOUT, FINISH, TILE, REAL)
    store_input(dx, dresidual, carried, x_hat, dz, gamma, first, second, scale, spot, inside, present, space, TILE)


@triton.jit
def grad_parameters(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    counts: tl.tensor,
    beside: tl.tuple,
    parts: tl.tensor,
    space: tl.tuple,
    slots: tl.tuple,
    values: tl.tensor,
    rows: tl.tensor,
    per_program: tl.tensor,
    splits: tl.tensor,
    SPREAD: tl.constexpr,
    EPS: tl.constexpr,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Σ dz·x̂ and Σ dz of the parameters of one tile, over some of the blocks of statistics that share them."""
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0)
    split = program % splits
    t = program // splits % space.tiles
    own = program // splits // space.tiles
    kept_weighted = per_parameter(tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL), LAYOUT.levels)
    kept_plain = per_parameter(tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL), LAYOUT.levels)
    for k in range(split * per_program, tl.minimum((split + 1) * per_program, rows)):
        row = _row(own, k, space.blocks, LAYOUT.levels)
        b = (row // space.blocks).to(tl.int64)
        g = groups(row % space.blocks, TILE)
        spot, inside = place(b, g, t, space, TILE)
        scale, _ = statistics_of(
            mean, spread, counts, values, b * space.size.group + g, g < space.size.group, SPREAD, EPS, REAL
        )
        x_hat, dz, _, _ = backward_tile(dy, x, beside, spot, inside, scale, space, LAYOUT, FINISH, TILE, REAL)
        kept_plain = kept_plain + per_parameter(dz, LAYOUT.levels)
        kept_weighted = kept_weighted + per_parameter(dz * x_hat, LAYOUT.levels)
    row = _row(own, split * 0, space.blocks, LAYOUT.levels)
    spot, _ = place((row // space.blocks).to(tl.int64), groups(row % space.blocks, TILE), t, space, TILE)
    lane = split * slots.lanes
    if (OUTER & LAYOUT.levels) == 0:
        lane = lane + t // space.across
    store_parts(parts, slots, lane, spot, space, kept_weighted, kept_plain, LAYOUT.levels, TILE)
