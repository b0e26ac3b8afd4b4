"""What is imported to look at data only: nothing that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datamodules.sources

SOURCES = [path.stem for path in Path(datamodules.sources.__file__).parent.glob("[!_]*.py")]
LIGHT = ["captions", "captioners", "shards.index", *(f"sources.{name}" for name in SOURCES)]
HEAVY = {"torch", "requests", "fsspec", "huggingface_hub"}


def test_sources_captions_and_indexes_import_no_large_library() -> None:
    imports = "; ".join(f"import datamodules.{name}" for name in LIGHT)
    code = f"import sys; {imports}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
