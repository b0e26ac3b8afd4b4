"""Verifying shards: every fault is named, and a whole set has none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.files import file_hash, read_json, write_json
from datamodules.shards.index import INDEX
from datamodules.shards.store import LINK
from datamodules.shards.verify import verify_shards
from datamodules.sources.existing import ExistingShards
from tests.samples import many, write

FIRST = "rainy-train-000000.tar"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with shards: three for training, of two tasks, and one for validation."""
    samples = [*many("train", "rainy", 4), *many("train", "snowy", 2), *many("val", "rainy", 2)]
    write(tmp_path / "run" / "shards", samples, per_shard=2)
    return tmp_path / "run"


def faults(run: Path, num_workers: int = 2) -> list[str]:
    return list(verify_shards(run / "shards", num_workers))


def test_whole_shards_have_no_fault(run: Path) -> None:
    assert faults(run) == faults(run, num_workers=0) == []


def _missing(path: Path) -> str:
    path.unlink()
    return "missing, though the index lists it"


def _truncated(path: Path) -> str:
    os.truncate(path, path.stat().st_size - 1)
    return "bytes, the index says"


def _grown(path: Path) -> str:
    path.write_bytes(path.read_bytes() + b"\0")
    return "bytes, the index says"


def _empty(path: Path) -> str:
    path.write_bytes(b"")
    return ": 0 bytes, the index says"


def _flipped(at: float) -> Callable[[Path], str]:
    def flip(path: Path) -> str:
        data = bytearray(path.read_bytes())
        data[int(at * (len(data) - 1))] ^= 1
        path.write_bytes(data)
        return f"its SHA-256 is {file_hash(path)}, the index says"

    return flip


def _swapped(path: Path) -> str:
    other = path.with_name("snowy-train-000000.tar").read_bytes()
    assert len(other) == path.stat().st_size
    path.write_bytes(other)
    return "its SHA-256 is"


def _folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "bytes, the index says"


SPOILT = {
    "missing": _missing,
    "truncated": _truncated,
    "grown": _grown,
    "empty": _empty,
    "flipped in its first byte": _flipped(0),
    "flipped in the middle": _flipped(0.4),
    "flipped in its last byte": _flipped(1),
    "swapped": _swapped,
    "a folder": _folder,
}


@pytest.mark.parametrize("fault", SPOILT)
def test_each_fault_is_named(run: Path, fault: str) -> None:
    reason = SPOILT[fault](run / "shards" / FIRST)
    (found,) = faults(run)
    assert str(run / "shards" / FIRST) in found
    assert reason in found


def test_shard_that_agrees_but_is_badly_built_is_named(run: Path) -> None:
    """Made so, not damaged later: size and hash are as listed."""
    index = read_json(run / "shards" / INDEX)
    index["shards"][0]["count"] = 3
    write_json(run / "shards" / INDEX, index)
    (found,) = faults(run)
    assert f"{FIRST}: holds 2 samples, the index says 3" in found


def test_unlisted_shard_is_named(run: Path) -> None:
    stranger = run / "shards" / "hazy-train-000000.tar"
    stranger.write_bytes((run / "shards" / FIRST).read_bytes())
    assert faults(run) == [f"{stranger}: not in the index"]


def test_all_faults_are_named_at_once(run: Path) -> None:
    for name, spoil in (
        (FIRST, _flipped(0.3)),
        ("rainy-train-000001.tar", _missing),
        ("rainy-val-000000.tar", _truncated),
    ):
        spoil(run / "shards" / name)
    (run / "shards" / "other.tar").touch()
    found = faults(run)
    assert len(found) == 4
    for name in (FIRST, "rainy-train-000001.tar", "rainy-val-000000.tar", "other.tar"):
        assert sum(name in line for line in found) == 1


def test_linked_shards_are_verified_where_they_are(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked" / "shards"
    ExistingShards(str(run / "shards"), "", 1.0, 1).link(link)
    assert (link / LINK).is_file()
    assert faults(tmp_path / "linked") == []
    _flipped(0.5)(run / "shards" / FIRST)
    (found,) = faults(tmp_path / "linked")
    assert str(run / "shards" / FIRST) in found


@pytest.mark.parametrize("text", ["", "{", '{"shards": [{"name": "x"}]}'])
def test_damaged_index_is_named(run: Path, text: str) -> None:
    (run / "shards" / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"{INDEX} is (damaged|not a shard index)"):
        faults(run)


def verify(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "verify", f"run_dir={run}", "num_workers=2"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_command_says_whole_or_what_is_not(run: Path) -> None:
    result = verify(run)
    assert result.returncode == 0, result.stderr
    assert "4 shards, 8 samples" in result.stdout
    assert "whole" in result.stdout
    _flipped(0.3)(run / "shards" / FIRST)
    _missing(run / "shards" / "rainy-val-000000.tar")
    result = verify(run)
    assert result.returncode == 1
    for name in (FIRST, "rainy-val-000000.tar"):
        assert str(run / "shards" / name) in result.stdout
    assert "2 faults in the 4 shards" in result.stderr
    assert "delete the named files" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_without_or_with_a_damaged_index_says_so(run: Path) -> None:
    (run / "shards" / INDEX).write_text("{")
    damaged = verify(run)
    (run / "shards" / INDEX).unlink()
    missing = verify(run)
    assert (damaged.returncode, missing.returncode) == (1, 1)
    assert "index.json is damaged" in damaged.stderr
    assert "no shard index" in missing.stderr
    assert "make shards" in missing.stderr
    assert "Traceback" not in damaged.stderr + missing.stderr


def test_what_verify_tells_to_do_mends_the_shards(run: Path) -> None:
    """Delete the named files and the index, and make the shards again."""
    whole = {path.name: path.read_bytes() for path in (run / "shards").iterdir()}
    _flipped(0.3)(run / "shards" / FIRST)
    (found,) = faults(run)
    Path(found.partition(": ")[0]).unlink()
    (run / "shards" / INDEX).unlink()
    samples = [*many("train", "rainy", 4), *many("train", "snowy", 2), *many("val", "rainy", 2)]
    write(run / "shards", samples, per_shard=2)
    assert faults(run) == []
    assert {path.name: path.read_bytes() for path in (run / "shards").iterdir()} == whole
