"""What is named becomes a list of photographs and targets; nothing is overwritten or mixed up."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.restore.paths import BadInput, Found, Job, check_files, find_jobs, place


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("in/a.png", "in/sub/b ü.JPG", "in/.hidden.png", "in/.git/c.png", "in/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(
    *inputs: str,
    output: str = "out",
    suffix: str | None = None,
    lines: str = "",
    made: Container[Path] = (),
) -> Found:
    return find_jobs(inputs, Path(output), suffix, lines.splitlines(keepends=True), made)


def jobs(*inputs: str, **options: Any) -> list[Job]:
    found = find(*inputs, **options)
    assert not found.faults
    return found.jobs


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
        ([""], "out", None, "no photograph was named; type restore PHOTO"),
        (["in/a.png", ""], "out", None, "no photograph was named; type restore PHOTO"),
        (["gone.png", "in/*.webp"], "out", None, "gone.png\nno photograph matches in/*.webp"),
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


def test_what_is_not_there_is_told_and_the_rest_go_on(folder: Path) -> None:
    (folder / "empty").mkdir()
    found = find("gone.png", "in/a.png", "in/*.webp", "empty", "-", lines="gone too.png\nin/sub\n")
    assert pairs(found.jobs) == [("in/a.png", "out/a.png"), ("in/sub/b ü.JPG", "out/b ü.JPG")]
    assert found.faults[:2] == [
        "there is no file or folder gone.png",
        "no photograph matches in/*.webp",
    ]
    assert found.faults[2].startswith("empty has no photograph")
    assert found.faults[3:] == ["there is no file or folder gone too.png"]


def test_mark_before_a_list_is_no_part_of_a_name(folder: Path) -> None:
    assert pairs(jobs("-", lines="\ufeffin/a.png\n")) == [("in/a.png", "out/a.png")]


@pytest.mark.parametrize("locked", ["in/sub", "in"])
def test_folder_that_cannot_be_read_is_told_and_the_rest_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    scan = os.scandir

    def scan_what_is_open(path: str) -> Iterator[os.DirEntry[str]]:
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    (folder / "more.png").touch()
    monkeypatch.setattr(os, "scandir", scan_what_is_open)  # root may read what others may not
    found = find("in", "more.png")
    assert found.faults == [f"{locked}: cannot be read (Permission denied)"]
    sources = [source for source, _ in pairs(found.jobs)]
    assert sources == (["more.png"] if locked == "in" else ["in/a.png", "more.png"])


def test_name_that_cannot_be_looked_up_is_told(folder: Path) -> None:
    long = "x" * 300
    for found in (find(long, "in/a.png"), find("-", lines=f"{long}\nin/a.png\n")):
        assert found.faults == [f"{long}: cannot be read (File name too long)"]
        assert len(found.jobs) == 1


def test_list_with_zero_bytes_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="give one a line"):
        jobs("-", lines="in/a.png\0in/sub/b ü.JPG\0")


def test_made_files_are_known_by_whatever_way_they_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "link").symlink_to(folder / "in")
    (folder / "in" / "out").mkdir()
    (folder / "in" / "out" / "a.png").touch()
    monkeypatch.chdir(folder / "in")
    for output in ("../in/out", "../link/out", str(folder / "link" / "out")):
        made = {place(Path(output) / "a.png")}
        lines = "./out\n./a.png\n./out/a.png\n"
        assert [s for s, _ in pairs(jobs("-", output=output, lines=lines, made=made))] == ["a.png"]
        named = jobs("**/*.png", output=output, made=made)
        assert [s for s, _ in pairs(named)] == ["a.png"]


def test_link_to_a_made_file_is_a_photograph_of_its_own(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "a.png").touch()
    (folder / "in" / "again.png").symlink_to(folder / "out" / "a.png")
    made = {place(folder / "out" / "a.png")}
    expected = [("in/again.png", "out/again.png")]
    assert pairs(jobs("-", lines="in/again.png\n", made=made)) == expected


def test_link_that_leads_to_itself_is_left_to_its_turn(folder: Path) -> None:
    (folder / "in" / "z.png").symlink_to(folder / "in" / "z.png")
    found = jobs("in")
    check_files(found, 1, ())
    assert "in/z.png" in [source for source, _ in pairs(found)]


def fold(monkeypatch: pytest.MonkeyPatch, form: Callable[[str], str]) -> None:
    """Have the disk take names for one that are the same in a form."""

    def exists(path: Path) -> bool:
        return form(path.name) in {form(other.name) for other in path.parent.iterdir()}

    monkeypatch.setattr(Path, "exists", exists)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (str.casefold, ("a.png", "A.PNG")),
        (str.casefold, ("Sub/a.png", "sub/a.png")),
        (partial(unicodedata.normalize, "NFC"), ("\xe9.png", "e\u0301.png")),
    ],
)
def test_names_that_the_disk_takes_for_one_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[str], str],
    names: tuple[str, str],
) -> None:
    found = [Job(Path(f"in/{name}"), tmp_path / "out" / name) for name in names]
    fold(monkeypatch, form)
    check_files(found[:1], 1, ())
    with pytest.raises(BadInput, match=f"in/{names[0]} and in/{names[1]} would both be restored"):
        check_files(found, 1, ())
    assert not list(tmp_path.iterdir())


def test_names_that_the_disk_keeps_apart_are_restored(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    if (tmp_path / "A").exists():
        pytest.skip("a disk that takes them for one")
    names = ("a.png", "A.PNG", "\xe9.png", "e\u0301.png")
    check_files([Job(Path(f"in/{name}"), tmp_path / "out" / name) for name in names], 2, ["steps"])
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
