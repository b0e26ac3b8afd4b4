"""Files of the reference, and ours, are told apart and loaded; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.degradations import WORDS
from modules.clip.daclip import build_daclip
from modules.clip.preprocess import clip_preprocess
from modules.reference.released import (
    REFERENCE_WORDS,
    WILD_EMBED_DIM,
    WILD_WORDS,
    controller_as_ours,
)
from modules.reference.unet import convert_unet
from pipeline.config import Config
from pipeline.models.store import BadModel, load_controller, load_models, load_restorer
from tests.evaluating import ARCHITECTURE, save_models, tiny_daclip
from tests.golden_vectors import GOLDEN
from tests.released_files import (
    reference_names,
    save_released_controller,
    save_released_restorer,
)
from tests.restoring import SAMPLER

MakeConfig = Callable[..., Config]

CPU = torch.device("cpu")


@pytest.fixture
def controller(tmp_path: Path) -> Path:
    return save_released_controller(tmp_path / "daclip.pt")


@pytest.fixture
def restorer(tmp_path: Path) -> Path:
    return save_released_restorer(tmp_path / "universal-ir.pth")


def test_released_controller_sees_what_the_network_saw(controller: Path) -> None:
    found, daclip = load_controller(controller), tiny_daclip().eval().requires_grad_(False)
    assert found.words == WORDS
    images = torch.rand((2, 3, 40, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = daclip(clip_preprocess(images, daclip.image_size))
    for one, other in zip(found.embed(images), expected, strict=True):
        assert torch.equal(one, other)


def test_released_restorer_predicts_noise_on_the_cosine_schedule(
    restorer: Path, controller: Path
) -> None:
    denoiser = load_restorer(restorer, controller)
    thetas = load_file(GOLDEN / "irsde" / "cosine.safetensors")["thetas"]
    assert torch.allclose(denoiser.schedule.theta, thetas)
    assert denoiser.schedule.T == 100
    weights = convert_unet(load_file(GOLDEN / "unet_daclip_sde" / "state_dict.safetensors"))
    state = denoiser.network.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(state[name], weights[name]) for name in state)


def test_safetensors_of_the_reference_are_taken(restorer: Path, controller: Path) -> None:
    other = restorer.with_suffix(".safetensors")
    save_file(torch.load(restorer, weights_only=True), other)
    one, two = (load_restorer(path, controller).network.state_dict() for path in (restorer, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_both_work_together(tiny_config: MakeConfig, controller: Path, restorer: Path) -> None:
    models = load_models(controller, restorer, SAMPLER, CPU)
    images = torch.rand((1, 3, 40, 48), generator=torch.Generator().manual_seed(0))
    e = models.encoder.embed(images)
    found = models.denoiser.network(images, images, 50, e.degradation, e.content)
    assert torch.equal(models.denoiser(images, images, 50, e).epsilon, found)


def test_words_are_those_that_a_controller_was_trained_on() -> None:
    wild = build_daclip(ARCHITECTURE | {"embed_dim": WILD_EMBED_DIM})
    about, _ = controller_as_ours(reference_names(wild.state_dict()))
    assert about["words"] == WILD_WORDS
    about, _ = controller_as_ours(reference_names(tiny_daclip().state_dict()))
    assert about["words"] == REFERENCE_WORDS


def test_kinds_are_not_mixed_up(controller: Path, restorer: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"universal-ir\.pth is neither a controller .*restorer"):
        load_controller(restorer)
    with pytest.raises(BadModel, match=r"daclip\.pt is neither a restorer .*controller"):
        load_restorer(controller, controller)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadModel, match=r"other\.pth is neither a restorer .*unknown format"):
        load_restorer(tmp_path / "other.pth", controller)


def test_damaged_and_incomplete_files_are_refused(controller: Path, restorer: Path) -> None:
    state = torch.load(restorer, weights_only=True)
    state.pop("init_conv.weight")
    state["visual_control.x"] = torch.zeros(1)
    torch.save(state, restorer)
    with pytest.raises(BadModel, match=r"universal-ir\.pth: not the state dict of a DA-CLIP"):
        load_controller(restorer)
    controller.write_bytes(controller.read_bytes()[:5000])
    with pytest.raises(BadModel, match=r"daclip\.pt cannot be opened: it is damaged"):
        load_controller(controller)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[], None], tuple[str]]:
            return Path.touch, (tmp_path / "trapped",)  # type: ignore[return-value]

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(BadModel, match="could run code"):
        load_controller(tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


def test_widths_that_do_not_fit_are_refused(
    tiny_config: MakeConfig, controller: Path, restorer: Path
) -> None:
    wide = build_daclip(ARCHITECTURE | {"embed_dim": 48})
    torch.save(reference_names(wide.state_dict()), controller)
    with pytest.raises(
        BadModel, match=r"takes embeddings of 32 numbers, and .*daclip\.pt gives 48"
    ):
        load_models(controller, restorer, SAMPLER, CPU)


def test_ours_goes_with_its_own_controller_only(
    tiny_config: MakeConfig, controller: Path, tmp_path: Path
) -> None:
    config = tiny_config()
    own, restorer = save_models(config, tmp_path)
    words = load_models(own, restorer, SAMPLER, CPU).encoder.words
    assert words == ("hazy", "noisy", "rainy")
    with pytest.raises(BadModel, match=r"was trained with a controller other than .*daclip\.pt"):
        load_models(controller, restorer, SAMPLER, CPU)


def test_more_calls_than_there_are_times_are_refused(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    files = save_models(tiny_config(), tmp_path)
    with pytest.raises(BadModel, match=r"can take 1 to 100 steps, but num_steps=101"):
        load_models(*files, SAMPLER | {"num_steps": 101}, CPU)
