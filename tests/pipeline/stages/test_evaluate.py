"""The stage as a whole: any model, set and method in; rows, figures and one page out."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.images import read_image
from modules.metrics.niqe import WEIGHTS
from pipeline.config import Config, ConfigError
from pipeline.errors import BadModel
from pipeline.evaluation.data import BadOutputs
from pipeline.evaluation.methods import Restorations
from pipeline.stage import run_stage
from pipeline.stages.evaluate import STAGE as EVALUATION
from tests.conftest import TINY_RUN
from tests.evaluating import save_models, save_outputs, save_pairs
from tests.samples import many, write
from tests.wandb_files import sessions

MakeConfig = Callable[..., Config]
NAMES = ["hazy/a", "hazy/b", "hazy/c", "noisy/a", "rainy/b"]
FIDELITY = {
    f"{m}_{p}_{c}" for m in ("psnr", "ssim") for p in ("rgb", "y") for c in ("border4", "plain")
}


@pytest.fixture
def settings(tiny_config: MakeConfig, tmp_path: Path) -> list[str]:
    """Overrides that evaluate a small model on a small set."""
    controller, restorer = save_models(tiny_config(), tmp_path)
    save_pairs(tmp_path / "pairs", NAMES)
    return [
        f"evaluate.controller={controller}",
        f"evaluate.restorer={restorer}",
        f"evaluate.data={tmp_path / 'pairs'}",
    ]


@pytest.fixture
def evaluate(tiny_config: MakeConfig, settings: list[str]) -> Callable[..., Path]:
    """Evaluate with more overrides, and return the stage's folder."""

    def run(*overrides: str) -> Path:
        config = tiny_config(*settings, *overrides)
        run_stage(EVALUATION, config)
        return EVALUATION.folder(config)

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scores(folder: Path) -> list[dict[str, Any]]:
    """The rows without what differs each time."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "peak_mb")} for row in rows(folder)
    ]


def test_every_method_is_scored_once_on_every_sample(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    out = save_outputs(tmp_path / "out", NAMES)
    everything = "[no_prompt,no_content,true_word,clean_content]"
    folder = evaluate(f"evaluate.methods={{PromptIR: {out}}}", f"evaluate.ablations={everything}")
    methods = [
        "input",
        "model",
        "no_prompt",
        "no_content",
        "true_word",
        "clean_content",
        "PromptIR",
    ]
    found = [(row["method"], f"{row['task']}/{row['name']}") for row in rows(folder)]
    assert found == [(method, name) for method in methods for name in NAMES]
    for row in rows(folder):
        assert set(row["scores"]) == FIDELITY
        assert row["dataset"] == "pairs"
        restored = row["method"] not in ("input", "PromptIR")
        assert (row["calls"] == 2) == restored == (row["seconds"] is not None)
        assert (row["found"] in ("hazy", "noisy", "rainy")) == restored
    figures = json.loads((folder / "metrics.json").read_text())
    assert [task["word"] for task in figures["tasks"]] == ["hazy", "noisy", "rainy"]
    assert figures["mean"]["images"] == 5
    assert sum(map(sum, figures["confusion"])) == 5
    assert {usage["method"] for usage in figures["usage"]} == set(methods[1:-1])
    lines = list(csv.DictReader((folder / "scores.csv").open()))
    assert Counter(line["method"] for line in lines) == dict.fromkeys(methods, 4)
    page = (folder / "report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/webp;base64,') == 5 * 4
    assert "http://" not in page and "<script" not in page
    for text in ("PromptIR", "no degradation prompt", "published", "4 px cut", "LPIPS</strong>"):
        assert text in page
    assert sorted(p.name for p in (folder / "examples").iterdir()) == [
        "hazy.png",
        "noisy.png",
        "rainy.png",
    ]
    assert not list(folder.glob("rows.part-*"))
    assert len(list((folder / "restored").rglob("*.png"))) == 5 * 5


def test_our_outputs_scored_as_anothers_give_the_same_figures(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate()
    own = folder.rename(tmp_path / "kept")
    again = evaluate("evaluate.model=false", f"evaluate.methods={{DA-CLIP: {own}/restored/model}}")
    ours = [row["scores"] for row in rows(own) if row["method"] == "model"]
    assert [row["scores"] for row in rows(again) if row["method"] == "DA-CLIP"] == ours
    figures = json.loads((again / "metrics.json").read_text())
    assert figures["confusion"] is None
    assert figures["mean"]["restored"] == {}
    assert "Which degradation" not in (again / "report.html").read_text()


def test_images_without_a_clean_one_get_what_needs_none(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    data = save_pairs(tmp_path / "photos", ["noisy/x", "noisy/y"], clean=False)
    folder = evaluate(f"evaluate.data={data}", "evaluate.ablations=[clean_content,no_prompt]")
    found = rows(folder)
    assert Counter(row["method"] for row in found) == {"input": 2, "model": 2, "no_prompt": 2}
    assert all(set(row["scores"]) <= {"niqe"} for row in found)
    assert all(row["found"] for row in found if row["method"] == "model")
    page = (folder / "report.html").read_text()
    assert "There are no clean images" in page
    assert "of 2 of 2 images, for they have no clean one" in page
    assert "recognised as" in page
    assert page.count("<img") == 4


def test_sets_are_shown_apart(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write(shards, many("val", "hazy", 2))
    folder = evaluate(f"evaluate.data={{Folder: {tmp_path / 'pairs'}, Shards: {shards}}}")
    places = {(row["dataset"], row["task"]) for row in rows(folder)}
    assert places == {
        ("Folder", "hazy"),
        ("Folder", "noisy"),
        ("Folder", "rainy"),
        ("Shards", "hazy"),
    }
    assert "By dataset" in (folder / "report.html").read_text()


def test_images_of_all_sizes_are_taken_in_any_batch(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    save_pairs(tmp_path / "pairs", ["hazy/b"], (33, 51))
    folder = evaluate("evaluate.batch_size=3")
    for row in rows(folder):
        path = folder / "restored/model/pairs" / row["task"] / f"{row['name']}.png"
        expected = (33, 51, 3) if row["name"] == "b" and row["task"] == "hazy" else (40, 48, 3)
        assert read_image(path).shape == expected


def test_interrupted_evaluation_goes_on(
    evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = scores(evaluate("evaluate.batch_size=1"))
    done: list[str] = []
    restore = Restorations.__call__

    def cut_off(self: Restorations, batch: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.extend(sample.name for sample in batch.samples)
        return restore(self, batch)

    monkeypatch.setattr(Restorations, "__call__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate("evaluate.batch_size=1", "seed=5")
    assert len(done) == 3

    def counted(self: Restorations, batch: Any) -> Any:
        done.extend(sample.name for sample in batch.samples)
        return restore(self, batch)

    monkeypatch.setattr(Restorations, "__call__", counted)
    resumed = scores(evaluate("evaluate.batch_size=1", "seed=5"))
    assert len(done) == 5
    monkeypatch.undo()
    (tmp_path / "run").rename(tmp_path / "other")
    assert resumed == scores(evaluate("evaluate.batch_size=1", "seed=5"))
    assert resumed != whole


def test_report_is_made_again_without_scoring(
    evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate()
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    monkeypatch.setattr(Restorations, "__call__", None)
    assert (evaluate() / "report.html").read_text() == page


def test_changed_outputs_are_scored_again(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    out = save_outputs(tmp_path / "out", NAMES)
    override = f"evaluate.methods={{X: {out}}}"
    first = scores(evaluate(override))
    save_outputs(out, ["rainy/b", "hazy/a"])
    os.utime(out / "hazy/a.png", (1, 1))
    assert scores(evaluate(override)) != first


def test_bad_outputs_stop_before_anything_is_scored(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    out = save_outputs(tmp_path / "out", NAMES[1:])
    with pytest.raises(BadOutputs, match="missing: 1"):
        evaluate(f"evaluate.methods={{X: {out}}}")
    assert not list((tmp_path / "run").rglob("*.png"))
    assert not list((tmp_path / "run").rglob("rows*"))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["evaluate.methods={model: x}"], ConfigError, "model is reserved"),
        (["evaluate.model=false"], ConfigError, "nothing to evaluate"),
        (["evaluate.ablations=[prompt]"], ConfigError, "unknown 'prompt'; there are no_prompt"),
        (["evaluate.data=[a, b]"], ConfigError, "evaluate.data.*should be a valid"),
        (["evaluate.data=gone"], FileNotFoundError, "evaluate.data: no folder gone"),
        (["evaluate.restorer=gone.pth"], FileNotFoundError, "no file gone.pth"),
        (
            ["sampler.num_steps=101"],
            BadModel,
            "can take 1 to 100 steps, but num_steps=101",
        ),
        (["sampler.name=euler"], ValueError, "unknown sampler 'euler'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    evaluate: Callable[..., Path], overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(*overrides)


def test_wandb_gets_figures_table_and_pictures(
    evaluate: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", str(tmp_path)), ("NETRC", "none"), ("WANDB_MODE", "offline")):
        monkeypatch.setenv(name, value)
    folder = evaluate("logger=wandb")
    (run,) = sessions(folder)
    figures = json.loads((folder / "metrics.json").read_text())
    assert run.summary["psnr"] == figures["mean"]["restored"]["psnr"]
    (logged,) = run.history
    logged = {
        name: json.loads((run.folder / logged[f"{name}.path"]).read_text())
        for name in ("scores", "gallery")
    }
    assert len(logged["scores"]["data"]) == 2 * 4
    assert "psnr_rgb_border4" in logged["scores"]["columns"]
    assert len(logged["gallery"]["data"]) == 5
    assert logged["gallery"]["columns"][-3:] == ["input", "model", "clean"]


@pytest.mark.slow
def test_two_processes_score_what_one_does(
    evaluate: Callable[..., Path], settings: list[str], tmp_path: Path
) -> None:
    override = "evaluate.ablations=[no_prompt]"
    whole = scores(evaluate(override, "evaluate.batch_size=1"))
    run = tmp_path / "two"
    command = [sys.executable, "-m", "pipeline", "evaluate", *TINY_RUN, f"run_dir={run}", *settings]
    processes = [
        subprocess.Popen(
            [*command, override, "evaluate.batch_size=1"],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert scores(run / "evaluation") == whole
    assert (run / "evaluation" / "report.html").is_file()
    assert not list((run / "evaluation").glob("rows.part-*"))


def test_damaged_images_are_told_and_the_others_scored(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "pairs/hazy/LQ/b.png"
    path.write_bytes(path.read_bytes()[:2000])  # its header is whole
    folder = evaluate()
    found = rows(folder)
    assert len(found) == 2 * len(NAMES)
    bad = [row for row in found if row["fault"]]
    assert {(row["method"], row["name"]) for row in bad} == {("input", "b"), ("model", "b")}
    figures = json.loads((folder / "metrics.json").read_text())
    assert "b.png: damaged image" in figures["missing"]["model, 1 of 5 images"]
    assert figures["tasks"][0]["word"] == "hazy"
    assert "damaged image" in (folder / "report.html").read_text()


def test_scores_depend_on_weights_of_metrics_and_not_on_speed(
    evaluate: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    record = evaluate() / "stage.json"
    first = record.read_text()
    evaluate("evaluate.batch_size=3", "evaluate.gallery_per_task=1")
    assert record.read_text() == first
    weights = WEIGHTS.path
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"damaged, but there")
    evaluate()
    assert record.read_text() != first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.ablations=[no_promt]"], "unknown 'no_promt'"),
        (
            ["evaluate.model=false", "evaluate.methods={mine: RUN/evaluation/restored/model}"],
            "lies in this run's evaluation",
        ),
        (["evaluate.data={../../esc: RUN}"], "cannot name a dataset"),
    ],
)
def test_a_refused_evaluation_leaves_the_one_before(
    evaluate: Callable[..., Path], tiny_config: MakeConfig, overrides: list[str], message: str
) -> None:
    folder = EVALUATION.folder(tiny_config())
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"settings": {}}')
    run = str(folder.parent)
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        evaluate(*(override.replace("RUN", run) for override in overrides))
    assert (folder / "stage.json").read_text() == '{"settings": {}}'
    assert [path.name for path in folder.parent.glob("evaluation*")] == ["evaluation"]
