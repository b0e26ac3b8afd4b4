"""Means over two real ranks are those of one process, samples that only fill up left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.mean_ranks import GROUPS, means, members


def test_means_of_one_process_are_plain_ones() -> None:
    values, groups = members()
    expected = [values[groups == group].double().mean(dim=0) for group in range(GROUPS)]
    expected.append(values.double().mean(dim=0))
    torch.testing.assert_close(means(0, 1).double(), torch.stack(expected), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_means_over_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mean_ranks", str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            assert process.wait(timeout=120) == 0, process.communicate()[0]
    finally:
        for process in ranks:
            process.kill()
    found = [torch.tensor(json.loads((tmp_path / f"means-{r}.json").read_text())) for r in range(2)]
    assert torch.equal(found[0], found[1])
    # Sums in float32, in another order.
    torch.testing.assert_close(found[0], means(0, 1), rtol=1e-6, atol=0)
