"""Trained models on disk: ours, safetensors whose metadata say what to build, and the reference's.

Nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datamodules.files import atomic_write, file_hash
from modules import networks
from modules.clip.daclip import DaClip, build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.schedule import make_noise_schedule
from modules.inference.device import is_out_of_memory
from modules.inference.restore import Denoiser, RestorationModel, make_sampling, place_model
from modules.reference.daclip import load_reference_checkpoint
from modules.reference.released import controller_as_ours, kind_of, restorer_as_ours
from pipeline.errors import BadModel
from pipeline.legacy import current_model

FORMAT = "daclip-lightning/1"
ALLOWED = "DACLIP_ALLOWED_PACKAGES"
CONTROLLER, RESTORER = "controller", "restorer"
"""The kinds of files."""


def load_models(
    controller: Path,
    restorer: Path,
    sampler: Mapping[str, Any],
    device: torch.device,
    allow: Sequence[str] = (),
) -> RestorationModel:
    """The models that restore, on a device.

    Args:
        controller: the controller's file.
        restorer: the restorer's.
        sampler: as `make_sampling` takes it.
        device: to use.
        allow: packages of networks, as for `load_restorer`.

    Raises:
        BadModel: a file cannot be used, the two do not fit each other, or the restorer has fewer
            timesteps than the sampler takes steps.
        ValueError: the sampler's settings are wrong.
    """
    sampling = make_sampling(**sampler)
    encoder, denoiser = load_pair(controller, restorer, allow)
    if not 1 <= sampling.num_steps <= denoiser.schedule.T:
        raise BadModel(
            f"{restorer} can take 1 to {denoiser.schedule.T} steps, but num_steps="
            f"{sampling.num_steps}"
        )
    return place_model(encoder, denoiser, sampling, device)


def load_pair(
    controller_path: Path, restorer_path: Path, allow: Sequence[str] = ()
) -> tuple[DaClipEncoder, Denoiser]:
    """Load a controller and the restorer that goes with it, on the CPU.

    Raises:
        BadModel: a file cannot be used, or the two do not fit each other.
    """
    denoiser = load_restorer(restorer_path, controller_path, allow)
    controller = load_controller(controller_path)
    taken, given = networks.describe(denoiser.network).context_dim, controller.daclip.embed_dim
    if taken not in (None, given):
        raise BadModel(
            f"{restorer_path} takes embeddings of {taken} numbers, and {controller_path} gives "
            f"{given}; choose two that were trained together"
        )
    return controller, denoiser


def save_controller(path: Path, controller: DaClipEncoder, architecture: Any) -> None:
    """Save a trained DA-CLIP, whole."""
    about = {
        "architecture": architecture,
        "words": controller.words,
        "crops_per_side": controller.crops_per_side,
    }
    _save(path, controller.daclip.state_dict(), CONTROLLER, about)


def load_controller(path: Path) -> DaClipEncoder:
    """Load a trained DA-CLIP, ours or one in the reference's layout.

    Raises:
        BadModel: the file is missing, damaged, or of another kind or architecture.
    """
    about, tensors = _load(path, CONTROLLER)
    with _named(path):
        daclip = build_daclip(about["architecture"])
        _fill(daclip, tensors, path)
        return DaClipEncoder(daclip, about["words"], about.get("crops_per_side", 1))


def save_restorer(
    path: Path,
    network: nn.Module,
    about: Mapping[str, Any],
    controller: Path,
) -> None:
    """Save a trained network with what to build and the controller it was trained with.

    Args:
        path: of the file.
        network: trained.
        about: its `network`, `prediction_type` and `process`.
        controller: the file of the controller.
    """
    about = {**about, "controller_sha256": file_hash(controller)}
    _save(path, network.state_dict(), RESTORER, about)


def load_restorer(path: Path, controller: Path, allow: Sequence[str] = ()) -> Denoiser:
    """Load a trained restorer network, ours or one in the reference's layout.

    Args:
        path: of the file.
        controller: the file of the controller it was trained with.
        allow: packages whose network classes the file may name, besides those that the environment
            variable DACLIP_ALLOWED_PACKAGES lists with commas.

    Raises:
        BadModel: the file is missing, damaged, of another kind or architecture, or was trained
            with another controller, as far as it says with which.
    """
    about, tensors = _load(path, RESTORER)
    if about.get("controller_sha256", file_hash(controller)) != file_hash(controller):
        raise BadModel(
            f"{path} was trained with a controller other than {controller}; choose two that were "
            "trained together"
        )
    with _named(path):
        network = build_network(about["network"], allow)
        _fill(network, tensors, path)
        network.eval().requires_grad_(False)
        return Denoiser(
            network,
            make_noise_schedule(**about["process"]),
            PREDICTION_TYPES.find(about["prediction_type"]),
        )


def save_copies(pair: tuple[Path, Path], copies: tuple[Path, Path], half: bool = False) -> None:
    """Save a controller and its restorer again, in our format, whatever format they have.

    Args:
        pair: the controller's file and the restorer's.
        copies: likewise; written the controller first, and a restorer names its controller.
        half: weights in half precision, for files of half the size; loading gives float32.

    Raises:
        BadModel: a file cannot be used.
    """
    load_pair(*pair)  # so that what is saved is whole
    for kind, path, copy in zip((CONTROLLER, RESTORER), pair, copies, strict=True):
        about, tensors = _load(path, kind)
        if kind == RESTORER:
            about = {**about, "controller_sha256": file_hash(copies[0])}
        _save(copy, _halved(tensors) if half else tensors, kind, about)


def start_from(path: Path, network: nn.Module) -> None:
    """Give a network to train the weights of a trained one.

    A controller is a DaClip; any other network is a restorer, and takes the weights of one whatever
    controller it was trained with.

    Raises:
        BadModel: the file is missing, damaged, of another kind or architecture.
    """
    kind = CONTROLLER if isinstance(network, DaClip) else RESTORER
    _fill(network, _load(path, kind)[1], path)


def build_network(node: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Make a network that a file names, see `modules.networks.build_network`.

    Raises:
        BadModel: it is neither registered nor of an allowed package, or does not take these
            arguments.
    """
    try:
        listed = os.environ.get(ALLOWED, "").split(",")
        return networks.build_network(node, [*allow, *(name for name in listed if name)])
    except ValueError as error:
        raise BadModel(str(error)) from error


def _save(path: Path, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> None:
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "kind": kind, "about": json.dumps(about)}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(kept, metadata))


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: value.half() if value.is_floating_point() else value for n, value in tensors.items()}


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of itself, or what the reference's are known to be, and its tensors."""
    if not path.is_file():
        raise BadModel(f"no model {path}; train it first (`make train-{kind}`)")
    metadata = _metadata(path) if path.suffix == ".safetensors" else {}
    try:
        tensors = load_reference_checkpoint(path)
    except ValueError as error:
        raise BadModel(str(error)) from error
    except OSError as error:  # torch's, of some truncated archives
        raise BadModel(
            f"{path} cannot be opened: it is damaged ({error}); download or train it again"
        ) from error
    if metadata.get("format") == FORMAT and metadata.get("kind") == kind:
        with _named(path):
            return current_model(json.loads(metadata["about"])), tensors
    if "format" not in metadata and kind_of(tensors) == kind:
        return _as_ours(tensors, kind, path)
    foreign = f"the reference's {kind_of(tensors)}" if kind_of(tensors) else "unknown format"
    found = f"{metadata.get('format', foreign)} {metadata.get('kind', '')}".strip()
    raise BadModel(
        f"{path} is neither a {kind} of this project ({FORMAT}) nor of the reference; "
        f"found: {found}"
    )


def _as_ours(
    tensors: Mapping[str, Tensor], kind: str, path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    convert = controller_as_ours if kind == CONTROLLER else restorer_as_ours
    try:
        return convert(tensors)
    except (ValueError, RuntimeError) as error:  # torch's own, where shapes contradict each other
        raise BadModel(f"{path}: {error}") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name a file where what it says of itself is not what we write."""
    try:
        yield
    except Exception as error:  # torch and open_clip raise many kinds
        is_named = isinstance(error, BadModel) and str(path) in str(error)
        if is_named or is_out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise BadModel(
            f"no model can be built from {path} ({what}); download or train it again"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise BadModel(f"{path} is not a whole safetensors file ({error})") from error


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := [n for n in sorted(expected | found) if expected.get(n) != found.get(n)]:
        name = wrong[0]
        raise BadModel(
            f"{path} is of another architecture: {len(wrong)} tensors differ, the first is "
            f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    module.load_state_dict(tensors)
