"""The public datasets as they unpack: every degraded image meets its own clean one."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.degradations import WORDS
from datamodules.images import BadImage
from datamodules.sources.base import CleanFile, DegradedFile, FilePair
from datamodules.sources.benchmarks import AUTO, Benchmarks, Sample
from datamodules.sources.layouts import FOLDERS, LAYOUTS
from pipeline.compose import load_config
from pipeline.config import build, check_targets
from pipeline.stages.shards import ShardsConfig

STEP = 8  # of the colours, so that JPEG does not blur who is who

# Case -> dataset, word, and (split, degraded file, its clean file) below the root.
PAIRED: dict[str, tuple[str, str, list[tuple[str, str, str]]]] = {
    "GOPRO_Large": (
        "gopro",
        "motion-blurry",
        [
            (
                split,
                f"GOPRO_Large/{part}/{scene}/blur/{n}.png",
                f"GOPRO_Large/{part}/{scene}/sharp/{n}.png",
            )
            for split, part in (("train", "train"), ("val", "test"))
            for scene in ("GOPR0372_07_00", "GOPR0374_11_02")
            for n in ("000047", "000050")
        ],
    ),
    "GoPro as repacked": (
        "gopro",
        "motion-blurry",
        [
            (split, f"GoPro/{part}/input/{n}.png", f"GoPro/{part}/target/{n}.png")
            for split, part in (("train", "train"), ("val", "test"))
            for n in ("GOPR0372_07_00-000047", "GOPR0374_11_02-000047")
        ],
    ),
    "RESIDE-6K": (
        "reside_6k",
        "hazy",
        [
            ("train", "RESIDE-6K/train/hazy/1.jpg", "RESIDE-6K/train/GT/1.jpg"),
            ("train", "RESIDE-6K/train/hazy/10.jpg", "RESIDE-6K/train/GT/10.jpg"),
            ("val", "RESIDE-6K/test/hazy/0051_0.8_0.2.jpg", "RESIDE-6K/test/GT/0051_0.8_0.2.jpg"),
            (
                "val",
                "RESIDE-6K/test/hazy/0051_0.95_0.12.jpg",
                "RESIDE-6K/test/GT/0051_0.95_0.12.jpg",
            ),
        ],
    ),
    "RESIDE-6K with one clear image for several": (
        "reside_6k",
        "hazy",
        [
            ("train", "RESIDE-6k/train/hazy/7_0.8_0.2.jpg", "RESIDE-6k/train/GT/7.png"),
            ("train", "RESIDE-6k/train/hazy/7_0.85_0.2.jpg", "RESIDE-6k/train/GT/7.png"),
            ("train", "RESIDE-6k/train/hazy/10_1_0.16.jpg", "RESIDE-6k/train/GT/10.png"),
            ("val", "RESIDE-6k/test/hazy/1400_10.png", "RESIDE-6k/test/GT/1400.png"),
            ("val", "RESIDE-6k/test/hazy/1400_2.png", "RESIDE-6k/test/GT/1400.png"),
        ],
    ),
    "ITS_v2": (
        "its",
        "hazy",
        [
            ("train", f"ITS_v2/hazy/{hazy}.png", f"ITS_v2/clear/{clear}.png")
            for hazy, clear in (
                ("1_1_0.90179", "1"),
                ("1_10_0.98796", "1"),
                ("10_1_0.9", "10"),
                ("2_1_0.8", "2"),
            )
        ],
    ),
    "ITS in RESIDE-Standard": (
        "its",
        "hazy",
        [("train", "ITS/train/ITS_haze/3_1_0.9.png", "ITS/train/ITS_clear/3.png")],
    ),
    "OTS": (
        "ots",
        "hazy",
        [
            ("train", f"OTS/hazy/{hazy}.jpg", f"OTS/clear/{hazy[:4]}.jpg")
            for hazy in ("0005_0.8_0.04", "0005_0.8_0.06", "0025_1_0.2")
        ],
    ),
    "SOTS outdoor": (
        "sots_outdoor",
        "hazy",
        [
            ("val", f"SOTS/outdoor/hazy/{hazy}.jpg", f"SOTS/outdoor/gt/{hazy[:4]}.png")
            for hazy in ("0048_0.9_0.2", "0048_0.9_0.16", "0051_1_0.08")
        ],
    ),
    "SOTS indoor": (
        "sots_indoor",
        "hazy",
        [
            (
                "val",
                f"SOTS/indoor/nyuhaze500/hazy/{n}_{m}.png",
                f"SOTS/indoor/nyuhaze500/gt/{n}.png",
            )
            for n in (1400, 1401)
            for m in (1, 2, 10)
        ],
    ),
    "LOL": (
        "lol",
        "low-light",
        [
            (split, f"LOLdataset/{part}/low/{n}.png", f"LOLdataset/{part}/high/{n}.png")
            for split, part in (("train", "our485"), ("val", "eval15"))
            for n in (1, 2, 10, 111)
        ],
    ),
    "RainDrop": (
        "raindrop",
        "raindrop",
        [
            (
                split,
                f"raindrop_data/{part}/data/{n}_rain.png",
                f"raindrop_data/{part}/gt/{n}_clean.png",
            )
            for split, part in (("train", "train"), ("val", "test_a"))
            for n in (0, 2, 10)
        ],
    ),
    "Rain100H, first edition": (
        "rain100h",
        "rainy",
        [
            *(
                ("train", f"RainTrainH/rain-{n}.png", f"RainTrainH/norain-{n}.png")
                for n in (1, 2, 10)
            ),
            *(
                ("val", f"Rain100H/rainy/rain-{n}.png", f"Rain100H/norain-{n}.png")
                for n in ("001", "002", "010")
            ),
        ],
    ),
    "Rain100H, two folders": (
        "rain100h",
        "rainy",
        [
            ("train", "Rain100H/train/rain/norain-1.png", "Rain100H/train/norain/norain-1.png"),
            ("val", "Rain100H/rain/rain-001.png", "Rain100H/norain/norain-001.png"),
        ],
    ),
    "Rain100H, second edition": (
        "rain100h",
        "rainy",
        [
            (split, f"{part}/rain/{x2}norain-{n}x2.png", f"{part}/norain/norain-{n}.png")
            for split, part, x2 in (
                ("train", "rain_data_train_Heavy", ""),
                ("val", "rain_data_test_Heavy", "X2/"),
            )
            for n in (1, 2, 10)
        ],
    ),
    "SRD": (
        "srd",
        "shadowed",
        [
            *(
                ("train", f"SRD/Train/shadow/{n}.jpg", f"SRD/Train/shadow_free/{n}_no_shadow.jpg")
                for n in ("IMG_5475", "IMG_5475_1", "_MG_2394")
            ),
            *(
                ("val", f"SRD/test_data/shadow/{n}.jpg", f"SRD/test_data/shadow_free/{n}_free.jpg")
                for n in ("IMG_5699", "IMG_5699_1")
            ),
        ],
    ),
    "SRD as ISTD": (
        "srd",
        "shadowed",
        [
            ("train", "SRD/train/train_A/IMG_1.jpg", "SRD/train/train_C/IMG_1_no_shadow.jpg"),
            ("val", "SRD/test/test_A/IMG_2.jpg", "SRD/test/test_C/IMG_2.jpg"),
        ],
    ),
    "Snow100K": (
        "snow100k",
        "snowy",
        [
            (split, f"Snow100K/{part}/synthetic/{n}.jpg", f"Snow100K/{part}/gt/{n}.jpg")
            for split, part in (
                ("train", "all"),
                ("val", "media/jdway/GameSSD/overlapping/test/Snow100K-L"),
            )
            for n in ("beautiful_smile_00003", "beautiful_smile_00489")
        ],
    ),
    "Snow100K, whole": (
        "snow100k_all",
        "snowy",
        [
            (split, f"{part}/synthetic/{n}.jpg", f"{part}/gt/{n}.jpg")
            for split, part in (
                ("train", "Snow100K-training/all"),
                ("val", "Snow100K-testset/jdway/GameSSD/overlapping/test/Snow100K-L"),
            )
            for n in ("beautiful_smile_00003", "city_00017")
        ],
    ),
}

CLEAN_ONLY: dict[str, tuple[str, dict[str, list[str]]]] = {
    "DIV2K": (
        "div2k",
        {"train": ["DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_HR/0800.png"]},
    ),
    "DIV2K beside": ("div2k", {"train": ["DIV2K_train_HR/0002.png"]}),
    "Flickr2K": ("flickr2k", {"train": ["Flickr2K/Flickr2K_HR/000001.png"]}),
    "LIVE1": ("live1", {"val": ["LIVE1/bikes.bmp", "LIVE1/womanhat.bmp"]}),
    "LIVE release 2": ("live1", {"val": ["databaserelease2/refimgs/bikes.bmp"]}),
    "CBSD68": ("cbsd68", {"val": ["CBSD68/original_png/0000.png", "CBSD68/original_png/0006.png"]}),
    "CBSD68 by Berkeley numbers": ("cbsd68", {"val": ["CBSD68/101085.png", "CBSD68/3096.png"]}),
    "CelebA-HQ": (
        "celeba_hq",
        {
            "train": [f"celeba_hq_256/{n}.jpg" for n in ("00100", "01000", "29999")],
            "val": [f"celeba_hq_256/{n}.jpg" for n in ("00000", "00099")],
        },
    ),
}
DATASETS_OF_CLEAN = {
    ("div2k", "train"): ("jpeg-compressed", "noisy"),
    ("flickr2k", "train"): ("jpeg-compressed", "noisy"),
    ("live1", "val"): ("jpeg-compressed",),
    ("cbsd68", "val"): ("noisy",),
    ("celeba_hq", "train"): ("uncompleted",),
    ("celeba_hq", "val"): ("uncompleted",),
}


def paint(path: Path, number: int, side: int = 40) -> None:
    """An image all of one colour, which says its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (STEP * number,) * 3).save(path)


def number_of(image: np.ndarray) -> int:
    return round(float(image.mean()) / STEP)


def unpack(root: Path, case: str) -> tuple[str, dict[str, int]]:
    """Make the tree of a case; returns its dataset and the number of each degraded file."""
    dataset, _, files = PAIRED[case]
    clean = sorted({gt for _, _, gt in files})
    for number, gt in enumerate(clean, 1):
        paint(root / gt, number)
    numbers = {lq: clean.index(gt) + 1 for _, lq, gt in files}
    for lq, number in numbers.items():
        paint(root / lq, number)
    return dataset, numbers


def plan(root: Path, *datasets: str, **folders: str) -> list[Sample]:
    return Benchmarks(str(root), dict.fromkeys(datasets) | folders, seed=5).plan()


@pytest.mark.parametrize("case", PAIRED)
def test_pairs_by_name(case: str, tmp_path: Path) -> None:
    dataset, numbers = unpack(tmp_path, case)
    _, word, files = PAIRED[case]
    (tmp_path / files[0][1]).with_name("Thumbs.db").touch()
    paint((tmp_path / files[0][2]).with_name("clean-only-999.png"), 30)  # shifts any sorted order
    samples = [s for s in plan(tmp_path, dataset) if isinstance(s, FilePair)]
    found = [(s.split, s.lq.relative_to(tmp_path).as_posix(), s.source) for s in samples]
    assert sorted(found) == sorted(files)
    for sample in samples:
        lq, gt = sample.make()
        assert sample.words == (word,)
        assert number_of(gt) == number_of(lq) == numbers[sample.lq.relative_to(tmp_path).as_posix()]


@pytest.mark.parametrize("case", CLEAN_ONLY)
def test_clean_images_serve_their_words(case: str, tmp_path: Path) -> None:
    dataset, splits = CLEAN_ONLY[case]
    for number, path in enumerate([path for paths in splits.values() for path in paths], 1):
        paint(tmp_path / path, number)
    samples = plan(tmp_path, dataset)
    found = {split: [s.source for s in samples if s.split == split] for split in splits}
    assert found == splits
    for sample in samples:
        assert sample.words == DATASETS_OF_CLEAN[dataset, sample.split]
        lq, gt = sample.make()
        if sample.split == "train":
            assert isinstance(sample, CleanFile)
            assert lq is None
        else:
            assert isinstance(sample, DegradedFile)
            assert lq is not None
            assert lq.shape == gt.shape
            again = next(s for s in plan(tmp_path, dataset) if s == sample).make()[0]
            assert np.array_equal(lq, again)


def test_every_dataset_has_a_case() -> None:
    cases = {dataset for dataset, *_ in (*PAIRED.values(), *CLEAN_ONLY.values())}
    assert cases == set(FOLDERS) == {layout.dataset for layout in LAYOUTS}


def test_layouts_are_sound() -> None:
    splits = Counter((layout.dataset, layout.split) for layout in LAYOUTS)
    assert max(splits.values()) == 1
    for layout in LAYOUTS:
        assert layout.split in ("train", "val")
        assert set(layout.words) <= set(WORDS)
        paired = {bool(form.clean) for form in layout.forms}
        assert len(paired) == 1
        assert paired == {False} or len(layout.words) == 1
        for form in layout.forms:
            assert re.compile(form.name).groups >= max(
                (int(group) for path in form.clean for group in re.findall(r"\\(\d)", path)),
                default=0,
            )


def test_all_together_have_keys_of_their_own(tmp_path: Path) -> None:
    for case in ("RESIDE-6K", "ITS_v2", "SOTS outdoor", "SOTS indoor", "GOPRO_Large", "SRD"):
        unpack(tmp_path, case)
    for path in ("DIV2K/DIV2K_train_HR/0001.png", "Flickr2K/Flickr2K_HR/000001.png"):
        paint(tmp_path / path, 1)
    paint(tmp_path / "OTS/hazy/10_1_0.9.png", 1)  # named and numbered as one of ITS
    names = [
        "reside_6k",
        "its",
        "ots",
        "sots_outdoor",
        "sots_indoor",
        "gopro",
        "srd",
        "div2k",
        "flickr2k",
    ]
    samples = plan(tmp_path, *names)
    keys = [(s.split, s.words, s.key) for s in samples]
    assert len(samples) == 33
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[a-z0-9_-]{1,80}", s.key) for s in samples)
    assert samples == plan(tmp_path, *reversed(names))


def test_order_is_that_of_the_paths(tmp_path: Path) -> None:
    unpack(tmp_path, "LOL")
    samples = plan(tmp_path, "lol")
    for _, group in groupby(samples, lambda sample: sample.split):
        sources = [sample.source for sample in group]
        assert sources == sorted(sources)


def test_stray_files_are_no_images(tmp_path: Path) -> None:
    unpack(tmp_path, "GOPRO_Large")
    scene = tmp_path / "GOPRO_Large/train/GOPR0372_07_00"
    for folder in (scene / "blur", scene / "sharp"):
        for name in ("Thumbs.db", ".DS_Store", "._000047.png", "readme.txt"):
            (folder / name).write_bytes(b"\0")
    paint(tmp_path / "GOPRO_Large/train/.trash/blur/000001.png", 1)
    paint(tmp_path / "GOPRO_Large/train/GOPR0372_07_00/blur_gamma/000047.png", 1)
    assert len(plan(tmp_path, "gopro")) == 8


def test_masks_and_streaks_of_rain100h_are_no_samples(tmp_path: Path) -> None:
    unpack(tmp_path, "Rain100H, first edition")
    for name in ("rainregion-1.png", "rainstreak-1.png"):
        paint(tmp_path / "RainTrainH" / name, 1)
    assert len([s for s in plan(tmp_path, "rain100h") if s.split == "train"]) == 3


def test_only_the_published_part_of_snow100k_and_div2k(tmp_path: Path) -> None:
    unpack(tmp_path, "Snow100K")
    for side in ("synthetic", "gt"):
        paint(tmp_path / f"Snow100K/all/{side}/city_00001.jpg", 1)
    for number in ("0001", "0801", "0900"):
        paint(tmp_path / f"DIV2K/DIV2K_train_HR/{number}.png", 1)
    assert len(plan(tmp_path, "snow100k")) == 4
    assert len(plan(tmp_path, "snow100k_all")) == 5
    assert [s.source for s in plan(tmp_path, "div2k")] == ["DIV2K/DIV2K_train_HR/0001.png"]


def test_missing_clean_image_is_named_when_made(tmp_path: Path) -> None:
    unpack(tmp_path, "SOTS outdoor")
    clean = tmp_path / "SOTS/outdoor/gt/0048.png"
    clean.unlink()
    broken = [s for s in plan(tmp_path, "sots_outdoor") if "0048" in s.key]
    assert len(broken) == 2
    for sample in broken:
        with pytest.raises(BadImage, match=re.escape(str(clean.with_suffix("")))):
            sample.make()
    assert clean not in Benchmarks(str(tmp_path), {"sots_outdoor": None}, 0).files()


@pytest.mark.parametrize(
    ("case", "stray"),
    [
        ("RainDrop", "raindrop_data/train/data/3.png"),
        ("LOL", "LOLdataset/our485/low/2 (copy).png"),
        ("SRD", "SRD/Train/shadow/IMG_1_no_shadow.jpg"),
        ("SOTS outdoor", "SOTS/outdoor/hazy/0048.png"),
        ("Rain100H, first edition", "Rain100H/rainy/norain-001.png"),
    ],
)
def test_other_names_are_an_error(case: str, stray: str, tmp_path: Path) -> None:
    dataset, _ = unpack(tmp_path, case)
    paint(tmp_path / stray, 1)
    with pytest.raises(ValueError, match=re.escape(stray)):
        plan(tmp_path, dataset)


def test_unnumbered_face_is_in_no_split_and_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "celeba_hq_256/00000.jpg", 1)
    paint(tmp_path / "celeba_hq_256/someone.jpg", 1)
    with pytest.raises(ValueError, match=r"someone\.jpg"):
        plan(tmp_path, "celeba_hq")


@pytest.mark.parametrize("twin", ["LOLdataset/our485/low/10.jpg", "LOLdataset/our485/high/10.jpg"])
def test_two_suffixes_of_one_name_are_an_error(twin: str, tmp_path: Path) -> None:
    unpack(tmp_path, "LOL")
    paint(tmp_path / twin, 1)
    with pytest.raises(ValueError, match="suffix alone"):
        plan(tmp_path, "lol")


def test_unknown_dataset_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'gopr0'.*gopro"):
        plan(tmp_path, "gopr0")
    with pytest.raises(ValueError, match="no dataset"):
        plan(tmp_path)


def test_all_missing_folders_are_named_at_once(tmp_path: Path) -> None:
    unpack(tmp_path, "LOL")
    with pytest.raises(FileNotFoundError) as error:
        plan(tmp_path, "gopro", "lol", srd="old/SRD")
    assert all(name in str(error.value) for name in (*FOLDERS["gopro"], "old/SRD"))
    assert "LOL" not in str(error.value)


def test_empty_split_is_named(tmp_path: Path) -> None:
    unpack(tmp_path, "LOL")
    for path in (tmp_path / "LOLdataset/eval15/low").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lol \(val\).*eval15/low"):
        plan(tmp_path, "lol")


def test_folder_may_be_given(tmp_path: Path) -> None:
    unpack(tmp_path, "LOL")
    (tmp_path / "old").mkdir()
    (tmp_path / "LOLdataset").rename(tmp_path / "old/low light")
    samples = plan(tmp_path, lol="old/low light")
    assert samples[0].source == "old/low light/our485/high/1.png"
    assert len(samples) == 8


def test_train_and_test_of_rain100h_may_lie_apart(tmp_path: Path) -> None:
    unpack(tmp_path, "Rain100H, first edition")
    for part, folder in (("train", "RainTrainH"), ("test", "Rain100H")):
        (tmp_path / part).mkdir()
        (tmp_path / folder).rename(tmp_path / part / folder)
    samples = plan(tmp_path, rain100h="test/Rain100H")
    assert Counter(s.split for s in samples) == {"train": 3, "val": 3}
    assert samples[0].source == "train/RainTrainH/norain-1.png"


def test_files_are_all_images_of_the_samples(tmp_path: Path) -> None:
    unpack(tmp_path, "SOTS indoor")
    paint(tmp_path / "LIVE1/bikes.bmp", 1)
    names = {"sots_indoor": AUTO, "live1": AUTO}
    files = Benchmarks(str(tmp_path), names, 0).files()
    assert files == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 9


def test_configuration_lists_the_ten_tasks(tmp_path: Path) -> None:
    overrides = ["source=benchmarks", f"shards.source.root={tmp_path}"]
    config = load_config(overrides)
    check_targets(config)
    listed = set(config[ShardsConfig].source["datasets"])
    for split in ("train", "val"):
        chosen = [x for x in LAYOUTS if x.dataset in listed and x.split == split]
        assert {word for layout in chosen for word in layout.words} == set(WORDS)


def test_datasets_can_be_left_out_or_named_on_the_command_line(tmp_path: Path) -> None:
    overrides = ["source=benchmarks", f"shards.source.root={tmp_path}"]
    less = load_config([*overrides, "~shards.source.datasets.srd"])[ShardsConfig].source["datasets"]
    assert len(less) == 11
    assert "srd" not in less
    unpack(tmp_path, "LOL")
    only = ["~shards.source.datasets", "+shards.source.datasets={lol: auto}"]
    source = build(load_config([*overrides, *only])[ShardsConfig].source)
    assert len(source.plan()) == 8
