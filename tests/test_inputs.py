"""What is named becomes a list of photographs and targets; nothing is overwritten or mixed up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.restoration.inputs import BadInput, Job, find_jobs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("in/a.png", "in/sub/b ü.JPG", "in/.hidden.png", "in/.git/c.png", "in/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs(
    *inputs: str, output: str = "out", suffix: str | None = None, lines: str = ""
) -> list[Job]:
    return find_jobs(inputs, Path(output), suffix, lines.splitlines(keepends=True))


def pairs(found: list[Job]) -> list[tuple[str, str]]:
    return [(job.source.as_posix(), job.target.as_posix()) for job in found]


def test_folders_keep_their_sub_folders(folder: Path) -> None:
    expected = [("in/a.png", "out/a.png"), ("in/sub/b ü.JPG", "out/sub/b ü.JPG")]
    assert pairs(jobs("in")) == expected
    assert pairs(jobs("in/")) == expected


def test_files_patterns_and_standard_input_are_taken_once_each(folder: Path) -> None:
    expected = [("in/a.png", "out/a.png"), ("in/sub/b ü.JPG", "out/b ü.JPG")]
    assert pairs(jobs("in/a.png", "in/sub/b ü.JPG", "in/a.png")) == expected
    assert pairs(jobs("in/**/*.[pJ]*")) == expected
    assert pairs(jobs("-", lines="in/a.png\n\nin/sub/b ü.JPG\r\n")) == expected


def test_format_changes_the_suffix(folder: Path) -> None:
    assert pairs(jobs("in/sub", suffix=".png")) == [("in/sub/b ü.JPG", "out/b ü.png")]


def test_names_with_pattern_characters_are_files_where_there_are_such(folder: Path) -> None:
    (folder / "in" / "x[1].png").touch()
    assert pairs(jobs("in/x[1].png")) == [("in/x[1].png", "out/x[1].png")]


def test_output_inside_the_input_is_passed_over(folder: Path) -> None:
    (folder / "in" / "out").mkdir()
    (folder / "in" / "out" / "a.png").touch()
    assert [s for s, _ in pairs(jobs("in", output="in/out"))] == ["in/a.png", "in/sub/b ü.JPG"]


def test_loops_of_links_end(folder: Path) -> None:
    (folder / "in" / "loop").symlink_to(folder / "in")
    assert len(jobs("in")) == 2


@pytest.mark.parametrize("trick", ["../../etc/a.png", "/etc/a.png", "in/../../b.png"])
def test_no_name_leads_out_of_the_output(folder: Path, trick: str) -> None:
    named = folder / "deep" / "in" / ".." / "a.png"
    (folder / "deep" / "in").mkdir(parents=True)
    (folder / "deep" / "a.png").touch()
    assert pairs(jobs(str(named))) == [(named.as_posix(), "out/a.png")]
    with pytest.raises(BadInput, match="there is no file"):
        jobs(trick)


@pytest.mark.parametrize(
    ("inputs", "output", "suffix", "message"),
    [
        (["gone.png"], "out", None, "there is no file or folder gone.png"),
        (["in/*.webp"], "out", None, "no photograph matches in/*.webp"),
        (["in"], "in", None, "in is the input folder"),
        (["in/a.png"], "in", None, "in/a.png would be overwritten"),
        (["in/a.png", "other/a.png"], "out", None, "would both be restored to out/a.png"),
        (["in", "in/x.jpg"], "out", ".png", "in/x.png and in/x.jpg would both"),
        (["empty"], "out", None, "empty has no photograph"),
        (["-"], "out", None, "no photograph was named on standard input"),
    ],
)
def test_what_cannot_be_is_named(
    folder: Path, inputs: list[str], output: str, suffix: str | None, message: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "a.png").touch()
    if suffix:
        (folder / "in" / "x.jpg").touch()
        (folder / "in" / "x.png").touch()
        inputs = ["in/x.png", "in/x.jpg"]
    with pytest.raises(BadInput, match=re.escape(message)):
        find_jobs(inputs, Path(output), suffix, [])
