"""Captions that people have: which files are read, and which caption goes to which image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.captioners import FileCaptioner, RunCaptions
from datamodules.captions import CAPTIONS, read_captions, write_captions
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import write_shards
from pipeline.compose import load_config
from pipeline.config import build
from pipeline.stages.captions import CaptionsConfig
from tests.conftest import form, paired_folder, photograph

SOURCE = "train/hazy/GT/0048.png"


def table(path: Path, *rows: str, header: str = "filepath\ttitle", end: str = "\n") -> Path:
    path.write_bytes("".join(f"{line}{end}" for line in (header, *rows)).encode())
    return path


def json_lines(path: Path, *entries: tuple[str, str]) -> Path:
    lines = [json.dumps({"source": source, "caption": caption}) for source, caption in entries]
    path.write_text("\n".join(lines))
    return path


def looked_up(path: Path, *sources: str) -> list[str]:
    return FileCaptioner(str(path)).caption([], sources)


def test_json_lines_are_looked_up_by_source(tmp_path: Path) -> None:
    entries = (("a.png", "a sign: 'open'\n  today"), ("b", "b"), ("astronaut", "x: hazy"))
    path = json_lines(tmp_path / "mine.jsonl", *entries)
    found = looked_up(path, "b", "a.png", "b", "astronaut")
    assert found == ["b", "a sign: 'open' today", "b", "x: hazy"]


@pytest.mark.parametrize(
    ("title", "caption"),
    [
        ("a house: hazy", "a house"),
        ("a sign: open: hazy", "a sign: open"),
        ("a sign: hazy: hazy", "a sign: hazy"),
        ("a sign: open", "a sign: open"),
        ("two cats:hazy", "two cats:hazy"),
        ("a view : motion-blurry", "a view"),
        ('"a ""quoted"" word: rainy"', 'a "quoted" word'),
        ('"open" sign: rainy', '"open" sign'),
        ('"a stray quote: rainy', '"a stray quote'),
        ('a 5" nail: rainy', 'a 5" nail'),
        ('"tab\there: snowy"', "tab here"),
        ("one, two, and three: noisy", "one, two, and three"),
        ("  many \u2028 spaces  : noisy", "many spaces"),
        ("ein Café über dem Fluß: noisy", "ein Café über dem Fluß"),
    ],
)
def test_titles_of_the_published_table(tmp_path: Path, title: str, caption: str) -> None:
    lq = "datasets/universal/train/hazy/LQ/0048.png"
    path = table(tmp_path / "daclip_train.csv", "other.png\tanother", f"{lq}\t{title}", "c.png\tc")
    assert looked_up(path, SOURCE, "c.png") == [caption, "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \r\n"])
@pytest.mark.parametrize("header", ["filepath\ttitle", "\ufefffilepath\ttitle"])
def test_line_ends_blank_lines_and_byte_order_marks(tmp_path: Path, header: str, end: str) -> None:
    path = table(tmp_path / "t.csv", "a.png\ta house: hazy", "b.png\tb", header=header, end=end)
    assert looked_up(path, "a.png", "b.png") == ["a house", "b"]


def test_byte_order_mark_before_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"source": "a", "caption": "x"}\r\n\r\n')
    assert looked_up(path, "a") == ["x"]


def test_quoted_captions_may_span_lines(tmp_path: Path) -> None:
    rows = ['a.png\t"two\n\nlines, ""quoted"": hazy"', 'b.png\t"a stray quote: rainy', "c.png\tc"]
    path = table(tmp_path / "t.csv", *rows)
    found = looked_up(path, "a.png", "b.png", "c.png")
    assert found == ['two lines, "quoted"', '"a stray quote', "c"]
    path = table(tmp_path / "t.csv", rows[0], "d")
    with pytest.raises(ValueError, match=r"t\.csv:5: 1 fields, but 2"):
        looked_up(path, "a.png")


@pytest.mark.parametrize(("name", "source"), [("demo", "astronaut"), ("photos", "")])
def test_captions_that_come_with_the_project(name: str, source: str) -> None:
    captioner = build(load_config(["run_dir=x", f"captioner={name}"])[CaptionsConfig].captioner)
    (path,) = captioner.files()
    assert captioner.by == path.name == f"{name}.jsonl"
    source = source or json.loads(path.read_text().splitlines()[0])["source"]
    assert len(captioner.caption([], [source])[0]) > 10


def test_other_words_may_end_a_title(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "a.png\ta house: foggy", "b.png\ta tree: hazy")
    captioner = FileCaptioner(str(path), words=["foggy"])
    assert captioner.caption([], ["a.png", "b.png"]) == ["a house", "a tree: hazy"]


def test_comma_separated_table_with_more_columns(tmp_path: Path) -> None:
    rows = ('x,"a house, and a tree: hazy",a.png', ",,b.png")
    path = table(tmp_path / "t.csv", rows[0], header="number,title,filepath")
    assert looked_up(path, "a.png") == ["a house, and a tree"]
    path = table(tmp_path / "t.csv", *rows, header="number,title,filepath")
    with pytest.raises(ValueError, match=r"t\.csv:3: the path or the caption is empty"):
        looked_up(path, "a.png")


@pytest.mark.parametrize("line", ["{", '{"source": "a"}', "[]", "a.png\ta caption", "3"])
def test_damaged_json_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"source": "a", "caption": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: expected"):
        looked_up(path, "a")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "t.csv: expected JSON lines"),
        ("a.png\ta house", "t.csv:1: expected JSON lines .* `filepath` and `title`"),
        ("[\n", "t.csv:1: expected"),
        ("\nfilepath;title\na;b\n", "t.csv:2: expected"),
        ("filepath\ttitle\na\n", "t.csv:2: 1 fields, but 2 in the header"),
        ("filepath,title\na.png,one, two\n", r"t.csv:2: 3 fields.*contains ',' needs double quot"),
        ("filepath\ttitle\na.png\t\n", "t.csv:2: the path or the caption is empty"),
        ("filepath\ttitle\na.png\t: hazy\n", "t.csv:2: the path or the caption is empty"),
        ("filepath\ttitle\n\ta house\n", "t.csv:2: the path or the caption is empty"),
        ('{"source": "a", "caption": " "}', "t.csv:1: the path or the caption is empty"),
        ('{"source": "a", "caption": null}', "t.csv:1: expected"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        looked_up(path, "a")


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes("filepath\ttitle\na\tCafé\n".encode(encoding))
        with pytest.raises(ValueError, match=r"t\.csv: not UTF-8"):
            looked_up(path, "a")


@pytest.mark.parametrize(
    "entry",
    [
        "0048.png",
        "0048",
        "LQ/0048.JPG",
        "./train/hazy/LQ/0048.png",
        "/data/universal/train/hazy/LQ/0048.png",
        "/data/LQ/train/hazy/GT/0048.tiff",
        r"D:\universal\train\hazy\LQ\0048.png",
    ],
)
def test_paths_that_fit(tmp_path: Path, entry: str) -> None:
    path = json_lines(tmp_path / "t.jsonl", ("x/y.png", "no"), (entry, "yes"))
    assert looked_up(path, SOURCE) == ["yes"]


@pytest.mark.parametrize(
    "entry",
    [
        "val/hazy/GT/0048.png",
        "hazy/0048.png",
        "GT/0048/0048.png",
        "048.png",
        "0048.v2",
        "GT/00480.png",
        "rainy/LQ/0048_1.png",
        "train/hazy/LQ/00481_1.png",
    ],
)
def test_paths_that_do_not_fit(tmp_path: Path, entry: str) -> None:
    path = json_lines(tmp_path / "t.jsonl", (entry, "no"))
    with pytest.raises(ValueError, match=r"t\.jsonl has no caption for 1 images: train/hazy"):
        looked_up(path, SOURCE)


def test_longest_match_wins(tmp_path: Path) -> None:
    entries = [("0048.png", "1"), ("a/train/hazy/LQ/0048", "4"), ("hazy/GT/0048.png", "3")]
    path = json_lines(tmp_path / "t.jsonl", *entries)
    found = looked_up(path, SOURCE, "val/hazy/GT/0048.png", "val/rainy/GT/0048.png")
    assert found == ["4", "3", "1"]


def test_equal_matches_must_agree(tmp_path: Path) -> None:
    same = [("a/hazy/LQ/0048.png", "x"), ("b/hazy/LQ/0048.png", "x")]
    assert looked_up(json_lines(tmp_path / "t.jsonl", *same), "hazy/GT/0048.png") == ["x"]
    other = [*same, ("c/hazy/LQ/0048.png", "y")]
    with pytest.raises(
        ValueError,
        match=r"t\.jsonl:1 \(a/hazy/LQ/0048.png\) and .*t\.jsonl:3 \(c/hazy/LQ/0048.png\) both fit",
    ):
        looked_up(json_lines(tmp_path / "t.jsonl", *other), "hazy/GT/0048.png")


def test_many_hazy_images_of_one_clear_one(tmp_path: Path) -> None:
    lq = "datasets/universal/train/hazy/LQ"
    rows = [f"{lq}/0048_0.9_0.2.png\ta house: hazy", f"{lq}/0048_0.9_0.16.png\ta house: hazy"]
    path = table(tmp_path / "t.csv", *rows, f"{lq}/0049_1_0.2.png\ta tree: hazy")
    assert looked_up(path, SOURCE, "train/hazy/GT/0049.png") == ["a house", "a tree"]
    assert looked_up(path, "train/hazy/GT/0048_0.9_0.2.png") == ["a house"]
    exact = table(tmp_path / "t.csv", *rows, f"{lq}/0048.png\ta shed: hazy")
    assert looked_up(exact, SOURCE) == ["a shed"]


def test_several_files(tmp_path: Path) -> None:
    train = table(tmp_path / "daclip_train.csv", "train/hazy/LQ/1.png\ta house: hazy")
    val = table(tmp_path / "daclip_val.csv", "val/hazy/LQ/1.png\ta tree: hazy")
    node = load_config(["run_dir=x", "captioner=file", f"captions.captioner.path=[{train},{val}]"])[
        CaptionsConfig
    ].captioner
    captioner = build(node)
    assert captioner.files() == [train, val]
    assert captioner.by == "daclip_train.csv, daclip_val.csv"
    sources = ["val/hazy/GT/1.png", "train/hazy/GT/1.png"]
    captioner.check(sources)
    assert captioner.caption([], sources) == ["a tree", "a house"]


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "a.png\ta")
    with pytest.raises(
        ValueError, match=r"t\.csv has no caption for 7 images: 0, 1, 2, 3, 4 \.\.\.$"
    ):
        FileCaptioner(str(path)).check(["a", *map(str, range(7)), "0"])


def test_entry_for_two_images_is_refused(tmp_path: Path) -> None:
    captioner = FileCaptioner(str(json_lines(tmp_path / "t.jsonl", ("0048.png", "x"))))
    captioner.check([SOURCE, SOURCE])
    with pytest.raises(
        ValueError, match=r"t\.jsonl:1 \(0048\.png\) fits train/hazy.* and val/hazy"
    ):
        captioner.check([SOURCE, "val/hazy/GT/0048.png"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        FileCaptioner(str(tmp_path / "none.csv")).check(["a"])


def test_captions_of_another_run_go_by_content(pair_folder: Path, tmp_path: Path) -> None:
    write_shards(paired_folder(pair_folder).plan(), tmp_path / "s", form(), 0.0, num_workers=0)
    samples = ShardSet(tmp_path / "s", "train").all()
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
    write_captions(samples, tmp_path / "one", lambda _, names: [f"of {n}" for n in names], "me", 2)
    again = RunCaptions(str(tmp_path / "one" / CAPTIONS))
    assert write_captions(samples, tmp_path / "two", again.caption, again.by, 4) == (3, 0)
    one, two = (read_captions(tmp_path / run / CAPTIONS) for run in ("one", "two"))
    assert one == two
    assert len(set(one.values())) == 3
    assert again.caption([photograph(9, 9)], ["another"]) == [""]
