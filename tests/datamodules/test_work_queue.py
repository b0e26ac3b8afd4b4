"""Sharing work out by files: every batch once, whatever is killed, on any number of ranks."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from datamodules.work_queue import Line, WorkNotSaved, remove_parts, run_batches
from pipeline.errors import message

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


def work(folder: Path, worker: Worker, rank: int = 0, world: int = 1) -> list[str]:
    lines = run_batches(
        folder / "rows.jsonl", PLAN, PLAN, list, worker, rank=rank, world=world, title="test"
    )
    return [line["key"] for line in lines]


ALL = [key for batch in PLAN for key in batch]


def test_killed_work_goes_on_with_what_is_left(tmp_path: Path) -> None:
    first, second = Worker(3), Worker()
    with pytest.raises(Killed):
        work(tmp_path, first)
    assert work(tmp_path, second) == ALL
    assert first.done + second.done == ALL


def test_two_ranks_do_each_batch_once(tmp_path: Path) -> None:
    workers = Worker(), Worker()
    other = threading.Thread(target=work, args=(tmp_path, workers[1], 1, 2))
    other.start()
    lines = work(tmp_path, workers[0], 0, 2)
    other.join()
    assert lines == ALL
    assert workers[0].done == [key for batch in PLAN[::2] for key in batch]
    assert workers[1].done == [key for batch in PLAN[1::2] for key in batch]


def test_other_number_of_ranks_goes_on(tmp_path: Path) -> None:
    for rank in (1, 2):
        with pytest.raises(Killed):
            work(tmp_path, Worker(1), rank, 3)
    last = Worker()
    assert work(tmp_path, last) == ALL
    assert len(last.done) == len(ALL) - 4


def test_a_late_rank_stops_where_the_target_is_and_leaves_no_trace(tmp_path: Path) -> None:
    worker = Worker()

    def finished_by_others(keys: Sequence[str]) -> list[Line]:
        if len(worker.done) == 4:
            (tmp_path / "rows.jsonl").touch()
        return worker(keys)

    run_batches(
        tmp_path / "rows.jsonl", PLAN, PLAN, list, finished_by_others, rank=1, world=2, title="test"
    )
    assert worker.done == [key for batch in PLAN[1::2] for key in batch]
    late = Worker()
    work(tmp_path, late, 1, 2)
    assert late.done == []
    assert list(tmp_path.glob("rows.part-*")) == []


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
    with pytest.raises(Killed):
        work(tmp_path, Worker(1))
    (part,) = tmp_path.glob("rows.part-*")
    part.write_bytes(part.read_bytes() + tail)
    rest = Worker()
    assert work(tmp_path, rest) == ALL
    assert rest.done == ALL[2:]


def test_what_is_done_twice_counts_once(tmp_path: Path) -> None:
    work(tmp_path, Worker())
    (part,) = tmp_path.glob("rows.part-*")
    (tmp_path / "rows.part-9-twin.jsonl").write_bytes(part.read_bytes())
    nobody = Worker(0)
    assert work(tmp_path, nobody) == ALL


def test_parts_are_removed(tmp_path: Path) -> None:
    work(tmp_path, Worker())
    (tmp_path / "other.part-0-x.jsonl").touch()
    remove_parts(tmp_path / "rows.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["other.part-0-x.jsonl"]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkNotSaved) as caught:
        work(tmp_path / "gone", Worker())
    assert re.search(
        r"cannot write .*gone/rows\.part-0.*`run_dir`.*run the same command", message(caught.value)
    )
