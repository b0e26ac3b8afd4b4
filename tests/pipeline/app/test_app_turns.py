"""Whose turn it is on the page, and what is left of work that is not wanted any more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.app import service as service_module
from pipeline.app.service import KEPT, Cancelled, Limits, Refused, Result, Service
from pipeline.restore.api import Options
from tests.restoring import tiny_restorer

SOON = 0.5
"""Seconds in which what should not happen would have."""
WAIT = 60


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tiny_restorer(), tmp_path / "results", Limits(1, 1, 10, 8))


@pytest.fixture
def photo(save_image: Callable[..., Path]) -> Path:
    return save_image("a.png")


def results(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def nothing(done: int, total: int) -> None:
    pass


class Visitors:
    """Restore in threads, as the page does; the first is held in its first network call."""

    def __init__(self, service: Service, pool: ThreadPoolExecutor) -> None:
        self._service, self._pool = service, pool
        self._begun, self.go = threading.Event(), threading.Event()

    def hold(self, photo: Path, session: str) -> Future[Result]:
        def on_progress(done: int, total: int) -> None:
            self._begun.set()
            assert self.go.wait(WAIT)

        held = self.ask(photo, session, on_progress)
        assert self._begun.wait(WAIT)
        return held

    def wait_until(self, waiting: int) -> None:
        deadline = time.monotonic() + WAIT
        while self._service.waiting != waiting:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def ask(
        self, photo: Path, session: str, on_progress: Callable[[int, int], None] = nothing
    ) -> Future[Result]:
        return self._pool.submit(
            self._service.restore, photo, session, Options(steps=3), on_progress
        )


@pytest.fixture
def visitors(service: Service) -> Iterator[Visitors]:
    with ThreadPoolExecutor(4) as pool:
        found = Visitors(service, pool)
        yield found
        found.go.set()
        service.cancel()


def test_cancelled_work_is_at_its_end_before_the_next_begins(
    service: Service, photo: Path, visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = visitors.hold(photo, "me")
    service.cancel("me")
    opened = threading.Event()
    really = service.open

    def open_photo(path: Path) -> Any:
        opened.set()
        return really(path)

    monkeypatch.setattr(service, "open", open_photo)
    yours = visitors.ask(photo, "you")
    assert not opened.wait(SOON)
    visitors.go.set()
    with pytest.raises(Cancelled):
        mine.result(WAIT)
    assert yours.result(WAIT).file.exists()


def test_too_many_are_told_to_come_back(service: Service, photo: Path, visitors: Visitors) -> None:
    service.limits = Limits(waiting=2)
    asked = [visitors.hold(photo, "me"), *(visitors.ask(photo, who) for who in ("you", "she"))]
    visitors.wait_until(2)
    with pytest.raises(Refused, match="Too many photographs are waiting"):
        service.restore(photo, "he", Options(), nothing)
    visitors.go.set()
    assert len({each.result(WAIT).file for each in asked}) == 3


@pytest.mark.parametrize("end", [Service.cancel, Service.forget])
def test_who_waits_can_leave(
    service: Service, photo: Path, visitors: Visitors, end: Callable[[Service, str], None]
) -> None:
    mine, yours = visitors.hold(photo, "me"), visitors.ask(photo, "you")
    visitors.wait_until(1)
    end(service, "you")
    with pytest.raises(Cancelled):
        yours.result(WAIT)
    assert not mine.done()
    visitors.go.set()
    assert mine.result(WAIT).file.exists()


def test_all_are_cancelled_at_work_and_waiting(
    service: Service, photo: Path, visitors: Visitors
) -> None:
    asked = [visitors.hold(photo, "me"), visitors.ask(photo, "you")]
    visitors.wait_until(1)
    service.cancel()
    visitors.go.set()
    for each in asked:
        with pytest.raises(Cancelled):
            each.result(WAIT)


def test_old_work_of_a_session_does_not_cancel_its_new(photo: Path, visitors: Visitors) -> None:
    old, new = visitors.hold(photo, "me"), visitors.ask(photo, "me")
    visitors.wait_until(1)
    visitors.go.set()
    assert new.result(WAIT).file.exists()
    assert old.result(WAIT).file == new.result(WAIT).file


def test_both_works_of_a_session_are_cancelled(
    service: Service, photo: Path, visitors: Visitors
) -> None:
    asked = [visitors.hold(photo, "me"), visitors.ask(photo, "me")]
    visitors.wait_until(1)
    service.cancel("me")
    visitors.go.set()
    for each in asked:
        with pytest.raises(Cancelled):
            each.result(WAIT)


@pytest.mark.parametrize("end", [Service.cancel, Service.forget])
def test_end_while_the_photograph_is_read_is_heard(
    service: Service,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Service, str], None],
) -> None:
    really = service.open

    def open_photo(path: Path) -> Any:
        end(service, "me")
        return really(path)

    monkeypatch.setattr(service, "open", open_photo)
    calls: list[int] = []
    with pytest.raises(Cancelled):
        service.restore(photo, "me", Options(steps=9), lambda done, total: calls.append(done))
    assert not calls and not results(tmp_path)


@pytest.mark.parametrize("end", [Service.cancel, Service.forget])
def test_end_after_the_last_network_call_leaves_no_result(
    service: Service,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Service, str], None],
) -> None:
    really = service_module.encode_photograph

    def encode(*arguments: Any) -> Any:
        end(service, "me")
        return really(*arguments)

    monkeypatch.setattr(service_module, "encode_photograph", encode)
    with pytest.raises(Cancelled):
        service.restore(photo, "me", Options(), nothing)
    assert not results(tmp_path)


def test_turn_is_free_after_what_fails(service: Service, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        service.restore(tmp_path / "none.png", "me", Options(), nothing)
    assert service.restore(photo, "me", Options(), nothing).file.exists()


def test_old_results_are_swept_away(service: Service, photo: Path) -> None:
    service.delete_old()  # there is no folder yet
    mine, yours = (service.restore(photo, who, Options(), nothing).file for who in ("me", "you"))
    for file, age in ((mine, KEPT + 60), (yours, KEPT - 60)):
        os.utime(file.parent, (time.time() - age,) * 2)
    service.delete_old()
    assert not mine.parent.exists() and yours.exists()
