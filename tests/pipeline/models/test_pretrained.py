"""Models by name: folders, runs, released files by hand or from a hub, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from datamodules.files import file_hash
from pipeline.config import Config
from pipeline.models import hub as pretrained
from pipeline.models.hub import (
    ABOUT,
    CONVERTED,
    RELEASED,
    REPOSITORY,
    RESTORER,
    SAMPLER,
    find_model,
)
from pipeline.models.publish import CARD, export, main, push
from pipeline.models.store import BadModel, load_pair
from tests.evaluating import save_models
from tests.released_files import save_released_controller, save_released_restorer

MakeConfig = Callable[..., Config]
PAIR = RELEASED["universal-ir"]
CODE = """
import sys
from pipeline.models.store import BadModel, load_pair
from pipeline.models.hub import find_model
try:
    found = find_model(sys.argv[1])
except BadModel as error:
    sys.exit(str(error))
load_pair(found.controller, found.restorer)
print(found.restorer)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DACLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path, tiny_config: MakeConfig) -> Path:
    """The folder of a trained run, as far as models go."""
    folder, config = tmp_path / "run", tiny_config()
    for path in save_models(config, tmp_path):
        stage = folder / path.stem
        stage.mkdir(parents=True)
        path.rename(stage / "model.safetensors")
    (folder / "restorer" / "config.yaml").write_text(
        "sampling: {method: ddim, eta: 0.5, calls: 3, grid: log_snr}\n"
    )
    return folder


def save_released(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_released_controller(folder / PAIR[0])
    save_released_restorer(folder / PAIR[1])
    return folder


def in_process(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, name],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_run_is_exported_and_found_again(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export(run, folder)
    found = find_model(folder)
    assert found.sampler == {
        "name": "ddim",
        "eta": 0.5,
        "num_steps": 3,
        "timestep_spacing": "log_snr",
    }
    for old, new in zip(load_pair(*find_model(run)[:2]), load_pair(*found[:2]), strict=True):
        module = "daclip" if hasattr(old, "daclip") else "network"
        states = [getattr(model, module).state_dict() for model in (old, new)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    card = (folder / CARD).read_text()
    assert card.startswith("---\nlibrary_name") and "not evaluated" in card and "`ddim`" in card
    with pytest.raises(BadModel, match="already"):
        export(run, folder)


def test_half_precision_halves_the_files_and_little_else(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "half", half=True)
    whole, half = find_model(run), find_model(tmp_path / "half")
    assert half.restorer.stat().st_size < 0.6 * whole.restorer.stat().st_size
    images, t = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0)), 50
    made = []
    for files in (whole, half):
        controller, denoiser = load_pair(files.controller, files.restorer)
        assert next(denoiser.network.parameters()).dtype == torch.float32
        with torch.no_grad():
            made.append(denoiser(images, images, t, controller.embed(images)).x_0)
    error = (made[1] - made[0]).abs().max()
    assert 0 < error < 0.01 * (made[0] - images).abs().max()


def test_card_has_the_figures_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    scores = {"psnr": 20.126, "ssim": 0.5}
    task = {"word": "hazy", "images": 6, "degraded": scores, "restored": scores}
    (run / "evaluation").mkdir()
    found = {"tasks": [task], "accuracy": 0.9251}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(found))
    files = {
        name: file_hash(run / name / "model.safetensors") for name in ("controller", "restorer")
    }
    (run / "evaluation" / "stage.json").write_text(json.dumps({"inputs": files}))
    export(run, tmp_path / "model")
    card = (tmp_path / "model" / CARD).read_text()
    assert "| hazy | 6 | 20.13 | 20.13 | 0.500 | 0.500 |" in card
    assert "recognises the degradation of 92.5 % of the images" in card


@pytest.mark.parametrize("other", ["model", "kind"])
def test_card_has_no_figures_of_another_evaluation(run: Path, tmp_path: Path, other: str) -> None:
    """Of another model, or of images without clean ones."""
    task = {"word": "hazy", "images": 6, "degraded": {}, "restored": {"niqe": 4.0}}
    (run / "evaluation").mkdir()
    metrics = {"tasks": [task], "accuracy": None}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    files = {
        name: file_hash(run / name / "model.safetensors") for name in ("controller", "restorer")
    }
    if other == "model":
        files[str(find_model(run).restorer)] = "0" * 64
    (run / "evaluation" / "stage.json").write_text(json.dumps({"inputs": files}))
    export(run, tmp_path / "model")
    assert "It was not evaluated" in (tmp_path / "model" / CARD).read_text()


def test_a_run_is_not_pushed_as_it_is(run: Path) -> None:
    """The Hub would take none of its files."""
    with pytest.raises(BadModel, match="make one with `make export` first"):
        push(run, "owner/name")


def test_shipped_model_is_the_default(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(BadModel, match=r"name one: universal-ir,"):
        find_model()
    export(run, tmp_path / "shipped")
    assert find_model().restorer == tmp_path / "shipped" / RESTORER


def test_released_files_put_there_by_hand_are_converted_once(cache: Path) -> None:
    save_released(cache / "universal-ir")
    found = find_model("universal-ir")
    assert (
        found.restorer == cache / "universal-ir" / CONVERTED / RESTORER and found.sampler == SAMPLER
    )
    before = load_pair(*(cache / "universal-ir" / name for name in PAIR))
    after = load_pair(found.controller, found.restorer)
    images = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pair = [d(images, images, 50, c.embed(images)).epsilon for c, d in (before, after)]
    assert torch.equal(*pair)
    for name in PAIR:  # no longer needed
        (cache / "universal-ir" / name).unlink()
    assert find_model("universal-ir") == found


def test_folder_with_a_released_pair_is_a_model(tmp_path: Path) -> None:
    found = find_model(save_released(tmp_path / "weights"))
    assert (found.controller.name, found.restorer.name) == PAIR
    load_pair(found.controller, found.restorer)


def test_two_processes_convert_at_once(cache: Path) -> None:
    save_released(cache / "universal-ir")
    results: list[subprocess.CompletedProcess[str]] = []
    work = [
        threading.Thread(target=lambda: results.append(in_process("universal-ir")))
        for _ in range(2)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert [r.returncode for r in results] == [0, 0], [r.stderr for r in results]
    assert {path.name for path in (cache / "universal-ir").iterdir()} == {*PAIR, CONVERTED}


def test_code_in_a_released_file_is_not_run(cache: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{proof}'",)

    folder = save_released(cache / "universal-ir")
    (folder / PAIR[1]).write_bytes(pickle.dumps({"state_dict": Payload()}))
    with pytest.raises(BadModel, match="could run code"):
        find_model("universal-ir")
    torch.save({"state_dict": Payload()}, folder / PAIR[1])
    with pytest.raises(BadModel, match="could run code"):
        find_model("universal-ir")
    assert not proof.exists() and not (folder / CONVERTED).exists()


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(cache: Path) -> None:
    done = in_process("wild-ir", HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for text in ("wild-daclip_ViT-L-14.pt", REPOSITORY, str(cache / "wild-ir")):
        assert text in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no model 'nothing'"),
        ("/no/such/folder", "there is no model"),
        (__file__, "is a file, and a model is two"),
        (str(Path(__file__).parent), "holds no model"),
    ],
)
def test_what_is_no_model_is_said(name: str, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        find_model(name)


@pytest.mark.parametrize("about", ["", "{", "[]", '{"sampling": {"calls": 3}}', None])
def test_damaged_settings_are_named(run: Path, tmp_path: Path, about: str | None) -> None:
    export(run, tmp_path / "model")
    path = tmp_path / "model" / ABOUT
    path.unlink() if about is None else path.write_text(about)
    with pytest.raises(BadModel, match=f"{ABOUT} .*export or download the model again"):
        find_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eta", "a"),
        ("num_steps", "10"),
        ("num_steps", 2.5),
        ("num_steps", True),
        ("name", ["ddim"]),
        ("name", "euler"),
        ("timestep_spacing", "cosine"),
    ],
)
def test_settings_that_cannot_be_are_named(
    run: Path, tmp_path: Path, name: str, value: object
) -> None:
    export(run, tmp_path / "model")
    path = tmp_path / "model" / ABOUT
    about = json.loads(path.read_text())
    about["sampler"][name] = value
    path.write_text(json.dumps(about))
    with pytest.raises(BadModel, match=f"{re.escape(str(path))}.* {re.escape(repr(value))}"):
        find_model(tmp_path / "model")


@pytest.mark.usefixtures("own_logging")
def test_export_and_errors_on_the_command_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(tmp_path / "model"), "--half"]) == 0
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()
    assert main(["push", str(tmp_path / "none"), "a/b"]) == 1


def test_pushing_without_a_network_is_an_error(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.models.publish", "push", tmp_path / "model", "owner/name"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "was not published" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "model" / RESTORER).write_bytes(b"half")
    with pytest.raises(BadModel, match=RESTORER):
        push(tmp_path / "model", "owner/name")


class Hub(BaseHTTPRequestHandler):
    """Serves OWNER/NAME/resolve/main/FILE of a folder as the Hub does: large files, by hash."""

    def __init__(self, folder: Path, damaged: bool, *arguments: object) -> None:
        self._folder, self._damaged = folder, damaged
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self._folder / self.path.partition("/resolve/main/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content[:-1] + b"x" if self._damaged else content)


@contextmanager
def hub(folder: Path, damaged: bool = False) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, damaged))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_released_files_are_fetched_and_kept(cache: Path, tmp_path: Path) -> None:
    folder = save_released(tmp_path / "served")
    with hub(folder) as address:
        done = in_process("universal-ir", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    sums = json.loads((cache / "universal-ir" / CONVERTED / ABOUT).read_text())["sha256"]
    assert sums == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in PAIR}
    assert in_process("universal-ir", HF_HUB_OFFLINE="1").returncode == 0


def test_damaged_download_is_refused(cache: Path, tmp_path: Path) -> None:
    with hub(save_released(tmp_path / "served"), damaged=True) as address:
        done = in_process("universal-ir", HF_ENDPOINT=address)
    assert done.returncode == 1 and f"as {PAIR[0]} is damaged" in done.stderr
    with hub(tmp_path / "served") as address:
        assert in_process("universal-ir", HF_ENDPOINT=address).returncode == 0
