"""What a stage tells W&B, read back from the files that an offline run has really written."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.files import read_json
from datamodules.images import read_image
from pipeline import tracking
from pipeline.config import Config
from pipeline.curves import read_curves
from pipeline.stage import Stage, run_stage
from pipeline.tracking import TRACKER, Tracker
from tests.conftest import TINY_RUN
from tests.wandb_files import Written, read_session, sessions

MakeConfig = Callable[..., Config]
STAGES = ["shards", "captions", "train-controller", "train-restorer", "evaluate"]
FOLDERS = ["shards", "captions", "controller", "restorer", "evaluation"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no cache but those of the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    yield
    import wandb

    wandb.teardown()


def environment(folder: Path) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {"HOME": str(home), "NETRC": str(home / "none"), "WANDB_ERROR_REPORTING": "false"}


def made(work: Callable[[Config, Path], None], name: str = "shards", *inputs: Path) -> Stage:
    return Stage(
        name=name,
        command=name,
        sections=["captions"],
        outputs=["index.json"],
        inputs=lambda config: list(inputs),
        check=lambda config: None,
        run=work,
    )


def write_index(config: Config, folder: Path) -> None:
    (folder / "index.json").write_text("{}")


def written(config: Config, stage: str) -> list[Written]:
    return sessions(Path(config.run_dir) / stage)


def test_without_a_project_there_is_no_run(tiny_config: MakeConfig) -> None:
    seen = []
    config = tiny_config()
    run_stage(made(lambda c, f: (write_index(c, f), seen.append(TRACKER.active))[0]), config)
    assert seen == [False]
    assert not list(Path(config.run_dir).rglob("*wandb*"))


def test_offline_without_a_key_and_says_so(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.tracking")
    config = tiny_config("logger=wandb", "logger.project=mine", "seed=7")
    run_stage(made(write_index), config)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "pipeline.tracking"]
    (run,) = written(config, "shards")
    assert said == f"W&B: offline; send it later with `wandb sync {run.folder.parent}`"
    assert (run.project, run.job_type, run.resume, run.exit_code) == ("mine", "shards", True, 0)
    assert run.config["seed"] == 7
    assert run.config["restorer"]["patch_size"] == 32
    assert run.config["code"] == read_json(Path(config.run_dir) / "shards" / "stage.json")["code"]
    assert not TRACKER.active


def test_a_run_is_a_group_and_a_stage_keeps_its_id(tiny_config: MakeConfig) -> None:
    def interrupted(config: Config, folder: Path) -> None:
        raise KeyboardInterrupt

    config = tiny_config("logger=wandb")
    with pytest.raises(KeyboardInterrupt):
        run_stage(made(interrupted), config)
    run_stage(made(write_index), config)
    run_stage(made(write_index, "captions"), config)
    first, second = written(config, "shards")
    (other,) = written(config, "captions")
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.run_id == second.run_id != other.run_id
    assert first.group == second.group == other.group
    assert first.group.startswith("run-")
    changed = tiny_config("logger=wandb", "captions.batch_size=3")
    run_stage(made(write_index), changed)
    assert written(changed, "shards")[0].run_id != first.run_id


def test_artifacts_link_the_stages(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config("logger=wandb")
    index = Path(config.run_dir) / "shards" / "index.json"
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("{}")
    run_stage(made(write_index), config)
    run_stage(made(write_index, "captions", index, foreign), config)
    (maker,), (user,) = written(config, "shards"), written(config, "captions")
    assert maker.made["shards"]["files"] == {"index.json": f"file://{index}"}
    assert list(user.used) == ["shards"]
    for part in ("name", "digest"):
        assert user.used["shards"][part] == maker.made["shards"][part]
    link = f"{maker.group}-shards:{maker.made['shards']['digest']}"
    assert user.config["used_artifacts"] == {"shards": link}
    assert not maker.used


def test_only_the_first_failure_is_said(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def work(config: Config, folder: Path) -> None:
        for value in (1.0, "unlike a row", 2.0):
            TRACKER(lambda run, value=value: run.log(value if value != 1.0 else {"x": value}))
        write_index(config, folder)

    config = tiny_config("logger=wandb")
    run_stage(made(work), config)
    assert read_json(Path(config.run_dir) / "shards" / "stage.json")["status"] == "finished"
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("W&B failed, the stage goes on without it: ")


def test_an_error_of_the_stage_is_not_caught(tiny_config: MakeConfig) -> None:
    def fails(config: Config, folder: Path) -> None:
        raise ValueError("of the stage")

    with pytest.raises(ValueError, match="of the stage"):
        run_stage(made(fails), tiny_config("logger=wandb"))
    assert not TRACKER.active


def test_beginning_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker()
    tracker.start(lambda: (_ for _ in ()).throw(OSError("disk\nfull")))
    tracker(lambda run: pytest.fail("there is no run"))
    assert [r.getMessage() for r in caplog.records] == [
        "W&B failed, the stage goes on without it: disk full"
    ]


@pytest.mark.parametrize(
    ("netrc", "key", "has"),
    [
        (None, None, False),
        ("machine api.wandb.ai login user password secret", None, True),
        ("machine else.where login user password secret", None, False),
        ("machine", None, False),
        (None, "secret", True),
    ],
)
def test_where_a_key_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str | None, key: str | None, has: bool
) -> None:
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    if netrc:
        path.write_text(netrc)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert tracking.has_key("https://api.wandb.ai") is has


def test_an_unreachable_server_costs_seconds_and_one_warning(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "BEGIN_S", 1.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    config = tiny_config("logger=wandb")
    run_stage(made(write_index), config)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("W&B: no connection to http://127.0.0.1:9 (")
    (run,) = written(config, "shards")
    assert run.exit_code == 0
    assert list(run.made) == ["shards"]


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run asks for to begin."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entity = {"name": "e", "entity": {"name": "e"}}
        name = query.get("variables", {}).get("name")
        bucket = {"id": "b", "name": name, "displayName": name, "project": {"id": "p"} | entity}
        data = {
            "RunResumeStatus": {"model": entity | {"bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        }
        body = json.dumps({"data": data.get(query.get("operationName"), {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Be silent."""


@pytest.mark.slow
def test_a_connection_lost_on_the_way_ends_nothing(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setattr(tracking, "END_S", 1.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def work(config: Config, folder: Path) -> None:
        assert TRACKER.active
        TRACKER(lambda run: run.log({"x": 1}))
        server.shutdown()
        server.server_close()
        TRACKER(lambda run: run.log({"x": 2}))
        write_index(config, folder)

    config = tiny_config("logger=wandb")
    run_stage(made(work), config)
    assert read_json(Path(config.run_dir) / "shards" / "stage.json")["status"] == "finished"
    ours = [r for r in caplog.records if r.name == "pipeline.tracking"]
    assert len([r for r in ours if r.levelno == logging.WARNING]) <= 1
    (path,) = (Path(config.run_dir) / "shards" / "wandb").glob("run-*/*.wandb")
    assert [row["x"] for row in read_session(path).history] == [1, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run told to W&B offline, whose controller was killed after its first validation."""
    folder = tmp_path_factory.mktemp("tracked")
    run = folder / "run"
    settings = [*TINY_RUN, f"run_dir={run}", "logger=wandb", "trainer.log_every_n_steps=1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= environment(folder)
    last = run / "controller" / "checkpoints" / "last.ckpt"
    for stage in STAGES:
        if stage == "train-controller":
            slow = [sys.executable, "-m", "tests.slow_steps", stage, *settings]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(slow, stdout=quiet, stderr=quiet, env=clean)
            deadline = time.monotonic() + 120
            while not last.is_file() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        command = [sys.executable, "-m", "pipeline", stage, *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
        assert done.returncode == 0, done.stderr
    return run


def rows(stage: Path, version: int) -> list[dict[str, float]]:
    """What a start of a training has written to CSV."""
    path = stage / "metrics" / f"version_{version}" / "metrics.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def scalars(run: Written) -> list[dict[str, float]]:
    """What it has told W&B, media left out."""
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in run.history
        if not any("sha256" in key for key in row)
    ]


@pytest.mark.slow
def test_csv_and_wandb_get_the_same(trained: Path) -> None:
    (run,) = sessions(trained / "restorer")
    told = scalars(run)
    for row, again in zip(rows(trained / "restorer", 0), told, strict=True):
        assert row == pytest.approx(again)
    assert [row["step"] for row in told if "loss" in row] == [0, 1, 2, 3]
    keys = {key for row in told for key in row}
    assert {"lr-AdamW/pg1", "grad_norm", "images_per_s", "data_wait"} <= keys
    assert "gpu_peak_gb" not in keys
    assert any(key.startswith("loss_by_time/") for key in keys)
    for name in ("val_psnr", "val_ssim", "val_psnr_degraded", "val_ssim_degraded"):
        assert len([key for key in keys if key.startswith(f"{name}/")]) == 10
    assert "val_lpips" not in keys
    assert "weight file" in run.config["not_measured"]["LPIPS"]


@pytest.mark.slow
def test_killed_training_goes_on_in_its_run(trained: Path) -> None:
    killed, resumed = sessions(trained / "controller")
    assert killed.run_id == resumed.run_id
    assert (killed.exit_code, resumed.exit_code) == (None, 0)
    assert resumed.resume
    steps = [row["step"] for row in scalars(resumed) if "content_loss" in row]
    assert steps == [2, 3]
    before, after = (
        [row["step"] for row in rows(trained / "controller", version) if "content_loss" in row]
        for version in (0, 1)
    )
    assert before[0] == 0
    assert after == steps
    assert {s.group for name in FOLDERS for s in sessions(trained / name)} == {killed.group}
    assert [sessions(trained / name)[-1].job_type for name in FOLDERS] == FOLDERS


@pytest.mark.slow
def test_confusion_matrix(trained: Path) -> None:
    run = sessions(trained / "controller")[-1]
    (path,) = [row["confusion_table.path"] for row in run.history if "confusion_table.path" in row]
    table = json.loads((run.folder / path).read_text())
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    right = sum(count for true, found, count in table["data"] if true == found)
    assert sum(count for *_, count in table["data"]) == 10
    assert run.summary["degradation_accuracy"] == pytest.approx(right / 10)
    by_word = {true: count for true, found, count in table["data"] if true == found}
    for word, count in by_word.items():
        assert run.summary[f"degradation_accuracy/{word}"] == count
    assert run.config["_wandb.visualize.confusion"]["panel_config"]["panelDefId"] == (
        "wandb/confusion_matrix/v1"
    )


@pytest.mark.slow
def test_samples_are_shown(trained: Path) -> None:
    (run,) = sessions(trained / "restorer")
    tables = [row for row in run.history if "samples.path" in row]
    assert [row["step"] for row in tables] == [2, 4]
    table = json.loads((run.folder / tables[-1]["samples.path"]).read_text())
    assert table["columns"] == ["task", "key", "degraded", "restored", "clean"]
    assert len(table["data"]) == 10
    pictures = [name for name in run.made["run_table"]["files"] if name.endswith(".png")]
    assert len(pictures) == 10 + 10 + 1  # degraded, restored, and the one clean image of all
    sheet = (run.folder / tables[-1]["samples_sheet.path"]).read_bytes()
    assert read_image(trained / "restorer" / "samples.png").shape == (10 * 52, 3 * 52, 3)
    assert sheet.startswith(b"\x89PNG")


@pytest.mark.slow
def test_chain_of_artifacts_ends_in_the_report(trained: Path) -> None:
    last = {name: sessions(trained / name)[-1] for name in FOLDERS}
    uses = {name: sorted(run.used) for name, run in last.items()}
    assert uses == {
        "shards": [],
        "captions": ["shards"],
        "controller": ["captions", "shards"],
        "restorer": ["controller", "shards"],
        "evaluation": ["controller", "restorer", "shards"],
    }
    for run in last.values():
        for stage, used in run.used.items():
            assert used["digest"] == last[stage].made[stage]["digest"]
    made = last["evaluation"].made["evaluation"]["files"]
    assert made == {"report.html": "", "metrics.json": "", "scores.csv": ""}  # sent, no addresses
    figures = read_json(trained / "evaluation" / "metrics.json")
    assert last["evaluation"].summary["psnr"] == figures["mean"]["restored"]["psnr"]
    assert last["evaluation"].summary["ssim_degraded/hazy"] == pytest.approx(
        next(t["degraded"]["ssim"] for t in figures["tasks"] if t["word"] == "hazy")
    )


@pytest.mark.slow
def test_view_shows_what_was_logged(trained: Path) -> None:
    from pipeline.workspace import sections

    stages = {stage: read_curves(trained / stage) for stage in ("controller", "restorer")}
    shown = sections(stages, [read_json(trained / "evaluation" / "metrics.json")])
    *curves, (confusion,), (table, sheet), bars = (s._spec["panels"] for s in shown)
    for stage, found in zip(stages, curves, strict=True):
        metrics = {metric for panel in found for metric in panel["config"]["metrics"]}
        rows_told = [row for session in sessions(trained / stage) for row in scalars(session)]
        told = {key for row in rows_told for key in row if "_degraded/" not in key}
        assert metrics == told - {"step", "epoch"}

    controller, (restorer,) = sessions(trained / "controller")[-1], sessions(trained / "restorer")
    own = controller.config["_wandb.visualize.confusion"]["panel_config"]
    for part in ("panelDefId", "fieldSettings", "stringSettings", "transform"):
        assert confusion["config"][part] == own[part]
    of_own, of_view = (
        {field["name"]: field for field in config["userQuery"]["queryFields"][0]["fields"]}
        for config in (own, confusion["config"])
    )
    assert of_view["summaryTable"] == of_own["summaryTable"]
    assert of_own["summaryTable"]["args"][0]["value"] == "confusion_table"
    assert controller.summary["confusion_table._type"] == "table-file"

    assert table["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] == "samples"
    assert restorer.summary["samples._type"] == "table-file"
    assert sheet["config"]["mediaKeys"] == ["samples_sheet"]
    assert restorer.summary["samples_sheet._type"] == "image-file"
    scores = {metric for panel in bars for metric in panel["config"]["metrics"]}
    assert len(scores) == 2 * (10 + 2)
    assert scores <= set(sessions(trained / "evaluation")[-1].summary)
