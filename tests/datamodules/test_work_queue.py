"""Sharing work out by files: every batch once, whatever is killed, on any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from datamodules import shares
from datamodules.ledger import Ledger, Line
from datamodules.shares import Share

PLAN = [[f"{batch}{item}" for item in "ab"] for batch in range(7)]


class Killed(Exception):
    pass


class Worker:
    """Notes what it does, and is killed when it has done so many batches."""

    def __init__(self, survives: int = 100) -> None:
        self.done: list[str] = []
        self.left = survives

    def __call__(self, keys: Sequence[str]) -> list[Line]:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.done += keys
        return [{"key": key} for key in keys]


def work(folder: Path, worker: Worker, rank: int = 0, world: int = 1) -> Ledger:
    ledger = Ledger(folder, "rows", rank, PLAN)
    with closing(Share(PLAN, ledger, lambda batch: batch, worker, "test", quiet=True)) as share:
        share.finish(range(rank, len(PLAN), world), stop=lambda: False)
        if rank == 0:
            share.finish_others()
    return ledger


def keys(ledger: Ledger) -> list[str]:
    return [line["key"] for line in ledger.lines()]


ALL = [key for batch in PLAN for key in batch]


def test_killed_work_goes_on_with_what_is_left(tmp_path: Path) -> None:
    first, second = Worker(3), Worker()
    with pytest.raises(Killed):
        work(tmp_path, first)
    assert keys(work(tmp_path, second)) == ALL
    assert first.done + second.done == ALL


def test_two_ranks_do_each_batch_once(tmp_path: Path) -> None:
    workers = Worker(), Worker()
    other = threading.Thread(target=work, args=(tmp_path, workers[1], 1, 2))
    other.start()
    ledger = work(tmp_path, workers[0], 0, 2)
    other.join()
    assert keys(ledger) == ALL
    assert workers[0].done == [key for batch in PLAN[::2] for key in batch]
    assert workers[1].done == [key for batch in PLAN[1::2] for key in batch]


def test_first_rank_takes_over_from_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shares, "PATIENCE_S", 0.2)
    monkeypatch.setattr(shares, "POLL_S", 0.05)
    with pytest.raises(Killed):
        work(tmp_path, Worker(1), 1, 3)
    assert keys(work(tmp_path, Worker(), 0, 3)) == ALL
    assert "the first takes over the 3 that are left" in caplog.text


def test_other_number_of_ranks_goes_on(tmp_path: Path) -> None:
    for rank in (1, 2):
        with pytest.raises(Killed):
            work(tmp_path, Worker(1), rank, 3)
    last = Worker()
    assert keys(work(tmp_path, last)) == ALL
    assert len(last.done) == len(ALL) - 4


def test_a_rank_stops_when_there_is_no_need_of_it(tmp_path: Path) -> None:
    worker = Worker()
    ledger = Ledger(tmp_path, "rows", 1, PLAN)
    with closing(Share(PLAN, ledger, lambda batch: batch, worker, "test", quiet=True)) as share:
        share.finish(range(7), stop=lambda: len(worker.done) >= 4)
    assert 4 <= len(worker.done) <= 6  # one more had been read


@pytest.mark.parametrize(
    "tail",
    [
        b'{"batch": 1, "keys": ["1a", "1b"], "li',
        b'{"batch": 1, "keys": ["1a", "other"], "lines": []}\n',
        b'{"batch": 99, "keys": [], "lines": []}\n',
        b"\xff\x00 no JSON\n",
    ],
)
def test_lines_that_are_not_whole_or_not_of_this_work_do_not_count(
    tmp_path: Path, tail: bytes
) -> None:
    Ledger(tmp_path, "rows", 0, PLAN).add(0, [{"key": "0a"}, {"key": "0b"}])
    (part,) = tmp_path.glob("rows.part-*")
    part.write_bytes(part.read_bytes() + tail)
    assert list(Ledger(tmp_path, "rows", 0, PLAN).done) == [0]


def test_what_is_done_twice_counts_once(tmp_path: Path) -> None:
    for rank in range(2):
        Ledger(tmp_path, "rows", rank, PLAN[:1]).add(0, [{"key": "0a"}, {"key": "0b"}])
    assert keys(Ledger(tmp_path, "rows", 0, PLAN[:1])) == ["0a", "0b"]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gone", "rows", 0, PLAN)
    with pytest.raises(OSError, match=r"cannot write .*gone/rows\.part-0.*run the same command"):
        ledger.add(0, [])
