"""`python -m pipeline.models.publish`: model folders to pass on; released weights fetched ahead.

fetch                        all released weights, into the cache
export MODEL FOLDER          a model folder of a run, or of any model
push FOLDER OWNER/NAME       a model folder to the Hugging Face Hub
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from datamodules.files import atomic_write, file_hash, read_json, write_json
from pipeline.errors import BadModel
from pipeline.models.hub import ABOUT, CONTROLLER, RELEASED, RESTORER, ModelFiles, find_model
from pipeline.models.store import load_pair, save_copies
from pipeline.stage import read_record

logger = logging.getLogger(__name__)

CARD = "README.md"
EVALUATION, FIGURES = "evaluation", "metrics.json"
"""Of a run: what its evaluation found."""


def export(model: str | Path, folder: Path, half: bool = False) -> None:
    """Write a model folder, with a card.

    Args:
        model: as `find_model` takes it.
        folder: to write; it must not have a model yet.
        half: weights in half precision.

    Raises:
        BadModel: the model cannot be used, or there is one in the folder.
    """
    found = find_model(model)
    if (folder / RESTORER).exists():
        raise BadModel(f"there is a model in {folder} already; choose another folder")
    figures = _figures(Path(model) / EVALUATION, found)
    save_copies(found[:2], (folder / CONTROLLER, folder / RESTORER), half)
    write_json(folder / ABOUT, {"name": folder.resolve().name, "sampler": found.sampler})
    with atomic_write(folder / CARD) as file:
        file.write(card(folder, figures).encode())


def card(folder: Path, figures: Mapping[str, Any] | None) -> str:
    """The model card of a model folder, in Markdown.

    Args:
        folder: with its weights and how to sample.
        figures: what `make evaluate` wrote of it, None where it was not evaluated.
    """
    found = find_model(folder)
    controller, denoiser = load_pair(found.controller, found.restorer)
    environment = Environment(
        loader=PackageLoader("pipeline.models", "."), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("card.md.j2").render(
        name=read_json(folder / ABOUT)["name"],
        words=controller.words,
        sampler=found.sampler,
        T=denoiser.schedule.T,
        parameters={
            "controller": sum(p.numel() for p in controller.daclip.parameters()),
            "restorer": sum(p.numel() for p in denoiser.network.parameters()),
        },
        megabytes=_bytes(found) / 1e6,
        figures=figures,
    )


def push(folder: Path, repository: str) -> str:
    """Publish a model folder on the Hugging Face Hub; its address there.

    Raises:
        BadModel: it is no model folder or has no whole model, or the Hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # of the client library that this one uses
        LocalTokenNotFoundError,
    )

    if not (folder / RESTORER).is_file():
        raise BadModel(f"{folder} is no model folder; make one with `make export` first")
    found = find_model(folder)
    load_pair(found.controller, found.restorer)
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[CONTROLLER, RESTORER, ABOUT, CARD],
        )
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError, RuntimeError) as error:
        raise BadModel(
            f"{repository} was not published: {str(error).strip().partition(chr(10))[0]}. It "
            "takes a network and a token that may write there: `hf auth login`, or HF_TOKEN"
        ) from error
    return str(commit.commit_url)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models.publish", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("fetch")
    exporting, pushing = actions.add_parser("export"), actions.add_parser("push")
    exporting.add_argument("model", help="a run's folder, or any model by name")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("--half", action="store_true", help="weights in half precision")
    pushing.add_argument("folder", type=Path)
    pushing.add_argument("repository", help="OWNER/NAME on the Hugging Face Hub")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if chosen.action == "export":
            export(chosen.model, chosen.folder, chosen.half)
            logger.info("wrote %s, %.1f MB", chosen.folder, _bytes(find_model(chosen.folder)) / 1e6)
        elif chosen.action == "push":
            logger.info("published: %s", push(chosen.folder, chosen.repository))
        else:
            return _fetch_all()
    except (ValueError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    return 0


def _figures(folder: Path, found: ModelFiles) -> dict[str, Any] | None:
    """What an evaluation found of this very model beside clean images; None where none did."""
    if not (folder / FIGURES).is_file():
        return None
    evaluated = read_record(folder).get("inputs", {}).values()
    if not {file_hash(found.controller), file_hash(found.restorer)} <= set(evaluated):
        logger.warning("%s is not of this model; the card has no figures", folder / FIGURES)
        return None
    figures: dict[str, Any] = read_json(folder / FIGURES)
    sides = [task[side] for task in figures["tasks"] for side in ("degraded", "restored")]
    return figures if all({"psnr", "ssim"} <= side.keys() for side in sides) else None


def _fetch_all() -> int:
    """Each released model; one that fails does not keep the others from coming."""
    failed = 0
    for name in RELEASED:
        try:
            logger.info("%s: %s", name, find_model(name).restorer.parent)
        except (BadModel, OSError) as error:
            logger.error("%s: error: %s", name, error)
            failed = 1
    return failed


def _bytes(found: ModelFiles) -> int:
    return found.controller.stat().st_size + found.restorer.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
