"""Text to predict character by character: Python's own help, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evenorm.lab.data import DataError

HELD_OUT = 0.1
# Rarer characters become one.
FEWEST = 20


@dataclass(frozen=True)
class Text:
    """Characters as codes; the last tenth is held out.

    Attributes:
        name: what it is, in a few words.
        characters: what the codes mean; 0 is every rare character.
        codes: (characters of the text,).
    """

    name: str
    characters: str
    codes: NDArray[np.int64]

    @cached_property
    def digest(self) -> str:
        """Differs where the text does."""
        return hashlib.sha256(self.codes.tobytes()).hexdigest()[:16]

    @property
    def cut(self) -> int:
        """Where the held-out part begins."""
        return round((1 - HELD_OUT) * len(self.codes))

    def batches(self, size: int, length: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random windows of the training part: (size, length) characters and the ones that follow each."""
        draw = np.random.default_rng(seed)
        for _ in range(steps):
            yield self._windows(draw.integers(0, self.cut - length - 1, size), length)

    def held_out(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return evenly spread windows of the held-out part, (count, length) each."""
        starts = np.linspace(self.cut, len(self.codes) - length - 1, count).astype(np.int64)
        return self._windows(starts, length)

    def _windows(self, starts: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(self.codes[starts[:, None] + np.arange(length + 1)])
        return windows[:, :-1], windows[:, 1:]


def read(file: Path | None) -> Text:
    """Read a text file; without one, the help on topics that ships with Python.

    Raises:
        DataError: the file is no text, or too short.
    """
    if file is None:
        from pydoc_data import topics

        return encode("Python's help on topics", "\n\n".join(topics.topics[key] for key in sorted(topics.topics)))
    try:
        return encode(file.name, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"--data {file}: not a readable UTF-8 text ({fault}). Pass a text file.") from fault


def encode(name: str, text: str) -> Text:
    """Turn a text into codes."""
    found, counts = np.unique(np.array(list(text)), return_counts=True)
    characters = "".join(found[counts >= FEWEST])
    if len(text) < 10_000 or len(characters) < 2:
        raise DataError(f"{name}: {len(text):,} characters; expected a text of 10,000 or more.")
    codes = {character: code for code, character in enumerate(characters, 1)}
    return Text(f"{name}, {len(text):,} characters", "\ufffd" + characters, np.array([codes.get(c, 0) for c in text]))
