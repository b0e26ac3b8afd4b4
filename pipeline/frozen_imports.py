"""Large libraries are imported without collecting garbage among what they make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_imports() -> Iterator[None]:
    """Within it nothing is collected, and what there is afterwards is left out of collections.

    Modules last as long as the process. Looking through their objects again and again took a fifth
    of the time to import torch and open_clip, and as long again when the process ended.
    """
    was_enabled = gc.isenabled()
    gc.collect()  # what is garbage by now would stay for ever
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
