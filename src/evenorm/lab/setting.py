"""At which scale and on which data an experiment runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from evenorm.lab.data import DataError, Images, load
from evenorm.lab.text import Text, read

Scale = Literal["quick", "full", "large"]
SCALES: tuple[Scale, ...] = get_args(Scale)
SEEDS: dict[Scale, int] = {"quick": 3, "full": 5, "large": 10}

Data = Literal["images", "text"]

Value = TypeVar("Value")

# Read once in a process.
_images, _text = cache(load), cache(read)


@dataclass(frozen=True)
class Setting:
    """What a measurement depends on, but for its seed.

    Attributes:
        scale: how large; quick is provisional.
        data: a folder of images, a text file, or one of each; what is not given ships with Python or the package.
        limit: the most steps that a training takes, for trying things out.
    """

    scale: Scale = "quick"
    data: tuple[Path, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"Setting: scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        for kind, given in (("folder", self.folders), ("text file", self.files)):
            if len(given) > 1:
                raise DataError(f"--data: more than one {kind} ({', '.join(map(str, given))}). Give one.")

    def pick(self, quick: Value, full: Value, large: Value) -> Value:
        """Return the value for this scale."""
        return {"quick": quick, "full": full, "large": large}[self.scale]

    def steps(self, quick: int, full: int, large: int) -> int:
        """Return the number of training steps for this scale."""
        steps = self.pick(quick, full, large)
        return steps if self.limit is None else min(self.limit, steps)

    @property
    def folders(self) -> list[Path]:
        """What is given as images."""
        return [path for path in self.data if not path.is_file()]

    @property
    def files(self) -> list[Path]:
        """What is given as text."""
        return [path for path in self.data if path.is_file()]

    @property
    def images(self) -> Images:
        """The images; scikit-learn's digits unless a folder is given."""
        return _images(next(iter(self.folders), None))

    @property
    def text(self) -> Text:
        """The text; Python's own help unless a file is given."""
        return _text(next(iter(self.files), None))

    def record(self, kinds: Iterable[Data]) -> dict[str, Any]:
        """Return what a measurement on these kinds of data depends on, in words and digests."""
        content: dict[str, Any] = {"scale": self.scale, "limit": self.limit, "torch": torch.__version__}
        for kind in kinds:
            data = self.images if kind == "images" else self.text
            content[kind] = [data.name, data.digest]
        return content
