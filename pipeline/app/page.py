"""The page: its layout, and what its controls do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from datamodules.images import SUFFIXES
from modules.inference.restore import Tile
from pipeline.app.service import KEPT, PREVIEW, Cancelled, Refused, Service
from pipeline.restore.api import Options
from pipeline.restore.prompt import AUTO
from pipeline.restore.visualize import thumbnail

TITLE = "Restore a photograph"
INTRODUCTION = (
    "The model recognises blur, haze, JPEG artefacts, low light, noise, raindrops, rain, shadows, "
    "snow and missing regions, and restores your photograph. It never leaves this machine."
)
TILES: dict[str, Tile] = {"auto": "auto", "256": 256, "512": 512, "1024": 1024}
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#examples, #examples .grid-wrap { height: auto !important; max-height: none; min-height: 0; }
#examples .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(180px, 45%), 1fr)) !important;
  grid-template-rows: none !important;
  height: auto !important;
}
footer { display: none !important; }
"""
CLEANED = 5 * 60
"""Seconds between the times when Gradio deletes uploads and results older than KEPT."""


def theme() -> gr.themes.Base:
    """A theme with the fonts of the user's system, so that none is downloaded."""
    return gr.themes.Soft(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )


def build(service: Service, examples: Sequence[Path]) -> gr.Blocks:
    """Make the page.

    Args:
        service: restores the photographs.
        examples: photographs to try, named by their degradations.
    """
    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEANED, KEPT))
    with page:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.File(
                    label="Photograph", file_types=sorted(SUFFIXES), height=140, elem_id="photo"
                )
                options = _options(service)
                with gr.Row():
                    start = gr.Button("Restore", variant="primary", elem_id="restore")
                    stop = gr.Button("Cancel", elem_id="cancel")
            with gr.Column(scale=3, min_width=300):
                slider = gr.ImageSlider(
                    label="Before and after", format="jpeg", interactive=False, elem_id="slider"
                )
                summary = gr.Markdown(elem_id="summary")
                found = gr.Label(
                    label="Degradations found",
                    num_top_classes=4,
                    show_heading=False,
                    elem_id="found",
                )
                file = gr.DownloadButton(
                    "Download in full size", interactive=False, elem_id="download"
                )
        gr.Markdown("Or try one of these:")
        gallery = gr.Gallery(
            [(str(path), path.stem) for path in examples],
            show_label=False,
            columns=5,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        handlers = Handlers(service, examples)
        outputs = [slider, summary, found, file]
        photo.change(handlers.look, photo, outputs, show_progress="hidden")
        gallery.select(handlers.choose, None, photo, queue=False)
        working = start.click(
            handlers.restore,
            [photo, *options],
            outputs,
            show_progress_on=[slider],
            concurrency_limit=1,
        )
        stop.click(handlers.cancel, None, summary, queue=False, cancels=[working])
        page.unload(handlers.leave)
    page.queue(max_size=service.limits.waiting, api_open=False)  # no way past the queue
    return page


class Handlers:
    """What the page's controls do."""

    def __init__(self, service: Service, examples: Sequence[Path]) -> None:
        self._service, self._examples = service, examples

    def look(self, path: str | None) -> tuple[Any, ...]:
        """Show the photograph that was chosen, and clear the previous result."""
        nothing = gr.DownloadButton(value=None, interactive=False)
        if path is None:
            return None, "", None, nothing
        with _errors_shown():
            before = thumbnail(self._service.open(Path(path)).pixels, PREVIEW)
        return (before, before), "", None, nothing

    def choose(self, event: gr.SelectData) -> str:
        """Choose an example."""
        return str(self._examples[event.index])

    def restore(
        self,
        path: str | None,
        degradation: str,
        steps: int,
        seed: int,
        tile: str,
        strength: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio asks for one)
    ) -> tuple[Any, ...]:
        """Restore the photograph that was chosen."""
        if path is None:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        options = Options(
            degradation=degradation or AUTO,
            steps=int(steps),
            seed=int(seed or 0),
            tile=TILES[tile],
            strength=strength,
        )

        def show(done: int, total: int) -> None:
            progress((done, total), desc="Restoring", unit="calls")

        progress(0, desc="Reading the photograph")
        with _errors_shown():
            made = self._service.restore(Path(path), _session(request), options, show)
        file = gr.DownloadButton(value=str(made.file), interactive=True)
        return (made.before, made.after), made.summary, made.degradation, file

    def cancel(self, request: gr.Request) -> str:
        """Cancel the restorations of this visitor."""
        self._service.cancel(_session(request))
        return "Cancelled."

    def leave(self, request: gr.Request) -> None:
        """Delete what was made for a visitor who leaves."""
        self._service.forget(_session(request))


def _options(service: Service) -> list[Any]:
    """The controls of the options, in the order of the parameters of `Handlers.restore`."""
    restorer = service.restorer
    degradation = gr.Dropdown(
        [AUTO, *restorer.words],
        value=AUTO,
        allow_custom_value=True,
        label="Degradation",
        info="auto: as recognised; or choose, or type your own, such as noisy:0.5, low-light",
        elem_id="degradation",
    )
    with gr.Accordion("More", open=False):
        steps = gr.Slider(
            1, restorer.T, restorer.steps, step=1, label="Steps", info="more steps take longer"
        )
        strength = gr.Slider(
            0, 1, 1, step=0.05, label="Strength", info="0 leaves the photograph as it is"
        )
        seed = gr.Number(
            0, precision=0, minimum=0, label="Seed", info="another seed gives another result"
        )
        tile = gr.Dropdown(
            list(TILES),
            value="auto",
            label="Tiles",
            info="side in pixels; smaller tiles need less memory",
        )
    return [degradation, steps, seed, tile, strength]


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Show expected errors as messages on the page."""
    try:
        yield
    except Refused as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Cancelled as error:
        raise gr.Error("Cancelled.", print_exception=False, visible=False) from error
    except MemoryError as error:
        raise gr.Error("Out of memory.", print_exception=False) from error
