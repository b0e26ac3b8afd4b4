"""The dashboard as a view on W&B: what is in it, and what a server is really sent."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules.files import write_json
from pipeline import workspace
from pipeline.chain import STAGES
from pipeline.charts import COLOURS
from pipeline.config import Config
from pipeline.curves import panels, read_curves
from pipeline.dashboard import run as draw
from pipeline.tracking import group_of
from tests.pipeline.test_dashboard import RECORD, write_csv
from tests.pipeline.test_stage import MakeConfig
from tests.pipeline.test_tracking import own_home as own_home  # no key and no settings

CONTROLLER = (
    "step,content_loss,lr-AdamW/pg1,lr-AdamW/pg2,degradation_accuracy,degradation_accuracy/hazy"
)
RESTORER = (
    "step,loss,loss_by_time/21-40,loss_by_time/1-20,val_psnr/hazy,val_psnr/rainy,val_psnr,"
    "val_psnr_degraded,val_psnr_degraded/hazy"
)
SCORES = {"psnr": 20.0, "ssim": 0.5}
TASKS = [{"word": word, "degraded": SCORES, "restored": SCORES} for word in ("hazy", "rainy")]
MEAN = {"images": 2, "degraded": SCORES | {"lpips": 0.1}, "restored": SCORES}
EVALUATION = {"mean": MEAN, "tasks": TASKS, "accuracy": 0.5}


def make_run(folder: Path) -> Path:
    """A run that W&B was told of, with all that the dashboard shows."""
    for stage, header in (("controller", CONTROLLER), ("restorer", RESTORER)):
        write_json(folder / stage / "stage.json", RECORD)
        values = ",".join("1.0" for _ in header.split(",")[1:])
        write_csv(folder / stage, 0, f"{header}\n1,{values}\n2,{values}\n")
    write_json(folder / "evaluation" / "metrics.json", EVALUATION)
    group_of(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def said_of_wandb(config: Config, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one line there is about W&B, after the page was written."""
    caplog.clear()
    caplog.set_level(logging.INFO, "pipeline")
    page = Path(config.run_dir) / "dashboard.html"
    page.unlink(missing_ok=True)
    draw(config)
    assert "</html>" in page.read_text()
    (record,) = [r for r in caplog.records if r.name == "pipeline.workspace"]
    assert len(record.getMessage().splitlines()) == 1
    return record


def panels_of(section: Any) -> list[dict[str, Any]]:
    return [panel["config"] for panel in section._spec["panels"]]


def test_curves_are_those_of_the_page(run: Path) -> None:
    stages = {stage: read_curves(run / stage) for stage in ("controller", "restorer")}
    shown = workspace.sections(stages, [])
    assert [section.name for section in shown[:2]] == ["Controller", "Restorer"]
    for section, curves in zip(shown, stages.values(), strict=False):
        of_page, of_view = panels({"run": curves}), panels_of(section)
        assert [p["chartTitle"] for p in of_view] == [p.title for p in of_page]
        assert [p["yLogScale"] for p in of_view] == [p.log for p in of_page]
        assert [len(p["metrics"]) for p in of_view] == [len(p.lines) for p in of_page]
        assert {p["xAxis"] for p in of_view} == {"step"}
        flow = section._spec["flowConfig"]
        assert flow["columnsPerPage"] * flow["rowsPerPage"] >= len(of_view)
    by_task = next(p for p in panels_of(shown[1]) if p["chartTitle"].endswith("dB: by task"))
    assert by_task["metrics"] == ["val_psnr/hazy", "val_psnr/rainy"]
    by_time = next(p for p in panels_of(shown[1]) if "diffusion time" in p["chartTitle"])
    assert by_time["metrics"] == ["loss_by_time/1-20", "loss_by_time/21-40"]


def test_evaluation_has_degraded_beside_restored() -> None:
    (section,) = workspace.sections({"controller": [], "restorer": []}, [EVALUATION, EVALUATION])
    assert {p["viewType"] for p in section._spec["panels"]} == {"Bar Chart"}
    assert [(p["chartTitle"], p["metrics"]) for p in panels_of(section)] == [
        ("PSNR, dB: mean of the tasks", ["psnr", "psnr_degraded"]),
        ("SSIM: mean of the tasks", ["ssim", "ssim_degraded"]),
        ("PSNR, dB: hazy", ["psnr/hazy", "psnr_degraded/hazy"]),
        ("PSNR, dB: rainy", ["psnr/rainy", "psnr_degraded/rainy"]),
    ]


def test_what_a_run_has_not_is_not_shown() -> None:
    assert workspace.sections({"controller": [], "restorer": []}, []) == []
    names = [s.name for s in workspace.sections({"controller": [], "restorer": ["loss"]}, [])]
    assert names == ["Restorer", "Samples of validation"]


def test_without_a_key_there_is_the_page(
    run: Path, tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    record = said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb"), caplog)
    assert "no key for https://" in record.getMessage()
    assert "wandb login" in record.getMessage()
    assert not (run / "wandb_view.txt").exists()


def test_without_a_project_wandb_is_left_alone(
    run: Path, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(workspace, "show", lambda *given: shown.append(given))
    draw(tiny_config(f"run_dir={run}"))
    assert (run / "dashboard.html").is_file()
    assert shown == []


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


@pytest.mark.usefixtures("key")
def test_offline_is_respected(
    run: Path,
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    record = said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb"), caplog)
    assert record.getMessage().endswith("WANDB_MODE is offline")


@pytest.mark.usefixtures("key")
def test_an_unreachable_server_is_named(
    run: Path,
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    record = said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb"), caplog)
    assert record.levelno == logging.WARNING
    assert "http://127.0.0.1:9" in record.getMessage()
    assert "connection refused" in record.getMessage()


@pytest.mark.usefixtures("key")
def test_a_server_that_does_not_answer_is_not_waited_for(
    run: Path,
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workspace, "LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        record = said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb"), caplog)
    assert record.getMessage().endswith("no answer within 1 s")


class Views(ThreadingHTTPServer):
    """As much of W&B's server as saving a view asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.saved: list[dict[str, Any]] = []
        """The variables of each `upsertView`."""
        self.views: dict[str, dict[str, Any]] = {}
        """Id -> view."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView(" in query:
            self.saved.append(variables)
            found = variables.get("id") or f"id{len(self.saved)}"
            self.views[found] = variables | {"id": found}
            return {"upsertView": {"view": {"id": found, "name": variables["name"]}}}
        if "allViews(" in query:
            named = [v for v in self.views.values() if v["name"] == variables["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": view} for view in named]}}}
        return {"viewer": {"id": "1", "entity": "we", "username": "i", "teams": {"edges": []}}}


class Handler(BaseHTTPRequestHandler):
    server: Views

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = self.server.answer(asked["query"], asked.get("variables") or {})
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Be silent."""


@pytest.fixture
def server(key: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Views]:
    server = Views()
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_the_view_that_is_sent(
    run: Path, tiny_config: MakeConfig, server: Views, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(f"run_dir={run}", "logger=wandb", "logger.project=mine")
    record = said_of_wandb(config, caplog)
    (sent,) = server.saved
    place = ("entityName", "projectName", "type", "displayName")
    assert [sent[key] for key in place] == ["we", "mine", "project-view", group_of(run)]
    address = (run / "wandb_view.txt").read_text()
    assert record.getMessage() == f"W&B: {address}"
    id_of_view = sent["name"].removeprefix("nw-").removesuffix("-v")
    assert address == f"http://127.0.0.1:{server.server_port}/we/mine?nw={id_of_view}"

    spec = json.loads(sent["spec"])["section"]
    shown = spec["panelBankConfig"]["sections"]
    assert [section["name"] for section in shown] == [
        "Controller",
        "Restorer",
        "Degradations: actual and recognised",
        "Samples of validation",
        "Evaluation",
    ]
    metrics = [p["config"]["metrics"] for section in shown[:2] for p in section["panels"]]
    columns = set(f"{CONTROLLER},{RESTORER}".split(",")) - {"step", "val_psnr_degraded/hazy"}
    assert {metric for found in metrics for metric in found} == columns
    assert spec["settings"]["xAxis"] == "step"
    assert spec["settings"]["shouldAutoGeneratePanels"] is False


def test_runs_of_the_view(
    run: Path, tiny_config: MakeConfig, server: Views, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("second", "third", "untold")
    second, third, untold = (make_run(run.with_name(name)) for name in names)
    (untold / "wandb_id.txt").unlink()
    compared = f"dashboard.compare=[{second},{third},{untold}]"
    said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb", compared), caplog)
    assert not (untold / "wandb_id.txt").exists()
    spec = json.loads(server.saved[0]["spec"])["section"]
    (runs,) = spec["runSets"]
    (wanted,) = runs["filters"]["filters"]
    assert (wanted["key"], wanted["op"]) == ({"section": "run", "name": "group"}, "IN")
    assert wanted["value"] == [group_of(folder) for folder in (run, second, third)]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    colours = spec["customRunColors"]
    assert sorted(colours.values()) == sorted(COLOURS[:9])  # of three stages each
    assert len([key for key in colours if group_of(third) in key and "restorer" in key]) == 1
    assert spec["settings"]["maxRuns"] == 3 * len(STAGES)


def test_a_view_takes_the_place_of_the_one_before(
    run: Path, tiny_config: MakeConfig, server: Views, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(f"run_dir={run}", "logger=wandb")
    said_of_wandb(config, caplog)
    write_csv(run / "restorer", 1, "step,grad_norm\n3,1.0\n")
    said_of_wandb(config, caplog)
    first, second = server.saved
    assert "id" not in first
    assert (second["id"], second["name"]) == ("id1", first["name"])
    assert "grad_norm" in second["spec"]
    assert "grad_norm" not in first["spec"]
    bank = json.loads(second["spec"])["section"]["panelBankConfig"]
    assert len(bank["sections"]) == 5

    server.views.clear()  # somebody has removed it
    address = said_of_wandb(config, caplog).getMessage()
    assert "id" not in server.saved[2]
    assert address == f"W&B: {(run / 'wandb_view.txt').read_text()}"

    said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb", "logger.project=new"), caplog)
    assert (server.saved[3]["projectName"], "id" in server.saved[3]) == ("new", False)


def test_a_run_that_wandb_was_not_told_of(
    run: Path, tiny_config: MakeConfig, server: Views, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "wandb_id.txt").unlink()
    record = said_of_wandb(tiny_config(f"run_dir={run}", "logger=wandb"), caplog)
    assert record.getMessage().endswith("has run with logger=wandb")
    assert not server.saved
