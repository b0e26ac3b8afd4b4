"""`python -m pipeline.app`: the page, on this machine alone."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from pipeline.frozen_imports import frozen_imports

# Nothing heavy is imported above, so that --help and wrong arguments are answered at once.

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
EXAMPLES = ("chelsea", "coffee", "astronaut", "china", "flower")
"""Photographs inside packages, each of which gets several degradations."""
EXAMPLE_SIDE = 256
"""Side of an example, in pixels."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio requests its own page
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its folder is deleted
    with tempfile.TemporaryDirectory(prefix="restore-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")  # no other user reads it
        try:
            return _serve(chosen, Path(folder))
        except KeyboardInterrupt:
            return 0


def _serve(chosen: argparse.Namespace, folder: Path) -> int:
    logger.info("loading ...")
    with frozen_imports():
        from modules.inference.device import is_out_of_memory
        from pipeline.app.page import CSS, build, theme
        from pipeline.app.service import Limits, Service
        from pipeline.errors import NO_ROOM
        from pipeline.restore.api import Restorer

    limits = Limits(chosen.megabytes, chosen.megapixels, chosen.minutes, chosen.waiting)
    try:
        restorer = Restorer.from_pretrained(chosen.model, device=chosen.device)
        service = Service(restorer, folder / "results", limits)
        page = build(service, make_examples(folder / "examples"))
        try:
            page.launch(
                server_name=chosen.host,
                server_port=chosen.port,
                max_file_size=f"{limits.megabytes}mb",
                share=False,
                quiet=True,
                theme=theme(),
                css=CSS,
                footer_links=[],
                ssr_mode=False,
                prevent_thread_lock=True,
            )
            logger.info("the page is at http://%s:%d; Ctrl-C ends it", chosen.host, chosen.port)
            while page.is_running:
                service.delete_old()
                time.sleep(1)
        finally:
            service.cancel()
            page.close(verbose=False)  # block_thread would wait 5 s for open pages
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"error: {NO_ROOM}\n")
        return 1
    return 0


def make_examples(folder: Path) -> list[Path]:
    """Write one degraded photograph for each of the ten words, named by it."""
    import cv2
    import numpy as np

    from datamodules.degradations import WORDS, degrade
    from datamodules.files import atomic_write
    from datamodules.images import encode_png, read_image
    from datamodules.sources.synthetic import EmbeddedPhotos

    photos = [read_image(photo.path) for photo in EmbeddedPhotos(EXAMPLES, ()).photos()]
    paths = []
    for seed, word in enumerate(WORDS):
        photo = photos[seed % len(photos)]
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        middle = np.ascontiguousarray(photo[top : top + side, left : left + side])
        clean = cv2.resize(middle, (EXAMPLE_SIDE,) * 2, interpolation=cv2.INTER_AREA).astype(
            np.uint8
        )
        paths.append(folder / f"{word}.png")
        with atomic_write(paths[-1]) as file:
            file.write(encode_png(degrade(word, clean, seed)))
    return paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.app", description=__doc__)
    add = parser.add_argument
    add("--model", help="name or folder of a model; default: the one that comes with the project")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--host", default=LOCAL, help=f"address to listen on; default: {LOCAL}, this machine alone")
    add("--port", type=int, default=7860)
    add("--megabytes", type=int, default=40, help="largest file")
    add("--megapixels", type=int, default=50, help="largest photograph, in millions of pixels")
    add("--minutes", type=float, default=10, help="longest work on one photograph")
    add("--waiting", type=int, default=8, help="most photographs that wait for their turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
