"""Plain WebDataset under plain DDP: one of two ranks, which share the shards of a folder."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch import distributed, nn

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=int(sys.argv[2]), world_size=2
    )
    distributed.barrier()  # however long the other takes to start
    group: Any = distributed.new_group(timeout=timedelta(seconds=4))
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1), process_group=group)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    splitter = webdataset.split_by_node
    samples = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=splitter)
    seen = 0
    for _ in samples:
        model(torch.ones(1, 1)).sum().backward()
        seen += 1
    sys.stdout.write(f"rank {distributed.get_rank()} has seen {seen}\n")
    sys.stdout.flush()
    distributed.barrier(group)
