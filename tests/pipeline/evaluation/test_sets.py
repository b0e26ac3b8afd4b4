"""Which images are evaluated, and which outputs of other methods belong to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import BadImage, image_size
from pipeline.evaluation.data import BadOutputs, find_outputs, key_of, read_sets
from tests.evaluating import WORDS, save_outputs, save_pairs
from tests.samples import many, write

NAMES = ["hazy/a", "hazy/b", "noisy/a"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return save_pairs(tmp_path / "mine", NAMES)


def test_folders_give_pairs_named_after_the_degraded_image(pairs: Path) -> None:
    samples = read_sets({"": pairs}, WORDS)
    assert [key_of(s) for s in samples] == ["mine/hazy/a", "mine/hazy/b", "mine/noisy/a"]
    degraded, clean = samples[0].load()
    assert clean is not None
    assert (degraded == np.array(Image.open(pairs / "hazy/LQ/a.png"))).all()
    assert (clean == np.array(Image.open(pairs / "hazy/GT/a.png"))).all()
    assert samples[0].size() == (40, 48)


def test_folder_without_clean_images_has_none(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path / "x", NAMES, clean=False)}, WORDS)
    assert [sample.has_clean for sample in samples] == [False] * 3
    assert samples[0].load().clean is None


def test_grey_clean_image_is_read_as_colour(pairs: Path) -> None:
    grey = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)
    Image.fromarray(grey).save(pairs / "hazy/GT/a.png")
    clean = read_sets({"": pairs}, WORDS)[0].load().clean
    assert clean is not None
    assert (clean == grey[..., None]).all() and clean.shape == (40, 48, 3)


def test_sets_are_told_apart_by_their_names(pairs: Path) -> None:
    samples = read_sets({"one": pairs, "two": pairs}, WORDS)
    assert [s.dataset for s in samples] == ["one"] * 3 + ["two"] * 3


def test_shards_give_their_validation_split(tmp_path: Path) -> None:
    write(tmp_path, [*many("train", "rainy", 2), *many("val", "rainy", 3), *many("val", "hazy", 1)])
    samples = read_sets({"": tmp_path}, WORDS)
    assert [key_of(s) for s in samples] == [
        "validation/hazy/hazy-val-000",
        *(f"validation/rainy/rainy-val-00{i}" for i in range(3)),
    ]
    assert samples[0].load().degraded.shape == (40, 48, 3)
    assert samples[0].size() == (40, 48)
    named = read_sets({"mine": tmp_path}, WORDS)
    assert {s.dataset for s in named} == {"mine"}


def test_crops_of_one_photograph_go_by_their_keys(tmp_path: Path) -> None:
    class Crop(type(many("val", "hazy", 1)[0])):  # type: ignore[misc]
        source = "GOPRO/test/photo.png"

    write(tmp_path, [Crop("val", ("hazy",), "one"), Crop("val", ("hazy",), "two")])
    keys = [key_of(s) for s in read_sets({"": tmp_path}, WORDS)]
    assert keys == ["GOPRO/hazy/one", "GOPRO/hazy/two"]


def test_unknown_task_is_named_with_the_known_ones(pairs: Path) -> None:
    (pairs / "hazy").rename(pairs / "haze")
    with pytest.raises(ValueError, match=r"unknown task 'haze' in .*mine; known ones: hazy, noisy"):
        read_sets({"": pairs}, WORDS)


def test_unknown_task_of_shards_is_named(tmp_path: Path) -> None:
    write(tmp_path, many("val", "snowy", 1))
    with pytest.raises(ValueError, match="unknown task 'snowy'"):
        read_sets({"": tmp_path}, WORDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no folder .*nothing"),
        (lambda root: root.mkdir(), "has neither index.json nor folders WORD/LQ"),
        (lambda root: (root / "hazy/LQ").mkdir(parents=True), "no image in .*hazy/LQ"),
        (lambda root: (root / "hazy/GT").mkdir(parents=True), "no folder .*hazy/LQ"),
    ],
)
def test_empty_sets_are_refused(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "nothing")  # type: ignore[operator]
    with pytest.raises(FileNotFoundError, match=message):
        read_sets({"": tmp_path / "nothing"}, WORDS)


def test_pairs_that_are_none_are_all_named(pairs: Path) -> None:
    (pairs / "hazy/GT/b.png").unlink()
    with pytest.raises(ValueError, match=r"no clean image of this name for .*hazy/LQ/b\.png"):
        read_sets({"": pairs}, WORDS)
    save_pairs(pairs, ["hazy/b"], (32, 32))
    Image.new("RGB", (30, 30)).save(pairs / "hazy/GT/b.png")
    with pytest.raises(ValueError, match=r"differ in size: .*LQ/b\.png and .*GT/b\.png"):
        read_sets({"": pairs}, WORDS)


def test_size_follows_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg", "a.jpg") == (30, 20)
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(BadImage, match=r"b\.png: not an image"):
        image_size(tmp_path / "b.png", "b.png")


@pytest.mark.parametrize("prefix", ["mine/{}", "{}"])
def test_outputs_are_found_in_either_layout(pairs: Path, tmp_path: Path, prefix: str) -> None:
    out = save_outputs(tmp_path / "out", [prefix.format(name) for name in NAMES])
    found = find_outputs({"X": out}, read_sets({"": pairs}, WORDS))
    assert found["X"] == {f"mine/{name}": out / f"{prefix.format(name)}.png" for name in NAMES}


def test_flat_outputs_are_found_by_name(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path / "mine", ["hazy/a", "noisy/b"])}, WORDS)
    out = save_outputs(tmp_path / "out", ["a", "b"])
    found = find_outputs({"X": out}, samples)
    assert found["X"] == {"mine/hazy/a": out / "a.png", "mine/noisy/b": out / "b.png"}


def test_every_fault_of_every_method_is_named_at_once(pairs: Path, tmp_path: Path) -> None:
    one = save_outputs(tmp_path / "one", ["hazy/a", "noisy/a_out", "noisy/z"])
    save_outputs(one, ["hazy/b"], (20, 30))
    two = save_outputs(tmp_path / "two", ["hazy/a", "hazy/b", "noisy/a", "mine/hazy/a"])
    (two / "hazy/b.png").write_bytes(b"no image")
    with pytest.raises(BadOutputs) as raised:
        find_outputs({"one": one, "two": two}, read_sets({"": pairs}, WORDS))
    lines = str(raised.value).splitlines()
    assert "not one image for each of 3 samples" in lines[0]
    assert lines[1:] == [
        f"evaluate.methods.one={one}",
        "  missing: 1 (mine/noisy/a)",
        "  extra: 2 (noisy/a_out.png, noisy/z.png)",
        "  wrong: 1 (hazy/b.png: 30x20 instead of 48x40)",
        f"evaluate.methods.two={two}",
        "  in several places: 1 (mine/hazy/a: mine/hazy/a.png and hazy/a.png)",
        "  wrong: 1 (hazy/b.png: not an image)",
        lines[-1],
    ]
    assert "TASK/NAME.png" in lines[-1]


def test_one_file_does_not_serve_two_samples(pairs: Path, tmp_path: Path) -> None:
    out = save_outputs(tmp_path / "out", ["a", "b"])
    with pytest.raises(
        BadOutputs, match=r"one file for several .*a\.png: mine/hazy/a and mine/noisy"
    ):
        find_outputs({"X": out}, read_sets({"": pairs}, WORDS))


def test_missing_folder_of_outputs_is_named(pairs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluate\.methods\.X: no folder gone"):
        find_outputs({"X": Path("gone")}, read_sets({"": pairs}, WORDS))
