"""The page over HTTP, without a browser: its queue is the only way in."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from pipeline.app.page import build
from pipeline.app.service import Limits, Service
from tests.restoring import tiny_restorer


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[gr.Blocks]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = build(Service(tiny_restorer(), tmp_path / "results", Limits()), [])
    page.launch(server_name="127.0.0.1", quiet=True, ssr_mode=False, prevent_thread_lock=True)
    yield page
    page.close(verbose=False)


def post(page: gr.Blocks, name: str, data: list[object]) -> int:
    request = urllib.request.Request(
        f"{page.local_url}gradio_api/run/{name}",
        json.dumps({"data": data, "session_hash": "me"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return int(answer.status)


@pytest.mark.parametrize(
    ("name", "data"), [("restore", [None, "auto", 1, 0, "auto", 1]), ("look", [None])]
)
def test_no_work_is_done_past_the_queue(page: gr.Blocks, name: str, data: list[object]) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(page, name, data)
    assert raised.value.code == 404 and "join the queue" in raised.value.read().decode()


def test_queue_restores_and_cancelling_needs_no_queue(
    page: gr.Blocks, tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    client = Client(page.local_url, download_files=tmp_path, verbose=False, analytics_enabled=False)
    photo = handle_file(save_image("a.png", 40, 48))
    _, summary, _, button = client.predict(photo, "auto", 1, 0, "auto", 1, api_name="/restore")
    assert summary.startswith("1 network call, ")
    assert Image.open(button["value"]).size == (48, 40)
    assert post(page, "cancel", []) == 200


def test_files_are_deleted_within_an_hour(page: gr.Blocks) -> None:
    assert page.delete_cache is not None
    assert sum(page.delete_cache) <= 3600
