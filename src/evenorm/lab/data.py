"""Labeled images: scikit-learn's digits, IDX files, or a folder of class folders."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = 0.2
SIDE = 32
# Pillow's modes of gray pictures: one bit, bytes, 16 and 32 bits.
GRAY = ("1", "L", "I", "I;16", "I;16B")
ACCEPTED = (
    "Pass a folder with IDX files (MNIST's format, gzip or not: train-images-idx3-ubyte.gz, "
    "train-labels-idx1-ubyte.gz, …) or one with a folder of pictures per class (cats/1.png, dogs/1.png, …)."
)


class DataError(ValueError):
    """The data cannot be used; the message says what came and what to do."""


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) of bytes with a label each, cut into training and held-out ones.

    Attributes:
        name: what they are, in a few words.
        origin: how they were read, resized and cut, in a sentence.
        classes: the classes' names; a label is an index into them.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train_pixels: Bytes
    train_labels: Labels
    test_pixels: Bytes
    test_labels: Labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_pixels.shape[1:]
        return channels, height, width

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels."""
        return float(self.train_pixels.mean()), max(1.0, float(self.train_pixels.std()))

    @cached_property
    def digest(self) -> str:
        """Differs where an image, a label or the cut does."""
        parts = (self.train_pixels, self.train_labels, self.test_pixels, self.test_labels)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def load(folder: Path | None) -> Images:
    """Read the images in a folder; without one, the 1,797 digits that scikit-learn ships.

    Raises:
        DataError: nothing there can be read as labeled images.
    """
    if folder is None:
        return digits()
    if not folder.is_dir():
        came = "a file" if folder.exists() else "nothing there"
        raise DataError(f"--data {folder}: expected a folder, found {came}. {ACCEPTED}")
    idx = {path: dims for path in sorted(folder.iterdir()) if (dims := idx_dimensions(path))}
    if idx:
        return from_idx(folder, idx)
    return from_class_folders(folder)


def digits() -> Images:
    """Return scikit-learn's digits: 1,797 of 8 × 8 pixels, ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Gray levels 0 … 16, stored as floats.
    pixels = bunch.images.astype(np.uint8)[:, None]
    return split(
        "scikit-learn's digits",
        "the digits that scikit-learn ships",
        tuple(map(str, bunch.target_names)),
        pixels,
        bunch.target.astype(np.int64),
    )


def stratify(labels: Labels, share: float = HELD_OUT) -> tuple[Labels, Labels]:
    """Cut indices into a larger and a smaller part in which every class has the same share.

    The cut depends on the labels alone: every run of every experiment sees the same one.

    >>> larger, smaller = stratify(np.repeat([0, 1], [10, 5]))
    >>> np.bincount(np.repeat([0, 1], [10, 5])[smaller]).tolist()
    [2, 1]
    """
    draw = np.random.default_rng(0)
    held_out = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: max(1, round(share * len(members)))])
    smaller = draw.permutation(np.concatenate(held_out))
    larger = np.setdiff1d(np.arange(len(labels)), smaller)
    return larger, smaller


def split(name: str, origin: str, classes: tuple[str, ...], pixels: Bytes, labels: Labels) -> Images:
    """Cut images 80/20 into training and held-out ones, every class alike."""
    rare = [classes[label] for label, n in enumerate(np.bincount(labels, minlength=len(classes))) if n < 2]
    if rare:
        raise DataError(
            f"{origin}: class {rare[0]!r} has fewer than 2 images, and one of each class is held out. "
            "Add images or remove the class."
        )
    train, test = stratify(labels)
    return checked(
        Images(
            f"{len(labels):,} images of {name}",
            f"{origin}, cut 80/20 with every class alike: {len(train):,} to train on, {len(test):,} held out",
            classes,
            pixels[train],
            labels[train],
            pixels[test],
            labels[test],
        )
    )


def checked(images: Images) -> Images:
    """Return the images, or say why no network could learn from them."""
    if len(images.classes) < 2:
        raise DataError(
            f"{images.name}: found one class, {images.classes[0]!r}; telling classes apart needs two or more."
        )
    _, height, width = images.shape
    if min(height, width) < 4:
        raise DataError(f"{images.name}: images of {height} × {width} pixels; at least 4 × 4 are needed.")
    return images


# IDX: two zero bytes, the type (8: unsigned byte), the number of dimensions, their sizes, the values.


def idx_bytes(path: Path) -> bytes:
    """Return the file's bytes, unpacked where it is gzip."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError) as fault:
        raise DataError(f"{path}: a damaged gzip file ({fault}). Fetch it again.") from fault


def idx_dimensions(path: Path) -> int:
    """Return the number of dimensions of an IDX file of bytes; 0 where the file is something else."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            magic = file.read(4)
        except (OSError, EOFError):
            return 0
    return magic[3] if len(magic) == 4 and magic[:3] == b"\0\0\x08" else 0


def read_idx(path: Path) -> Bytes:
    """Read one IDX file of unsigned bytes, gzip or not."""
    raw = idx_bytes(path)
    rank = raw[3]
    start = 4 + 4 * rank
    sizes = struct.unpack(f">{rank}I", raw[4:start]) if len(raw) >= start else ()
    expected = int(np.prod(sizes, dtype=np.int64))
    if not sizes or len(raw) - start != expected:
        raise DataError(
            f"{path}: the header promises {expected:,} values of shape {tuple(sizes)}, the file holds "
            f"{max(0, len(raw) - start):,}. It is cut short or damaged: fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(sizes)


def partner(path: Path, labels: Sequence[Path]) -> Path:
    """Return the labels file that belongs to an images file, by its name."""

    def stem(file: Path) -> str:
        name = file.name.removesuffix(".gz").lower()
        for word in ("images", "labels", "idx3", "idx1"):
            name = name.replace(word, "")
        return name

    matches = [file for file in labels if stem(file) == stem(path)]
    if len(matches) == 1:
        return matches[0]
    found = ", ".join(file.name for file in labels) or "none"
    raise DataError(
        f"{path}: no labels of the same name beside it (labels found: {found}). "
        f"Expected {path.name.replace('images', 'labels').replace('idx3', 'idx1')}."
    )


def from_idx(folder: Path, dimensions: dict[Path, int]) -> Images:
    """Read IDX files: a pair named train… and another one, or a lone pair, which is cut 80/20."""
    pictures = [path for path, rank in dimensions.items() if rank == 3]
    labels = [path for path, rank in dimensions.items() if rank == 1]
    if not pictures:
        ranks = ", ".join(f"{path.name} with {rank}" for path, rank in dimensions.items())
        raise DataError(
            f"--data {folder}: no IDX file with 3 dimensions (images, rows, columns): found {ranks}. {ACCEPTED}"
        )
    pairs = [(path, read_pair(path, partner(path, labels))) for path in pictures]
    training = [pair for pair in pairs if "train" in pair[0].name.lower()]
    others = [pair for pair in pairs if pair not in training]
    present = np.unique(np.concatenate([pair[1][1] for pair in pairs]))
    classes = tuple(map(str, present))
    if len(pairs) > 2 or (len(pairs) == 2 and len(training) != 1):
        raise DataError(
            f"--data {folder}: {len(pairs)} pairs of IDX files ({', '.join(p.name for p in pictures)}); expected one "
            "pair, or two of which one is named train…. Move the others away."
        )
    if len(pairs) == 1:
        path, (pixels, numbers) = pairs[0]
        return split(folder.resolve().name, f"IDX file {path.name}", classes, pixels, np.searchsorted(present, numbers))
    (path, train), (other, test) = training[0], others[0]
    return checked(
        Images(
            f"{len(train[1]) + len(test[1]):,} images of {folder.resolve().name}",
            f"IDX files {path.name} to train on ({len(train[1]):,}) and {other.name} held out ({len(test[1]):,})",
            classes,
            train[0],
            np.searchsorted(present, train[1]),
            test[0],
            np.searchsorted(present, test[1]),
        )
    )


def read_pair(images: Path, labels: Path) -> tuple[Bytes, Labels]:
    """Read images (N, 1, H, W) and their labels (N,)."""
    pixels, numbers = read_idx(images)[:, None], read_idx(labels).astype(np.int64)
    if len(pixels) != len(numbers) or not len(pixels):
        raise DataError(
            f"{images} holds {len(pixels):,} images and {labels.name} {len(numbers):,} labels; expected as many of "
            "each, and at least one. Fetch the pair again."
        )
    return pixels, numbers


def from_class_folders(folder: Path) -> Images:
    """Read a folder of class folders, or one that holds such a folder named train and another one."""
    classes = class_folders(folder)
    nested = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and class_folders(path)}
    if not classes and "train" in nested:
        return from_two_folders(folder, nested)
    if not classes:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"--data {folder}: no labeled images there (found: {found}). {ACCEPTED}")
    files = [(path, label) for label, one in enumerate(classes) for path in pictures_in(one)]
    pixels, how = read_pictures([path for path, _ in files])
    return split(
        folder.resolve().name,
        f"class folders of {folder.resolve().name}, {how}",
        tuple(path.name for path in classes),
        pixels,
        np.array([label for _, label in files]),
    )


def from_two_folders(folder: Path, nested: dict[str, Path]) -> Images:
    """Read class folders that come cut already: train/ and test/ (or val/, valid/)."""
    held_out = next((nested[name] for name in ("test", "val", "valid", "validation") if name in nested), None)
    if held_out is None:
        return replace(from_class_folders(nested["train"]), name=f"images of {folder.resolve().name}/train")
    classes = tuple(path.name for path in class_folders(nested["train"]))
    parts = []
    for part in (nested["train"], held_out):
        names = tuple(path.name for path in class_folders(part))
        if not set(names) <= set(classes):
            raise DataError(f"{part}: class {min(set(names) - set(classes))!r} is not among those of train/.")
        parts.append([(path, classes.index(one.name)) for one in class_folders(part) for path in pictures_in(one)])
    pixels, how = read_pictures([path for part in parts for path, _ in part])
    labels = np.array([label for part in parts for _, label in part])
    cut = len(parts[0])
    return checked(
        Images(
            f"{len(labels):,} images of {folder.resolve().name}",
            f"class folders, {how}: {cut:,} in train/, {len(labels) - cut:,} held out in {held_out.name}/",
            classes,
            pixels[:cut],
            labels[:cut],
            pixels[cut:],
            labels[cut:],
        )
    )


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures that lie in a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that hold pictures."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and pictures_in(path))


def read_pictures(paths: Sequence[Path]) -> tuple[Bytes, str]:
    """Read pictures into (N, C, H, W) and say how: C is 1 where all are gray, small ones of one size stay so."""
    from PIL import Image, UnidentifiedImageError

    def read(path: Path, mode: str = "", size: tuple[int, int] = (0, 0)) -> Image.Image:
        try:
            with Image.open(path) as file:
                if not mode:
                    return file
                return eight_bit(file).convert(mode).resize(size, Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as fault:
            raise DataError(f"{path}: not a readable picture ({fault}). Remove or replace it.") from fault

    # First the headers alone, so that no more than one picture is in memory at its full size.
    headers = [read(path) for path in paths]
    mode = "L" if all(header.mode in GRAY for header in headers) else "RGB"
    sizes = {header.size for header in headers}
    keep = len(sizes) == 1 and max(next(iter(sizes))) <= SIDE
    size = next(iter(sizes)) if keep else (SIDE, SIDE)
    stacked = np.stack([np.asarray(read(path, mode, size)) for path in paths])
    pixels = stacked[:, None] if mode == "L" else stacked.transpose(0, 3, 1, 2)
    named = f"{size[0]} × {size[1]} pixels"
    how = f"{named} as they are" if keep else f"resized to {named} (bilinear, proportions not kept)"
    return np.ascontiguousarray(pixels), f"{'gray' if mode == 'L' else 'in color'}, {how}"


def eight_bit(picture: Image.Image) -> Image.Image:
    """Return a picture of bytes; Pillow would clip 16-bit gray ones instead of scaling them."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
