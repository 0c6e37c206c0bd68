"""The pattern: which elements of a tensor share one mean and one variance.

>>> Pattern.parse("n (g [c]) [...]", g=8)
Pattern.parse('n (g=8 [c]) [...]')

Square brackets mark the axes that are reduced, parentheses split one axis into several, ``...`` is any
number of axes, ``name=8`` fixes a size. The notation of brackets is einx's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod

__all__ = ["Axis", "Binding", "Factor", "Pattern", "PatternError", "naming"]

ELLIPSIS = "..."


class PatternError(ValueError):
    """A pattern that cannot be read, or that does not fit a shape."""

    def __init__(self, message: str, text: str, at: int | None = None) -> None:
        caret = "" if at is None else f"\n    {' ' * at}^"
        super().__init__(f"{message}\n    {text}{caret}")
        self.message, self.text, self.at = message, text, at

    def named(self, caller: object) -> PatternError:
        """The same fault, with the name of the layer that met it."""
        return PatternError(f"{caller}: {self.message}", self.text, self.at)


@dataclass(frozen=True)
class Factor:
    """One named part of an axis: the whole of it, or one side of a split."""

    name: str
    reduced: bool
    size: int | None = None

    def __str__(self) -> str:
        text = self.name if self.size is None else f"{self.name}={self.size}"
        return f"[{text}]" if self.reduced else text


@dataclass(frozen=True)
class Axis:
    """One axis of the tensor, as the product of its factors."""

    factors: tuple[Factor, ...]

    @property
    def is_ellipsis(self) -> bool:
        """Whether this stands for any number of axes."""
        return self.factors[0].name == ELLIPSIS

    def __str__(self) -> str:
        inside = " ".join(map(str, self.factors))
        return inside if len(self.factors) == 1 else f"({inside})"


@dataclass(frozen=True)
class Binding:
    """A pattern laid on a shape: every factor has a size, and the ellipsis is spelled out.

    ``shape`` is the tensor's shape with the splits made, ``axes`` says which of the tensor's axes a factor
    belongs to, ``reduced`` and ``kept`` are positions in ``shape``.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    reduced: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values per statistic."""
        return prod([self.shape[i] for i in self.reduced])

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of the statistics: the kept factors in the order of the pattern."""
        return tuple(self.shape[i] for i in self.kept)

    @property
    def keepdim_shape(self) -> tuple[int, ...]:
        """Shape in which the statistics broadcast against the split tensor."""
        return tuple(1 if i in self.reduced else size for i, size in enumerate(self.shape))

    def sizes(self, names: Iterable[str]) -> tuple[int, ...]:
        """Sizes of the named factors."""
        return tuple(self.shape[self.names.index(name)] for name in names)


@dataclass(frozen=True, repr=False)
class Pattern:
    """A parsed pattern. Immutable; its text parses to an equal pattern, and stands for it when compared."""

    axes: tuple[Axis, ...] = field(compare=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", " ".join(map(str, self.axes)).replace("] [", " "))

    @staticmethod
    def parse(text: str, **sizes: int) -> Pattern:
        """Read a pattern, and fix the sizes of some of its names.

        Raises:
            PatternError: with a caret under the fault.

        >>> Pattern.parse("[n] c [...]").bind((8, 3, 5, 5)).count
        200
        """
        pattern = _parse(text)
        return pattern.with_sizes(**sizes) if sizes else pattern

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors in order."""
        return tuple(factor for axis in self.axes for factor in axis.factors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names in order, the ellipsis as ``...``."""
        return tuple(factor.name for factor in self.factors)

    def kept_names(self, axes: int) -> list[str]:
        """Names of the kept factors, the ellipsis repeated until there are as many as the statistics have axes."""
        kept = [f.name for f in self.factors if not f.reduced]
        if ELLIPSIS in kept:
            at = kept.index(ELLIPSIS)
            kept[at : at + 1] = [ELLIPSIS] * (axes - len(kept) + 1)
        return kept

    def with_sizes(self, **sizes: int) -> Pattern:
        """The same pattern with sizes fixed by name."""
        for name, size in sizes.items():
            if name not in self.names or name == ELLIPSIS:
                known = ", ".join(n for n in self.names if n != ELLIPSIS)
                raise PatternError(
                    f"there is no axis {name!r} to give the size {size}; the axes are {known}", self.text
                )
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise PatternError(
                    f"the size of {name!r} must be a positive integer, got {size!r}",
                    self.text,
                    self._find(name),
                )
        return Pattern(
            tuple(Axis(tuple(replace(f, size=sizes.get(f.name, f.size)) for f in axis.factors)) for axis in self.axes)
        )

    def keeping(self, names: Iterable[str]) -> Pattern:
        """The pattern that keeps the named axes alone and reduces all others.

        A running average lives on it: evaluation knows nothing of the axes that the history averaged away.

        >>> Pattern.parse("(k [n=16]) c [...]").keeping("c")
        Pattern.parse('[k_n] c [...]')
        """
        kept = set(names)
        axes = []
        for axis in self.axes:
            factors = tuple(replace(f, reduced=f.name not in kept) for f in axis.factors)
            if len(factors) > 1 and all(f.reduced for f in factors):
                # A split that nobody asks about is no split.
                factors = (Factor("_".join(f.name for f in factors), reduced=True),)
            axes.append(Axis(factors))
        return Pattern(tuple(axes))

    def joined_without(self, names: Iterable[str]) -> list[str]:
        """The splits that ``keeping(names)`` joins, each as its names side by side."""
        kept = set(names)
        splits = [[f.name for f in axis.factors] for axis in self.axes if len(axis.factors) > 1]
        return [" ".join(split) for split in splits if not kept & set(split)]

    def bind(self, shape: Sequence[int]) -> Binding:
        """Lay the pattern on a shape.

        Raises:
            PatternError: naming pattern, shape and the axis at fault.

        >>> Pattern.parse("n (g=2 [c]) [...]").bind((4, 6, 5)).shape
        (4, 2, 3, 5)
        """
        spare = len(shape) - len(self.axes)
        if (spare < 0 and not (spare == -1 and self._has_ellipsis)) or (spare > 0 and not self._has_ellipsis):
            wanted = f"at least {len(self.axes) - 1}" if self._has_ellipsis else f"{len(self.axes)}"
            raise PatternError(
                f"the pattern describes {wanted} axes, got {len(shape)}: shape {tuple(shape)}", self.text
            )
        names: list[str] = []
        sizes: list[int] = []
        axes: list[int] = []
        reduced: list[bool] = []
        position = 0
        for axis in self.axes:
            if axis.is_ellipsis:
                for k in range(spare + 1):
                    names.append(f"{ELLIPSIS}{k}")
                    sizes.append(shape[position])
                    axes.append(position)
                    reduced.append(axis.factors[0].reduced)
                    position += 1
            else:
                names += [f.name for f in axis.factors]
                sizes += self._split(axis, shape[position], shape)
                axes += [position] * len(axis.factors)
                reduced += [f.reduced for f in axis.factors]
                position += 1
        return Binding(
            tuple(names),
            tuple(sizes),
            tuple(axes),
            tuple(i for i, r in enumerate(reduced) if r),
            tuple(i for i, r in enumerate(reduced) if not r),
        )

    def _split(self, axis: Axis, size: int, shape: Sequence[int]) -> list[int]:
        unknown = [f for f in axis.factors if f.size is None]
        known = prod([f.size for f in axis.factors if f.size is not None])
        if len(unknown) > 1:
            names = " and ".join(repr(f.name) for f in unknown)
            raise PatternError(
                f"the sizes of {names} are both open; fix one of them", self.text, self._find(unknown[0].name)
            )
        fault = self._find(axis.factors[0].name)
        if not unknown and known != size:
            raise PatternError(f"expected an axis of {known}, got {size} in shape {tuple(shape)}", self.text, fault)
        if unknown and size % known:
            raise PatternError(f"{known} does not divide the axis of {size} in shape {tuple(shape)}", self.text, fault)
        return [size // known if f.size is None else f.size for f in axis.factors]

    @property
    def _has_ellipsis(self) -> bool:
        return any(axis.is_ellipsis for axis in self.axes)

    def _find(self, name: str) -> int | None:
        found = re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", self.text)
        return found.start() if found else None

    def __hash__(self) -> int:
        # Patterns are keys of every cache; a string keeps its hash.
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Pattern.parse({self.text!r})"


_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*(?:\s*=\s*\d+)?|[\[\]()])")


def _parse(text: str) -> Pattern:
    if not text.strip():
        raise PatternError("the pattern is empty; write for example '[n] c [...]'", text)
    axes: list[Axis] = []
    split: list[Factor] | None = None
    opened: dict[str, int] = {}
    seen: set[str] = set()
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            at = position + len(text[position:]) - len(text[position:].lstrip())
            raise PatternError(
                f"unexpected {text[at]!r}; a pattern has names, '...', '[ ]', '( )' and 'name=8'", text, at
            )
        token, at, position = match.group(1), match.start(1), match.end()
        before = text[:at].rstrip()[-1:]
        if token in "[(":
            if token in opened or (token == "(" and "[" in opened):
                raise PatternError(
                    f"{token!r} inside {'[' if '[' in opened else '('!r}; close that one first", text, at
                )
            opened[token] = at
            split = [] if token == "(" else split
        elif token in "])":
            opening = {"]": "[", ")": "("}[token]
            if opening not in opened or (token == ")" and "[" in opened):
                raise PatternError(
                    f"{token!r} closes nothing; {'close [ before it' if '[' in opened else 'remove it'}",
                    text,
                    at,
                )
            if before == opening:
                raise PatternError(f"'{opening}{token}' holds no axis; name one", text, opened[opening])
            del opened[opening]
            if token == ")":
                axes.append(Axis(tuple(split or ())))
                split = None
        else:
            name, _, size = (part.strip() for part in token.partition("="))
            if name in seen:
                raise PatternError(f"{name!r} appears twice; every axis needs its own name", text, at)
            if name == ELLIPSIS and split is not None:
                raise PatternError("'...' cannot be part of a split axis; move it out of the parentheses", text, at)
            if size and int(size) < 1:
                raise PatternError(f"the size of {name!r} must be positive, got {size}", text, at)
            seen.add(name)
            factor = Factor(name, "[" in opened, int(size) if size else None)
            if split is None:
                axes.append(Axis((factor,)))
            else:
                split.append(factor)
    if opened:
        at = min(opened.values())
        raise PatternError(f"{text[at]!r} is never closed", text, at)
    pattern = Pattern(tuple(axes))
    if not any(f.reduced for f in pattern.factors):
        raise PatternError("nothing is reduced; put the axes that share statistics in brackets: '[n] c [...]'", text)
    return pattern


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Put a layer's name in front of what is wrong with its arguments."""
    try:
        yield
    except PatternError as fault:
        raise fault.named(layer) from None
    except ValueError as fault:
        raise ValueError(f"{layer}: {fault}") from None
