"""What the page does with a photograph, without a browser."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.degradations import WORDS
from pipeline.app.__main__ import make_examples
from pipeline.app.service import PREVIEW, Cancelled, Limits, Refused, Service
from pipeline.restore.api import Options
from pipeline.restore.visualize import thumbnail
from tests.conftest import photograph
from tests.restoring import tiny_restorer


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tiny_restorer(), tmp_path / "results", Limits(1, 1, 10, 8))


def save(path: Path, height: int = 40, width: int = 50) -> Path:
    Image.fromarray(photograph(height, width)).save(path)
    return path


def nothing(done: int, total: int) -> None:
    pass


def test_result_is_in_full_and_as_the_restorer_makes_it(service: Service, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = save(tmp_path / "a b.png")
    made = service.restore(
        path, "me", Options(steps=3, seed=4), lambda *progress: told.append(progress)
    )
    expected = service.restorer.restore_pixels(photograph(40, 50), steps=3, seed=4)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(made.file.read_bytes()))), expected.image
    )
    assert np.array_equal(made.before, photograph(40, 50))
    assert np.array_equal(made.after, expected.image)
    assert made.file.name == "a b-restored.png" and made.degradation == expected.degradation
    assert told == [(1, 3), (2, 3), (3, 3)] and made.summary.startswith("3 network calls, ")


def test_sessions_are_apart_and_forgotten(service: Service, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    mine, yours = (service.restore(path, who, Options(), nothing).file for who in ("me", "you"))
    again = service.restore(save(tmp_path / "b.png"), "me", Options(), nothing).file
    assert not mine.exists() and yours.exists() and again.exists()
    service.forget("me")
    assert not again.parent.exists() and yours.exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_session_named_like_a_path_reaches_no_other_folder(
    service: Service, tmp_path: Path, absolute: bool
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious.txt").write_text("mine")
    session = str(victim) if absolute else "../victim"
    made = service.restore(save(tmp_path / "a.png"), session, Options(), nothing).file
    service.forget(session)
    assert [path.name for path in victim.iterdir()] == ["precious.txt"]
    assert not made.exists()


def test_cancelling_ends_the_work_of_one_session(service: Service, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    calls = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        service.cancel("other")
        if done == 2:
            service.cancel("me")

    with pytest.raises(Cancelled):
        service.restore(path, "me", Options(steps=9), cancel)
    assert calls == [1, 2]
    service.cancel("me")  # nothing to cancel, nothing kept for later
    assert service.restore(path, "me", Options(), nothing).file.exists()


def test_work_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    service = Service(tiny_restorer(), tmp_path / "results", Limits(minutes=0))
    with pytest.raises(Refused, match=r"a.png takes more than 0 minutes; choose fewer steps"):
        service.restore(save(tmp_path / "a.png"), "me", Options(), nothing)


def test_large_files_and_photographs_are_refused(service: Service, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    with pytest.raises(Refused, match=r"^large.png has 2 MB; this page accepts 1 MB"):
        service.open(tmp_path / "large.png")
    with pytest.raises(Refused, match=r"^wide.png has 3 million pixels; this page accepts 1"):
        service.open(save(tmp_path / "wide.png", 10, 300_000))


def test_what_is_refused_names_no_folder_of_the_machine(service: Service, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(Refused, match=r"^text.png: not an image"):
        service.open(tmp_path / "text.png")
    with pytest.raises(Refused, match="steps must be in"):
        service.restore(save(tmp_path / "a.png"), "me", Options(steps=1000), nothing)


def test_previews_are_small_and_eight_bit() -> None:
    wide = thumbnail(np.full((10, 4 * PREVIEW, 3), 65535, np.uint16), PREVIEW)
    assert wide.shape == (2, PREVIEW, 3) and wide.dtype == np.uint8 and (wide == 255).all()
    assert np.array_equal(thumbnail(photograph(30, 40), PREVIEW), photograph(30, 40))


def test_there_is_an_example_of_each_degradation(tmp_path: Path) -> None:
    made = make_examples(tmp_path)
    assert [path.stem for path in made] == list(WORDS)
    sizes = {Image.open(path).size for path in made}
    assert sizes == {(256, 256)} and len({path.read_bytes() for path in made}) == 10


@pytest.mark.slow
def test_page_keeps_its_files_to_itself_and_takes_them_along_when_it_ends(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.app", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    ) as page:
        try:
            assert page.stdout is not None
            assert any("the page is at http://127.0.0.1:" in line for line in page.stdout)
            (folder,) = tmp_path.glob("restore-page-*")
            assert folder.stat().st_mode & 0o077 == 0
            assert len(list((folder / "examples").iterdir())) == 10
            old = folder / "results" / "of a visitor"
            old.mkdir(parents=True)
            os.utime(old, (0, 0))
            deadline = time.monotonic() + 30
            while old.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not old.exists()
        finally:
            page.terminate()
    assert page.returncode == 0
    assert not list(tmp_path.glob("restore-page-*"))
