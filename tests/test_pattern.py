"""Patterns: what they read, print, bind and keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenorm import Pattern, PatternError
from patterns import patterns

# Text, its canonical form, a shape, the split shape, positions that are reduced.
READ = [
    ("[n] c [...]", "[n] c [...]", (4, 6, 5, 3), (4, 6, 5, 3), (0, 2, 3)),
    ("[n] c [...]", "[n] c [...]", (4, 6), (4, 6), (0,)),
    ("... [d]", "... [d]", (12,), (12,), (0,)),
    ("... [d]", "... [d]", (2, 3, 12), (2, 3, 12), (2,)),
    ("... [h w]", "... [h w]", (2, 3, 4), (2, 3, 4), (1, 2)),
    ("n (g=2 [c]) [...]", "n (g=2 [c]) [...]", (4, 6, 5), (4, 2, 3, 5), (2, 3)),
    ("n ( g=2 [ c ] ) [ ... ]", "n (g=2 [c]) [...]", (4, 6), (4, 2, 3), (2,)),
    ("(k [n=4]) c", "(k [n=4]) c", (8, 3), (2, 4, 3), (1,)),
    ("n [c] [h] w", "n [c h] w", (2, 3, 4, 5), (2, 3, 4, 5), (1, 2)),
    ("n ([g=3] [c]) l", "n ([g=3 c]) l", (2, 6, 5), (2, 3, 2, 5), (1, 2)),
    ("[...]", "[...]", (2, 3), (2, 3), (0, 1)),
]


@pytest.mark.parametrize(("text", "canonical", "shape", "split", "reduced"), READ)
def test_reads_and_binds(
    text: str,
    canonical: str,
    shape: tuple[int, ...],
    split: tuple[int, ...],
    reduced: tuple[int, ...],
) -> None:
    pattern = Pattern.parse(text)
    assert str(pattern) == canonical
    binding = pattern.bind(shape)
    assert binding.shape == split
    assert binding.reduced == reduced
    assert binding.kept == tuple(k for k in range(len(split)) if k not in reduced)


@given(patterns())
def test_canonical_text_parses_to_an_equal_pattern(pattern: Pattern) -> None:
    again = Pattern.parse(str(pattern))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert again.factors == pattern.factors
    assert again.axes == pattern.axes


@given(patterns(), st.data())
def test_every_value_has_one_statistic(pattern: Pattern, data: st.DataObject) -> None:
    shape = data.draw(shapes(pattern))
    binding = pattern.bind(shape)
    statistics = 1
    for size in binding.statistics_shape:
        statistics *= size
    total = 1
    for size in shape:
        total *= size
    assert statistics * binding.count == total
    assert len(binding.names) == len(binding.shape) == len(binding.axes)


@st.composite
def shapes(draw: Callable[..., int], pattern: Pattern) -> tuple[int, ...]:
    """A shape that the pattern fits."""
    sizes = []
    for axis in pattern.axes:
        size = 1
        for factor in axis.factors:
            size *= factor.size or draw(st.integers(1, 3))
        sizes.append(size)
    return tuple(sizes)


def test_pattern_fixes_sizes() -> None:
    pattern = Pattern.parse("n (g [c]) [...]", g=2)
    assert str(pattern) == "n (g=2 [c]) [...]"
    assert pattern.with_sizes(g=3).bind((4, 6)).shape == (4, 3, 2)
    assert pattern.with_sizes(c=3).bind((4, 6)).shape == (4, 2, 3)


def test_equal_text_is_equal_and_one_key() -> None:
    one, other = Pattern.parse("[n]  c [...]"), Pattern.parse("[ n ] c [ ... ]")
    assert one == other
    assert len({one, other, Pattern.parse("n [c] [...]")}) == 2


KEEP = [
    ("[n] c [...]", "c", "[n] c [...]"),
    ("n c [...]", "c", "[n] c [...]"),
    ("(k [n=16]) c [...]", "c", "[k_n] c [...]"),
    ("n (g=2 [c]) [...]", "g", "[n] (g=2 [c]) [...]"),
    ("n (g=2 [c=3]) l", "n g", "n (g=2 [c=3]) [l]"),
    ("n c [...]", "", "[n c ...]"),
]


@pytest.mark.parametrize(("text", "names", "kept"), KEEP)
def test_keeping_reduces_all_other_axes(text: str, names: str, kept: str) -> None:
    assert str(Pattern.parse(text).keeping(names.split())) == kept


BAD_FITS = [
    ("[n] c", (4, 6, 5), "describes 2 axes, got 3"),
    ("[n] c h w", (4, 6, 5), "describes 4 axes, got 3"),
    ("[n] c [...] w", (4, 6), "at least 3 axes, got 2"),
    ("n (g=4 [c])", (4, 6), "4 does not divide the axis of 6"),
    ("n (g=4 [c=2])", (4, 6), "expected an axis of 8, got 6"),
    ("n [c=5]", (4, 6), "expected an axis of 5, got 6"),
    ("n (g [c])", (4, 6), "'g' and 'c' are both open"),
]


@pytest.mark.parametrize(("text", "shape", "words"), BAD_FITS)
def test_a_shape_that_does_not_fit_is_named(text: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text).bind(shape)
    assert words in str(caught.value)
    assert text in str(caught.value)
    if "axes, got" in words:
        assert str(shape) in str(caught.value)


def test_an_empty_axis_binds() -> None:
    assert Pattern.parse("n (g=2 [c]) [...]").bind((0, 6, 5)).count == 15
    assert Pattern.parse("[n] c").bind((0, 6)).count == 0
