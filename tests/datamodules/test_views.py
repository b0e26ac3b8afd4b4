"""What training sees: windows, tiles, shares, and degradations made while it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.augment import RandomPatch, View, add_margin, whole_image
from datamodules.dataset import TrainDataset, load_whole
from datamodules.degradations import WORDS, degrade
from datamodules.images import BadImage
from datamodules.mixture import Mixture
from datamodules.shards.reader import ShardSet, Window
from datamodules.shards.writer import tiles
from tests.conftest import photograph
from tests.samples import Made, many, write

CLEAN = [
    Made("train", ("jpeg-compressed", "noisy", "uncompleted"), f"clean-{i}", 70, 90, paired=False)
    for i in range(3)
]

# Degraded while training


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Clean images that serve three words, two pairs of a fourth, and one for validation."""
    write(tmp_path, [*CLEAN, *many("train", "rainy", 2), *many("val", "rainy", 1)])
    return tmp_path


def draws(folder: Path, with_clean: bool = True, side: int = 24, **changes: Any) -> TrainDataset:
    shards = ShardSet(folder, "train")
    settings: dict[str, Any] = {"seed": 0} | changes
    mixture = Mixture({w: samples.counts for w, samples in shards.tasks.items()}, **settings)
    return TrainDataset(shards, None, mixture, RandomPatch(side), with_clean)


def window_of(dataset: TrainDataset, n: int, height: int, width: int) -> View:
    """What draw n sees, by asking for it first."""
    return dataset.augment(height, width, dataset.mixture.rng(n))


def test_clean_images_are_drawn_for_each_of_their_words(clean: Path) -> None:
    dataset = draws(clean)
    words = Counter(dataset[n].sample.degradation for n in range(40))
    assert words == dict.fromkeys(("jpeg-compressed", "noisy", "rainy", "uncompleted"), 10)
    shards = {name.partition("/")[0] for name in (dataset[n].sample.key for n in range(40))}
    assert shards == {"clean-train-000000.tar", "rainy-train-000000.tar"}


def test_degradation_is_new_at_each_draw_and_fixed_by_seed_and_number(clean: Path) -> None:
    first, again = draws(clean), draws(clean)
    seen: dict[tuple[str, str], list[tuple[bytes, bytes]]] = {}
    for n in range(48):
        one, two = first[n].sample, again[n].sample
        assert np.array_equal(one.lq, two.lq)
        assert np.array_equal(one.gt, two.gt)
        seen.setdefault((one.degradation, one.key), []).append((one.lq.tobytes(), one.gt.tobytes()))
    other = draws(clean, seed=1)
    assert any(not np.array_equal(other[n].sample.lq, first[n].sample.lq) for n in range(4))
    assert all(len(set(pairs)) == len(pairs) for pairs in seen.values())  # four epochs
    assert all(len(pairs) == 4 for (word, _), pairs in seen.items() if word != "rainy")


def test_same_picture_is_degraded_differently_in_another_epoch(clean: Path) -> None:
    dataset = draws(clean)
    dataset.augment = whole_image
    samples = [dataset[n].sample for n in range(36)]
    found = [s for s in samples if s.degradation == "noisy" and s.key.endswith("clean-1")]
    assert len(found) == 3
    assert len({sample.gt.tobytes() for sample in found}) == 1
    assert len({sample.lq.tobytes() for sample in found}) == 3


def test_views_and_degradations_depend_on_seed_and_number() -> None:
    first, other = Mixture({"a": [9]}, 0), Mixture({"a": [9]}, 1)
    generators = [first.rng(5), first.rng(6), other.rng(5), other.rng(6), first.rng(5)]
    drawn = [int(rng.integers(2**63)) for rng in generators]
    assert drawn[0] == drawn[4]
    assert len(set(drawn)) == 4


def test_a_view_is_one_of_the_eight_of_a_square() -> None:
    image = photograph(5, 7)
    transposed = image.transpose(1, 0, 2)
    eight = [
        picture[::down, ::right]
        for picture in (image, transposed)
        for down in (1, -1)
        for right in (1, -1)
    ]
    seen = set()
    for turns in range(4):
        for flip in (False, True):
            oriented = View(Window(0, 0, 5, 7), turns, flip).orient(image)
            seen.add(next(i for i, view in enumerate(eight) if np.array_equal(view, oriented)))
    assert seen == set(range(8))


def test_clean_crop_is_that_of_the_stored_image(clean: Path) -> None:
    dataset = draws(clean)
    for n in range(24):
        sample = dataset[n].sample
        number = int(sample.key[-1])
        stored = (many("train", "rainy", 2) if sample.degradation == "rainy" else CLEAN)[number]
        lq, gt = stored.make()
        view = window_of(dataset, n, *gt.shape[:2])
        top, left, height, width = view.window
        rows, columns = slice(top, top + height), slice(left, left + width)
        assert np.array_equal(sample.gt, view.orient(gt[rows, columns]))
        if lq is not None:
            assert np.array_equal(sample.lq, view.orient(lq[rows, columns]))
        elif sample.degradation == "jpeg-compressed":
            whole = degrade("jpeg-compressed", gt, 0)
            assert np.array_equal(sample.lq, view.orient(whole[rows, columns]))


def test_jitter_is_of_clean_images_before_they_are_degraded_and_of_no_stored_pair(
    clean: Path,
) -> None:
    plain, varied = draws(clean), draws(clean)
    varied.color_jitter = 0.4
    for n in range(24):
        before, after = plain[n].sample, varied[n].sample
        if after.degradation == "rainy":
            assert np.array_equal(after.lq, before.lq)
            assert np.array_equal(after.gt, before.gt)
        else:
            assert not np.array_equal(after.gt, before.gt)
        if after.degradation == "uncompleted":
            kept = (after.lq == after.gt).all(axis=-1)
            assert kept.mean() > 0.05


def test_degraded_image_does_not_depend_on_whether_the_clean_one_is_wanted(clean: Path) -> None:
    both, alone = draws(clean), draws(clean, with_clean=False)
    assert [both[n].sample.key for n in range(24)] == [alone[n].sample.key for n in range(24)]
    assert all(np.array_equal(both[n].sample.lq, alone[n].sample.lq) for n in range(24))


def test_stored_pair_of_a_clean_task_has_no_whole_degraded_image(clean: Path) -> None:
    address = ShardSet(clean, "train").tasks["noisy"][0]
    with pytest.raises(BadImage, match=r"clean-train-000000\.tar/clean-0: has no degraded image"):
        load_whole(address)


# Surroundings


def _cut(image: np.ndarray, window: Window) -> np.ndarray:
    top, left, height, width = window
    return image[top : top + height, left : left + width]


@pytest.mark.parametrize("picture", ["noise", "smooth"])
def test_jpeg_with_margin_is_that_of_the_whole_image(picture: str) -> None:
    """Every pixel of the window, at the borders of the image too, for any window."""
    rng = np.random.default_rng(0)
    for n in range(60):
        height, width = (int(size) for size in rng.integers(60, 160, 2))
        image = photograph(height, width, seed=n)
        if picture == "noise":
            image = rng.integers(0, 256, image.shape, dtype=np.uint8)
        side = int(rng.integers(8, 50))
        window = RandomPatch(side)(height, width, rng).window
        around = add_margin(window, height, width)
        inside = Window(window.top - around.top, window.left - around.left, side, side)
        part = degrade("jpeg-compressed", np.ascontiguousarray(_cut(image, around)), 0)
        whole = degrade("jpeg-compressed", image, 0)
        assert np.array_equal(_cut(part, inside), _cut(whole, window)), (window, around)


@pytest.mark.parametrize("shift", [(8, 0), (0, 8), (15, 1)])
def test_jpeg_off_its_grid_is_another(shift: tuple[int, int]) -> None:
    """Why margins begin at a multiple of 16."""
    image = photograph(96, 96)
    down, right = shift
    part = degrade("jpeg-compressed", np.ascontiguousarray(image[down:, right:]), 0)
    whole = degrade("jpeg-compressed", image, 0)
    assert not np.array_equal(part[32:48, 32:48], whole[down:, right:][32:48, 32:48])


def test_margins_hold_the_window_and_stay_in_the_image() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        height, width = (int(size) for size in rng.integers(1, 200, 2))
        top, left = int(rng.integers(height)), int(rng.integers(width))
        rows, columns = (
            int(rng.integers(1, height - top + 1)),
            int(rng.integers(1, width - left + 1)),
        )
        around = add_margin(Window(top, left, rows, columns), height, width)
        for start, length, outer, outer_length, size in (
            (top, rows, around.top, around.height, height),
            (left, columns, around.left, around.width, width),
        ):
            before, after = start - outer, outer + outer_length - start - length
            assert outer % 16 == 0
            assert 16 <= before < 32 or (outer == 0 and 0 <= before < 16)
            assert 16 < after <= 32 or (outer + outer_length == size and 0 <= after <= 32)


def test_whole_image_has_no_margin() -> None:
    window = whole_image(50, 70, np.random.default_rng(0)).window
    assert window == add_margin(window, 50, 70) == Window(0, 0, 50, 70)


@pytest.mark.parametrize("word", WORDS)
def test_each_word_is_degraded_in_a_window_of_its_image(tmp_path: Path, word: str) -> None:
    samples = [Made("train", (word,), "one", height=130, width=150, paired=False)]
    write(tmp_path, samples)
    dataset = draws(tmp_path, side=64)
    sample = dataset[0].sample
    assert sample.lq.shape == sample.gt.shape == (64, 64, 3)
    assert not np.array_equal(sample.lq, sample.gt)


# Tiles


@pytest.mark.parametrize("tile", [32, 33, 64, 512])
def test_tiles_cover_every_pixel_once_and_none_is_larger(tile: int) -> None:
    rng = np.random.default_rng(tile)
    sizes = [tuple(rng.integers(1, 1500, 2).tolist()) for _ in range(60)]
    edges = [1, tile - 1, tile, tile + 1, 2 * tile, 2 * tile + 1]
    for height, width in [*sizes, *((a, b) for a in edges for b in edges)]:
        covered = np.zeros((height, width), np.uint8)
        found = tiles(height, width, tile)
        for rows, columns in found:
            covered[rows, columns] += 1
            assert 0 < rows.stop - rows.start <= tile
            assert 0 < columns.stop - columns.start <= tile
        assert (covered == 1).all()
        assert len(found) == -(-height // tile) * -(-width // tile)
        for side, total in ((0, height), (1, width)):
            lengths = {tile_[side].stop - tile_[side].start for tile_ in found}
            assert max(lengths) - min(lengths) <= 1
            assert total <= tile or min(lengths) >= tile // 2


# Shares and windows of the mixture


@pytest.mark.parametrize("shares", [{"a": 3}, {"a": 3, "b": 1}, {"a": 6, "b": 2}])
def test_shares_hold_in_each_block_of_draws(shares: dict[str, int]) -> None:
    mixture = Mixture({"a": [5], "b": [90, 7]}, 0, shares)
    block = shares["a"] + shares.get("b", 1)
    orders = set()
    for start in range(0, 50 * block, block):
        words = [mixture(n)[0] for n in range(start, start + block)]
        assert Counter(words) == {"a": shares["a"], "b": shares.get("b", 1)}
        orders.add(tuple(words))
    assert len(orders) > 3


def test_each_epoch_of_a_task_with_a_share_holds_every_sample_once() -> None:
    mixture = Mixture({"a": [5, 4], "b": [3], "c": [50]}, 0, {"a": 3, "c": 2})
    for word, size in (("a", 9), ("b", 3), ("c", 50)):
        drawn = [position for name, position in map(mixture, range(6 * 60)) if name == word]
        for start in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[start : start + size]) == list(range(size))


def test_share_of_none_leaves_a_task_out_and_the_rest_as_it_was() -> None:
    mixture = Mixture({"a": [5], "b": [5], "c": [5]}, 0, {"b": 0})
    assert Counter(mixture(n)[0] for n in range(100)) == {"a": 50, "c": 50}
    assert mixture.words == ("a", "c")


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"a": 1, "dusty": 2}, r"task_weights names dusty; there are samples of a, b"),
        ({"b": -1}, r"task_weights=\{'b': -1\}: give whole numbers, 0 or more"),
        ({"a": 0, "b": 0}, r"task_weights leaves no task to draw"),
    ],
)
def test_impossible_shares_are_named(shares: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Mixture({"a": [5], "b": [5]}, 0, shares)


def shards_of(positions: Sequence[int], counts: Sequence[int]) -> list[int]:
    found: list[int] = np.searchsorted(np.cumsum(counts), positions, side="right").tolist()
    return found


@pytest.mark.parametrize("window", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("counts", [[10] * 9, [4, 9, 1, 7, 30, 2, 5, 5], [6]])
def test_window_bounds_the_shards_in_use(window: int, counts: list[int]) -> None:
    mixture = Mixture({"a": counts, "b": [3]}, 0, window=window)
    size = sum(counts)
    drawn = [position for word, position in map(mixture, range(2 * 6 * size)) if word == "a"]
    orders = set()
    for start in range(0, len(drawn), size):
        epoch = drawn[start : start + size]
        assert sorted(epoch) == list(range(size))
        orders.add(tuple(epoch))
    assert len(orders) > 1
    # As many draws as the smallest shard has samples meet two groups of shards at most.
    run = min(counts)
    shards = shards_of(drawn, counts)
    most = max(len(set(shards[i : i + run])) for i in range(len(shards) - run + 1))
    assert most <= 2 * window


@pytest.mark.parametrize("window", [1, 2, 3])
def test_shard_is_used_in_one_go_in_each_epoch(window: int) -> None:
    """Between its first and its last sample at most `window` shards are drawn from."""
    counts = [10] * 9
    mixture = Mixture({"a": counts}, 0, window=window)
    for epoch in range(4):
        shards = shards_of([mixture(90 * epoch + n)[1] for n in range(90)], counts)
        for shard in range(9):
            first, last = shards.index(shard), 89 - shards[::-1].index(shard)
            assert len(set(shards[first : last + 1])) <= window


def test_window_of_all_shards_is_a_full_shuffle() -> None:
    counts = {"a": [3, 4, 5]}
    full, wide = Mixture(counts, 0), Mixture(counts, 0, window=3)
    assert [full(n) for n in range(36)] == [wide(n) for n in range(36)]
