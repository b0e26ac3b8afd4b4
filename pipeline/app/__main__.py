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

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; the exit status."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own page
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
        from modules.inference.device import NO_ROOM, is_out_of_memory
        from pipeline.app.examples import make_examples
        from pipeline.app.page import CSS, build, theme
        from pipeline.app.service import Limits, Service
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
                service.sweep()
                time.sleep(1)
        finally:
            service.cancel_all()
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.app", description=__doc__)
    add = parser.add_argument
    add("--model", help="name or folder of a model; left out: the one that comes with this")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--host", default=LOCAL, help=f"{LOCAL}, this machine alone, if nothing is said")
    add("--port", type=int, default=7860)
    add("--megabytes", type=int, default=40, help="largest file")
    add("--megapixels", type=int, default=50, help="largest photograph, in millions of pixels")
    add("--minutes", type=float, default=10, help="longest work on one photograph")
    add("--waiting", type=int, default=8, help="most photographs that wait for their turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
