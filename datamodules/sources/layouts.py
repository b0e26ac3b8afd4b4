"""How the public datasets lie on disk once they are unpacked: folders, file names, pairs.

A dataset is a folder and its splits; another one is another entry in `FOLDERS` and `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One form in which the images of a split are spread.

    Attributes:
        images: a glob below the dataset's folder for the degraded images, or for the clean ones
            where there are no others. It may begin with `../`, to look beside that folder.
        name: a regular expression for the whole name, without suffix, of each of these images.
        clean: where the clean image of a degraded one is: paths seen from its folder, without
            suffix, with the groups of `name` as `\\1` and the whole as `\\g<0>`. The first one that
            exists is taken. Empty where there are clean images only.
    """

    images: str
    name: str = ".+"
    clean: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A split of a dataset.

    Attributes:
        dataset: a key of `FOLDERS`.
        split: `train` or `val`.
        words: the degradations; several where all of them are made from the same clean images.
        forms: the forms it is spread in; the first one of which there are images is taken.
        part: a regular expression for the names, without suffix, that belong to this split; the
            other images are no part of it.
    """

    dataset: str
    split: str
    words: tuple[str, ...]
    forms: tuple[Form, ...]
    part: str = ".*"


FOLDERS: Mapping[str, tuple[str, ...]] = {
    "gopro": ("GOPRO_Large", "GoPro", "GOPRO"),
    "reside_6k": ("RESIDE-6K/RESIDE-6K", "RESIDE-6K", "RESIDE-6k"),
    "its": ("ITS_v2", "ITS", "RESIDE/ITS"),
    "ots": ("OTS", "RESIDE/OTS"),
    "sots_indoor": ("SOTS/indoor/nyuhaze500", "SOTS/nyuhaze500", "SOTS/indoor"),
    "sots_outdoor": ("SOTS/outdoor",),
    "div2k": ("DIV2K", "."),
    "flickr2k": ("Flickr2K", "flickr2k/Flickr2K", "."),
    "lol": ("LOLdataset", "lol_dataset", "LOL-v1", "LOLv1", "LOL"),
    "raindrop": ("raindrop_data", "RainDrop", "Raindrop", "raindrop", "DeRaindrop"),
    "rain100h": ("Rain100H", "."),
    "srd": ("SRD", "SRD_Dataset"),
    "snow100k": ("Snow100K", "Snow100k", "."),
    "snow100k_all": ("Snow100K", "Snow100k", "."),
    "celeba_hq": ("celeba_hq_256", "celebahq-resized-256x256/celeba_hq_256", "CelebA-HQ-256"),
    "live1": ("LIVE1", "live1", "databaserelease2"),
    "cbsd68": ("CBSD68", "CBSD68-dataset/CBSD68"),
}
"""The folder names a dataset is known under, below the root; the first that exists is taken."""

_HAZY = r"(\d+)_.+"  # 0048_0.9_0.2 is one of several hazy images of 0048
_SOTS = (Form("hazy/*", _HAZY, (r"../gt/\1", r"../clear/\1")),)
_SAME_GT = (r"../gt/\g<0>",)
_SNOW_TRAIN = tuple(
    Form(f"{folder}/synthetic/*", clean=_SAME_GT)
    for folder in ("all", "Snow100K-training/all", "Snow100K-training", "train")
)
_SNOW_TEST = tuple(
    Form(f"{folder}Snow100K-L/synthetic/*", clean=_SAME_GT)
    for folder in (
        "media/jdway/GameSSD/overlapping/test/",
        "Snow100K-testset/media/jdway/GameSSD/overlapping/test/",
        "Snow100K-testset/jdway/GameSSD/overlapping/test/",
        "Snow100K-testset/",
        "test/",
        "",
    )
)


def _gopro(split: str) -> tuple[Form, ...]:
    return (
        Form(f"{split}/*/blur/*", r"\d+", (r"../sharp/\g<0>",)),
        Form(f"{split}/blur/*", clean=(r"../sharp/\g<0>",)),
        Form(f"{split}/input/*", clean=(r"../target/\g<0>",)),
    )


def _reside_6k(split: str) -> tuple[Form, ...]:
    return (Form(f"{split}/hazy/*", r"([^_]+)(?:_.+)?", (r"../GT/\g<0>", r"../GT/\1")),)


def _raindrop(split: str) -> tuple[Form, ...]:
    return tuple(
        Form(f"{folder}/data/*", r"(\d+)_rain", (r"../gt/\1_clean",))
        for folder in (split, f"{split}/{split}")
    )


def _rain(folder: str) -> tuple[Form, ...]:
    """The second edition: pairs share their number, rainy names may end in x2."""
    return (
        Form(f"{folder}/rain/X2/*", r"norain-(\d+)x2", (r"../../norain/norain-\1",)),
        Form(f"{folder}/rain/*", r"(?:no)?rain-(\d+)(?:x2)?", (r"../norain/norain-\1",)),
    )


def _srd(split: str, *folders: str) -> tuple[Form, ...]:
    pairs = [(f"{folder}/shadow", "shadow_free") for folder in folders]
    pairs.append((f"{split}/{split}_A", f"{split}_C"))  # as the ISTD dataset is laid out
    return tuple(
        Form(
            f"{lq}/*",
            r"(?!.*_(?:no_shadow|free)$).+",
            (rf"../{gt}/\g<0>_no_shadow", rf"../{gt}/\g<0>_free", rf"../{gt}/\g<0>"),
        )
        for lq, gt in pairs
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout("gopro", "train", ("motion-blurry",), _gopro("train")),
    Layout("gopro", "val", ("motion-blurry",), _gopro("test")),
    Layout("reside_6k", "train", ("hazy",), _reside_6k("train")),
    Layout("reside_6k", "val", ("hazy",), _reside_6k("test")),
    Layout(
        "its",
        "train",
        ("hazy",),
        (
            Form("hazy/*", _HAZY, (r"../clear/\1",)),
            Form("train/ITS_haze/*", _HAZY, (r"../ITS_clear/\1",)),
        ),
    ),
    Layout("ots", "train", ("hazy",), (Form("hazy/*", _HAZY, (r"../clear/\1",)),)),
    Layout("sots_indoor", "val", ("hazy",), _SOTS),
    Layout("sots_outdoor", "val", ("hazy",), _SOTS),
    Layout(
        "div2k",
        "train",
        ("jpeg-compressed", "noisy"),
        (Form("DIV2K_train_HR/*", r"\d{4}"), Form("DIV2K_train_HR/DIV2K_train_HR/*", r"\d{4}")),
        part="0[0-7].*|0800",  # one edition of this folder holds the validation images too
    ),
    Layout("flickr2k", "train", ("jpeg-compressed", "noisy"), (Form("Flickr2K_HR/*", r"\d{6}"),)),
    Layout("live1", "val", ("jpeg-compressed",), (Form("refimgs/*"), Form("*"))),
    Layout("cbsd68", "val", ("noisy",), (Form("original_png/*"), Form("original/*"), Form("*"))),
    Layout("lol", "train", ("low-light",), (Form("our485/low/*", r"\d+", (r"../high/\g<0>",)),)),
    Layout("lol", "val", ("low-light",), (Form("eval15/low/*", r"\d+", (r"../high/\g<0>",)),)),
    Layout("raindrop", "train", ("raindrop",), _raindrop("train")),
    Layout("raindrop", "val", ("raindrop",), _raindrop("test_a")),
    Layout(
        "rain100h",
        "train",
        ("rainy",),
        (
            *(
                Form(f"{folder}/rain-*", r"rain-(\d+)", (r"norain-\1",))
                for folder in ("RainTrainH", "../RainTrainH", "../../train/RainTrainH")
            ),
            Form("rain_data_train_Heavy/rain-*", r"rain-(\d+)", (r"norain-\1",)),
            *_rain("rain_data_train_Heavy"),
            *_rain("train"),
        ),
    ),
    Layout(
        "rain100h",
        "val",
        ("rainy",),
        (
            Form("rainy/*", r"rain-(\d+)", (r"../norain-\1", r"../norain/norain-\1", r"norain-\1")),
            Form("rain/rain-*", r"rain-(\d+)", (r"../norain/norain-\1",)),
            *_rain("rain_data_test_Heavy"),
            *_rain("rain_heavy_test"),
            *_rain("test"),
        ),
    ),
    Layout("srd", "train", ("shadowed",), _srd("train", "Train", "train", "SRD_Train")),
    Layout("srd", "val", ("shadowed",), _srd("test", "Test", "test", "test_data", "SRD_Test/SRD")),
    Layout("snow100k", "train", ("snowy",), _SNOW_TRAIN, part="beautiful_smile.*"),
    Layout("snow100k", "val", ("snowy",), _SNOW_TEST, part="beautiful_smile.*"),
    Layout("snow100k_all", "train", ("snowy",), _SNOW_TRAIN),
    Layout("snow100k_all", "val", ("snowy",), _SNOW_TEST),
    Layout("celeba_hq", "train", ("uncompleted",), (Form("*", r"\d{5}"),), part=r"(?!000)\d+"),
    Layout("celeba_hq", "val", ("uncompleted",), (Form("*", r"\d{5}"),), part=r"000\d\d"),
)
