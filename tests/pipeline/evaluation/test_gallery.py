"""The gallery shows the worst and the best cases of each task, the worst first."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.images import read_image
from pipeline.evaluation.data import key_of, read_sets
from pipeline.evaluation.gallery import SIDE, data_url, gallery
from pipeline.evaluation.methods import Input, Method, Outputs
from pipeline.evaluation.rows import Row
from tests.evaluating import WORDS, row, save_outputs, save_pairs

GAINS = {"a": 1.0, "b": -3.0, "c": 0.5, "d": 4.0, "e": 2.0, "f": -1.0, "g": 0.0}


def rows(method: str, names: dict[str, float], before: float = 20.0) -> list[Row]:
    found = "rainy" if method == "model" else None
    return [
        row(method, "hazy", name, before + gain, found, dataset="mine")
        for name, gain in names.items()
    ]


def test_worst_and_best_are_shown_worst_first(tmp_path: Path) -> None:
    names = [f"hazy/{name}" for name in GAINS]
    samples = read_sets({"": save_pairs(tmp_path / "mine", names)}, WORDS)
    out = save_outputs(tmp_path / "out", names)
    files = {key_of(sample): out / "hazy" / f"{sample.name}.png" for sample in samples}
    methods: dict[str, Method] = {
        "input": Input(),
        "model": Outputs(files),
        "no_prompt": Outputs(files),
    }
    still = dict.fromkeys(GAINS, 0.0)
    measured = rows("input", still) + rows("model", GAINS) + rows("no_prompt", still)
    cases = gallery(measured, samples, methods, per_task=2)
    assert [(case.name, case.gain) for case in cases] == [("b", -3), ("f", -1), ("e", 2), ("d", 4)]
    first = cases[0]
    assert first.found == "rainy (50%)"
    assert [(p.label, p.score) for p in first.pictures] == [
        ("input", "20.00 dB"),
        ("model", "17.00 dB"),
        ("clean", ""),
    ]
    degraded, clean = samples[1].load()
    assert all(max(picture.image.shape) <= SIDE for picture in first.pictures)
    for picture, image in zip(
        first.pictures, (degraded, read_image(out / "hazy/b.png"), clean), strict=True
    ):
        assert (picture.image == image).all()
    assert len(gallery(measured, samples, methods, per_task=5)) == 7  # each once


def test_without_a_model_the_first_other_method_is_judged(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path / "mine", ["hazy/a", "hazy/b", "hazy/c"])}, WORDS)
    still = dict.fromkeys("abc", 0.0)
    methods: dict[str, Method] = {"input": Input(), "X": Input(), "Y": Input()}
    measured = rows("input", still) + rows("X", {"a": 1, "b": 3, "c": 2}) + rows("Y", still)
    cases = gallery(measured, samples, methods, per_task=1)
    assert [(case.name, case.gain, case.found) for case in cases] == [("a", 1, ""), ("b", 3, "")]


def test_infinite_scores_and_missing_ones_have_their_place(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path / "mine", ["hazy/a", "hazy/b", "hazy/c"])}, WORDS)
    methods: dict[str, Method] = {"input": Input(), "X": Input()}
    infinite = {"a": float("inf"), "b": 1.0}
    unknown = [Row(method, "mine", "hazy", "c", {}, {}) for method in methods]
    measured = rows("input", infinite) + rows("X", infinite) + unknown
    cases = gallery(measured, samples, methods, per_task=5)
    assert [(case.name, case.gain) for case in cases] == [("a", 0.0), ("b", 0.0), ("c", None)]


def test_what_is_damaged_is_not_shown(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path / "mine", ["hazy/a", "hazy/b"])}, WORDS)
    (tmp_path / "mine/hazy/LQ/a.png").write_bytes(b"")
    methods: dict[str, Method] = {"input": Input(), "X": Input()}
    of_a = [Row(method, "mine", "hazy", "a", {}, {}, fault="damaged") for method in methods]
    of_b = [*rows("input", {"b": 0}), Row("X", "mine", "hazy", "b", {}, {}, fault="NaN")]
    (case,) = gallery(of_a + of_b, samples, methods, per_task=2)
    assert [picture.label for picture in case.pictures] == ["input", "clean"]


def test_pictures_are_small(tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path / "mine", ["hazy/a"], sides=(300, 600))
    samples, methods = read_sets({"": pairs}, WORDS), {"input": Input(), "X": Input()}
    (case,) = gallery(rows("input", {"a": 0}) + rows("X", {"a": 1}), samples, methods, per_task=1)
    url = data_url(case.pictures[-1].image)
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (SIDE, SIDE // 2)
        small = np.asarray(picture).astype(int)
    clean = Image.fromarray(read_image(pairs / "hazy/GT/a.png"))
    expected = np.asarray(clean.resize((SIDE, SIDE // 2)))
    assert np.abs(small - expected).mean() < 5
