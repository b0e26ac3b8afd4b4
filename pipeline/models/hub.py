"""Trained models by name: the one that comes with the project, released ones, folders, the Hub's.

A model folder has `controller.safetensors`, `restorer.safetensors`, `model.json`, which says how
to sample, and a `README.md`. Files of the reference are converted once, to such a folder in
`NAME/converted` below the cache, `$DACLIP_CACHE` or `~/.cache/daclip`.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.files import file_hash, write_json
from pipeline.errors import BadModel, NotFetched
from pipeline.legacy import renamed

SHIPPED = Path(str(files("pipeline"))) / "shipped"
"""The model that comes with the project."""
CONTROLLER, RESTORER, ABOUT = "controller.safetensors", "restorer.safetensors", "model.json"
REPOSITORY = "weblzw/daclip-uir-ViT-B-32-irsde"
"""Where the reference's weights are released, on the Hugging Face Hub."""
SAMPLER = {"name": "dpmpp_2m", "eta": 0.0, "num_steps": 10, "timestep_spacing": "uniform"}
"""For released weights, which predict noise; see docs/sampling.md."""
KINDS = {"name": (str,), "eta": (int, float), "num_steps": (int,), "timestep_spacing": (str,)}
"""Types of the sampler's settings."""
CONVERTED = "converted"
AGAIN = "export or download the model again"
HUB_NAME = r"\w[\w.-]*/[\w.-]+"


class ModelFiles(NamedTuple):
    """What a model consists of."""

    controller: Path
    restorer: Path
    sampler: dict[str, Any]
    """`name`, `eta`, `num_steps` and `timestep_spacing`, as `make_sampling` takes them."""
    about: Path | None = None
    """The file that says how to sample."""


RELEASED = {
    "universal-ir": ("daclip_ViT-B-32.pt", "universal-ir.pth"),
    "universal-ir-mix": ("daclip_ViT-B-32_mix.pt", "universal-ir-mix.pth"),
    "wild-ir": ("wild-daclip_ViT-L-14.pt", "wild-ir.pth"),
}
"""The names of the released pairs, and their files: the controller's and the restorer's."""


def find_model(name: str | Path | None = None) -> ModelFiles:
    """The files of a model, fetched and converted where they are not here yet.

    Args:
        name: None or `shipped` for the model that comes with the project; a name in RELEASED; a
            model folder, the folder of a run, or one with a released pair; `owner/name` on the
            Hugging Face Hub.

    Raises:
        BadModel: there is no such model; the message says what to fetch and where to put it.
    """
    try:
        found = locate_model(name)
    except NotFetched:
        found = _fetch(str(name))
    from modules.inference.restore import make_sampling

    try:
        make_sampling(**found.sampler)
    except ValueError as error:
        raise BadModel(f"{found.about}: {error}; {AGAIN}") from error
    return found


def locate_model(name: str | Path | None = None) -> ModelFiles:
    """The files of a model that is on this machine; `name` as for `find_model`.

    Raises:
        BadModel: there is no such model, or its settings are damaged.
        NotFetched: it is not here yet.
    """
    if name is None or name == "shipped":
        if SHIPPED.is_dir():
            return _in_folder(SHIPPED)
        raise BadModel(f"no model comes with this copy of the project; name one: {_choices()}")
    if str(name) in RELEASED:
        converted = cache() / str(name) / CONVERTED
        if converted.is_dir():
            return _in_folder(converted)
        raise NotFetched(f"the model {name} is fetched when it is needed")
    if Path(name).is_dir():
        return _in_folder(Path(name))
    if not Path(name).exists() and re.fullmatch(HUB_NAME, str(name)):
        return _in_folder(_snapshot(str(name), fetch=False))
    if Path(name).is_file():
        raise BadModel(f"{name} is a file, and a model is two; give the folder they lie in")
    raise BadModel(f"there is no model {str(name)!r}; name one: {_choices()}")


def cache() -> Path:
    """The folder of converted models; `$DACLIP_CACHE`, where that is set."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DACLIP_CACHE") or base / "daclip")


def _choices() -> str:
    return (
        f"{', '.join(RELEASED)}, a model folder, the folder of a run, or owner/name on the "
        "Hugging Face Hub"
    )


def _in_folder(folder: Path) -> ModelFiles:
    if (folder / RESTORER).is_file():
        return _model(folder / CONTROLLER, folder / RESTORER, folder / ABOUT)
    stages = folder / "controller", folder / "restorer"
    if all((stage / "model.safetensors").is_file() for stage in stages):
        controller, restorer = (stage / "model.safetensors" for stage in stages)
        return _model(controller, restorer, stages[1] / "config.yaml")
    for pair in RELEASED.values():
        if all((folder / file).is_file() for file in pair):
            return ModelFiles(folder / pair[0], folder / pair[1], SAMPLER)
    raise BadModel(
        f"{folder} holds no model: there is neither {RESTORER} nor a trained run "
        "(restorer/model.safetensors) nor a released pair (such as "
        f"{' and '.join(RELEASED['universal-ir'])})"
    )


def _model(controller: Path, restorer: Path, about: Path) -> ModelFiles:
    return ModelFiles(controller, restorer, _sampler_in(about), about)


def _sampler_in(path: Path) -> dict[str, Any]:
    """How to sample, as a model's or a run's settings say."""
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except FileNotFoundError as error:
        raise BadModel(f"{path} is missing, which says how to sample; {AGAIN}") from error
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise BadModel(f"{path} is damaged ({_first_line(error)}); {AGAIN}") from error
    sampler = _current(about) if isinstance(about, dict) else None
    if not isinstance(sampler, dict) or sampler.keys() != SAMPLER.keys():
        raise BadModel(f"{path} does not say how to sample: {', '.join(SAMPLER)}; {AGAIN}")
    if wrong := [name for name, kinds in KINDS.items() if type(sampler[name]) not in kinds]:
        raise BadModel(f"{path} has {sampler[wrong[0]]!r} as sampler.{wrong[0]}; {AGAIN}")
    return {str(name): value for name, value in sampler.items()}


def _current(about: dict[Any, Any]) -> Any:
    """The sampler's settings, under today's names."""
    former = about.get("sampling")
    if "sampler" in about or not isinstance(former, dict):
        return about.get("sampler")
    return renamed("sampling", former)


def _fetch(name: str) -> ModelFiles:
    """A model that is not here: of a released pair, put there by hand or fetched, and converted."""
    if name not in RELEASED:
        return _in_folder(_snapshot(name, fetch=True))
    by_hand = cache() / name
    controller, restorer = (
        by_hand / file if (by_hand / file).is_file() else _fetch_file(file, by_hand)
        for file in RELEASED[name]
    )
    _convert(name, (controller, restorer), by_hand / CONVERTED)
    return _in_folder(by_hand / CONVERTED)


def _convert(name: str, pair: tuple[Path, Path], folder: Path) -> None:
    """Write a model folder that appears whole, whoever else is writing it."""
    from pipeline.models.store import save_copies

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / CONVERTED
        save_copies(pair, (made / CONTROLLER, made / RESTORER))
        hashes = {file.name: file_hash(file) for file in pair}
        about = {"name": name, "sampler": SAMPLER, "source": REPOSITORY, "sha256": hashes}
        write_json(made / ABOUT, about)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


def _fetch_file(file: str, by_hand: Path) -> Path:
    """A file of the released weights, whole as the Hub's hash says."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        path = Path(hf_hub_download(REPOSITORY, file))
    except (HTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        raise BadModel(
            f"{file} cannot be fetched from {REPOSITORY} on the Hugging Face Hub "
            f"({_first_line(error)}). Fetch it where there is a network and put it into {by_hand}"
        ) from error
    expected = path.resolve().name  # the cache names large files by their SHA-256
    if re.fullmatch("[0-9a-f]{64}", expected) and file_hash(path) != expected:
        path.resolve().unlink()
        raise BadModel(
            f"what was fetched as {file} is damaged: its SHA-256 is not {expected}. It was "
            "deleted; run the same command again"
        )
    return path


def _snapshot(repository: str, fetch: bool) -> Path:
    """A model folder of the Hub, as it was fetched before, or fetched now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    wanted = [CONTROLLER, RESTORER, ABOUT]
    try:
        found = snapshot_download(repository, allow_patterns=wanted, local_files_only=not fetch)
    except (HTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        if not fetch:
            raise NotFetched(f"the model {repository} is fetched when it is needed") from error
        raise BadModel(
            f"there is no folder {repository}, and no such model can be fetched from the Hugging "
            f"Face Hub ({_first_line(error)}). Fetch {', '.join(wanted)} of it where there is a "
            "network, and give the folder you put them into"
        ) from error
    return Path(found)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
