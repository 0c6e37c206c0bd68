"""What the lab trains on: files in, images out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pictures import write_idx, write_pair

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")

from PIL import Image

from evenorm.lab.data import DataError, load, stratify


def test_without_a_folder_the_digits() -> None:
    images = load(None)
    assert (len(images.train_labels), len(images.test_labels)) == (1438, 359)
    assert images.shape == (1, 8, 8)
    assert len(images.classes) == 10


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_lone_idx_pair_is_cut(tmp_path: Path, suffix: str) -> None:
    pixels, labels = write_pair(tmp_path, 50, suffix=suffix)
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (40, 10)
    read = {image.tobytes(): label for image, label in zip(images.train_pixels, images.train_labels, strict=True)}
    read |= {image.tobytes(): label for image, label in zip(images.test_pixels, images.test_labels, strict=True)}
    assert read == {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}


def test_two_idx_pairs_are_not_cut(tmp_path: Path) -> None:
    pixels, _ = write_pair(tmp_path, 30, "train", ".gz")
    write_pair(tmp_path, 12)
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (30, 12)
    assert np.array_equal(images.train_pixels[:, 0], pixels)


def test_every_class_is_cut_alike() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    larger, smaller = stratify(labels)
    assert np.bincount(labels[smaller]).tolist() == [20, 10, 2]
    assert sorted([*larger, *smaller]) == list(range(160))


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 40).save(path)


def test_class_folders_are_resized(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        for index in range(5):
            save(tmp_path / name / f"{index}.png", (60 + index, 40))
    images = load(tmp_path)
    assert images.classes == ("cats", "dogs")
    assert images.shape == (3, 32, 32)
    assert "resized to 32 × 32 pixels" in images.origin
    assert np.bincount(images.test_labels).tolist() == [1, 1]


def test_small_gray_pictures_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(2):
            save(tmp_path / name / f"{index}.png", (12, 10), "L")
    images = load(tmp_path)
    assert images.shape == (1, 10, 12)
    assert "12 × 10 pixels as they are" in images.origin


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    for name, level in (("a", 257 * 7), ("b", 65535)):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.full((8, 8), level, np.uint16)).save(tmp_path / name / f"{index}.png")
    images = load(tmp_path)
    assert np.unique(images.train_pixels).tolist() == [7, 255]


def test_class_folders_cut_already(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for index in range(count):
                save(tmp_path / part / name / f"{index}.png", (8, 8), "L")
    images = load(tmp_path)
    assert (len(images.train_labels), len(images.test_labels)) == (6, 4)


def no_labels(folder: Path) -> None:
    write_pair(folder, 20)
    (folder / "t10k-labels-idx1-ubyte").unlink()


def too_few_labels(folder: Path) -> None:
    write_pair(folder, 20)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))


def cut_short(folder: Path) -> None:
    write_pair(folder, 20)
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def damaged_gzip(folder: Path) -> None:
    write_pair(folder, 20, suffix=".gz")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def one_class(folder: Path) -> None:
    save(folder / "cats" / "0.png", (8, 8))
    save(folder / "cats" / "1.png", (8, 8))


def rare_class(folder: Path) -> None:
    one_class(folder)
    save(folder / "dogs" / "0.png", (8, 8))


def no_picture(folder: Path) -> None:
    rare_class(folder)
    (folder / "dogs" / "1.png").write_text("a dog")


def tiny_pictures(folder: Path) -> None:
    for name in ("a", "b"):
        for index in range(2):
            save(folder / name / f"{index}.png", (3, 3))


@pytest.mark.parametrize(
    ("prepare", "answer"),
    [
        (lambda folder: None, "no labeled images there (found: nothing). Pass a folder with IDX files"),
        (no_labels, "no labels of the same name beside it (labels found: none). Expected t10k-labels-idx1-ubyte"),
        (too_few_labels, "holds 20 images and t10k-labels-idx1-ubyte 19 labels"),
        (cut_short, "the header promises 1,280 values of shape (20, 8, 8), the file holds 1,275"),
        (damaged_gzip, "a damaged gzip file"),
        (one_class, "found one class, 'cats'"),
        (rare_class, "class 'dogs' has fewer than 2 images"),
        (no_picture, "not a readable picture"),
        (tiny_pictures, "3 × 3 pixels; at least 4 × 4"),
    ],
)
def test_unusable_data_is_answered(tmp_path: Path, prepare: Callable[[Path], None], answer: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError) as fault:
        load(tmp_path)
    assert answer in str(fault.value)
    assert "\n" not in str(fault.value)
