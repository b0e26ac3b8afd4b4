"""A stage is skipped when fresh, rerun when changed, resumed when cut off; nothing is lost."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.stage import RECORD, Stage, run_stage

MakeConfig = Callable[..., Config]


@dataclass
class Work:
    """A stage's work that counts its runs and may be cut off."""

    fails: bool = False
    found: list[list[str]] = field(default_factory=list)

    def __call__(self, config: Config, folder: Path) -> None:
        self.found.append(sorted(p.name for p in folder.iterdir() if p.suffix == ".txt"))
        (folder / "half.txt").write_text("half")
        if self.fails:
            raise KeyboardInterrupt
        (folder / "whole.txt").write_text(str(config.seed))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("one")
    return path


def _stage(work: Work, source: Path) -> Stage:
    return Stage(
        name="made",
        command="make-it",
        sections=["captions"],
        outputs=["whole.txt"],
        inputs=lambda config: [source],
        check=lambda config: None,
        run=work,
    )


def test_fresh_stage_is_skipped(tiny_config: MakeConfig, source: Path) -> None:
    work = Work()
    run_stage(_stage(work, source), tiny_config())
    run_stage(_stage(work, source), tiny_config("restorer.max_steps=9"))  # not a section of it
    assert len(work.found) == 1


@pytest.mark.parametrize("override", ["captions.batch_size=3", "seed=5"])
def test_changed_setting_reruns_and_keeps_the_former_result(
    tiny_config: MakeConfig, source: Path, override: str
) -> None:
    work = Work()
    run_stage(_stage(work, source), tiny_config())
    run_stage(_stage(work, source), tiny_config(override))
    assert work.found == [[], []]
    kept = [p for p in tiny_config().run_dir.iterdir() if p.name.startswith("made.before-")]
    assert (kept[0] / "whole.txt").read_text() == "0"


def test_former_result_is_taken_back_when_its_settings_return(
    tiny_config: MakeConfig, source: Path
) -> None:
    work, failing = Work(), Work(fails=True)
    run_stage(_stage(work, source), tiny_config())
    with pytest.raises(KeyboardInterrupt):
        run_stage(_stage(failing, source), tiny_config("captions.batch_size=3"))
    run_stage(_stage(work, source), tiny_config())
    assert len(work.found) == 1
    failing.fails = False  # goes on with what it had left
    run_stage(_stage(failing, source), tiny_config("captions.batch_size=3"))
    assert failing.found == [[], ["half.txt"]]
    assert len(list(tiny_config().run_dir.glob("made.before-*"))) == 1


def test_further_process_does_nothing_where_the_first_took_the_result_back(
    tiny_config: MakeConfig, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, config = Work(), tiny_config()
    stage = replace(_stage(work, source), parallel=True)
    run_stage(stage, config)
    made = stage.folder(config)
    aside = made.rename(made.with_name("aside"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = threading.Timer(0.5, aside.rename, [made])
    first.start()
    run_stage(stage, config)
    first.join()
    assert len(work.found) == 1


def test_changed_input_reruns(tiny_config: MakeConfig, source: Path) -> None:
    work = Work()
    run_stage(_stage(work, source), tiny_config())
    source.write_text("two")
    run_stage(_stage(work, source), tiny_config())
    assert len(work.found) == 2


def test_interrupted_stage_goes_on_with_what_it_left(tiny_config: MakeConfig, source: Path) -> None:
    work = Work(fails=True)
    with pytest.raises(KeyboardInterrupt):
        run_stage(_stage(work, source), tiny_config())
    work.fails = False
    run_stage(_stage(work, source), tiny_config())
    assert work.found == [[], ["half.txt"]]


def test_deleted_output_is_made_again(tiny_config: MakeConfig, source: Path) -> None:
    work = Work()
    run_stage(_stage(work, source), tiny_config())
    (tiny_config().run_dir / "made" / "whole.txt").unlink()
    run_stage(_stage(work, source), tiny_config())
    assert len(work.found) == 2


def test_record_says_what_the_result_was_made_from(tiny_config: MakeConfig, source: Path) -> None:
    run_stage(_stage(Work(), source), tiny_config("seed=7"))
    folder = tiny_config().run_dir / "made"
    record = json.loads((folder / RECORD).read_text())
    assert record["seed"] == 7
    assert record["status"] == "finished"
    assert record["starts"] == 1
    assert record["config"]["captions"]["batch_size"] == 16
    assert list(record["inputs"]) == [str(source)]
    assert len(record["inputs"][str(source)]) == 64
    assert record["code"].startswith("0.1.0")
    assert "run_dir" in (folder / "config.yaml").read_text()


def test_missing_input_is_named(tiny_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        run_stage(_stage(Work(), tmp_path / "gone.txt"), tiny_config())


def test_damaged_record_is_named(tiny_config: MakeConfig, source: Path) -> None:
    run_stage(_stage(Work(), source), tiny_config())
    record = tiny_config().run_dir / "made" / RECORD
    record.write_text("{")
    with pytest.raises(ValueError, match=r"stage\.json is damaged"):
        run_stage(_stage(Work(), source), tiny_config())


def test_many_inputs_are_told_by_size_and_time(tiny_config: MakeConfig, source: Path) -> None:
    work = Work()
    stage = replace(_stage(work, source), many_inputs=lambda config: [source] * 3)
    run_stage(stage, tiny_config())
    record = json.loads((tiny_config().run_dir / "made" / RECORD).read_text())
    assert "3 source files" in record["inputs"]
    run_stage(stage, tiny_config())
    assert len(work.found) == 1
    os.utime(source, (1, 1))
    run_stage(stage, tiny_config())
    assert len(work.found) == 2


def test_run_can_be_moved(tiny_config: MakeConfig, tmp_path: Path) -> None:
    work = Work()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "input.txt").write_text("one")
    for run in (tmp_path / "here", tmp_path / "there"):
        if not run.exists():
            (tmp_path / "here").rename(run)
        run_stage(_stage(work, run / "input.txt"), tiny_config(f"run_dir={run}"))
    assert len(work.found) == 1
