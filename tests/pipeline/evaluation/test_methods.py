"""What the methods make of a sample: the model, its ablations, and others' outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from datamodules.images import read_image
from modules.clip.preprocess import clip_preprocess
from modules.inference.restore import RestorationModel as Models
from modules.networks.unet import ConditionalUNet
from pipeline.config import Config, ConfigError
from pipeline.evaluation.ablations import ABLATIONS, Given, check_ablations
from pipeline.evaluation.data import read_sets
from pipeline.evaluation.methods import Input, Loaded, Outputs, Restorations
from pipeline.models.store import load_models
from pipeline.sections import SamplerConfig
from tests.evaluating import UNET, WORDS, save_models, save_outputs, save_pairs

MakeConfig = Callable[..., Config]


@pytest.fixture
def models(tiny_config: MakeConfig, tmp_path: Path) -> Models:
    config = tiny_config()
    return load_models(
        *save_models(config, tmp_path),
        config[SamplerConfig].model_dump(),
        torch.device("cpu"),
    )


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    samples = read_sets({"": save_pairs(tmp_path / "mine", ["hazy/a", "rainy/b"])}, WORDS)
    images = [[torch.from_numpy(x).permute(2, 0, 1) for x in sample.load()] for sample in samples]  # type: ignore[arg-type]
    degraded, clean = (torch.stack(x) for x in zip(*images, strict=True))
    return Loaded(samples, degraded, clean)


def seen(models: Models, loaded: Loaded) -> Given:
    assert loaded.clean is not None
    embeddings = models.embed(loaded.degraded)
    return Given([s.task for s in loaded.samples], loaded.clean, embeddings)


def test_input_is_the_degraded_image(loaded: Loaded) -> None:
    outputs = Input()(loaded)
    assert all(torch.equal(o.image, x) for o, x in zip(outputs, loaded.degraded, strict=True))
    assert outputs[0].found is None and outputs[0].cost is None


def test_others_outputs_are_read_from_their_files(loaded: Loaded, tmp_path: Path) -> None:
    out = save_outputs(tmp_path / "out", ["a", "b"])
    method = Outputs({"mine/hazy/a": out / "a.png", "mine/rainy/b": out / "b.png"})
    for output, path in zip(method(loaded), ["a.png", "b.png"], strict=True):
        assert (output.image.permute(1, 2, 0).numpy() == read_image(out / path)).all()


def test_model_restores_and_keeps_what_it_says(
    models: Models, loaded: Loaded, tmp_path: Path
) -> None:
    method = Restorations("model", models, tmp_path, seed=3)
    outputs = method(loaded)
    for output, sample in zip(outputs, loaded.samples, strict=True):
        path = tmp_path / "restored" / "model" / "mine" / sample.task / f"{sample.name}.png"
        assert method.path(sample) == path
        assert (output.image.permute(1, 2, 0).numpy() == read_image(path)).all()
        assert output.found is not None and output.cost is not None
        assert output.found.word in WORDS and 1 / 3 <= output.found.probability <= 1
        assert output.cost.calls == models.sampling.num_steps and output.cost.seconds > 0


def test_noise_goes_by_the_image_and_not_by_its_batch_or_set(
    models: Models, loaded: Loaded, tmp_path: Path
) -> None:
    method = Restorations("model", models, tmp_path, seed=3)
    together = method(loaded)
    samples = read_sets({"other name": tmp_path / "mine"}, WORDS)
    alone = method(Loaded(samples[1:], loaded.degraded[1:], None))
    difference = together[1].image.int() - alone[0].image.int()
    assert difference.abs().max() <= 1  # convolutions round otherwise in another batch
    assert not torch.equal(
        Restorations("model", models, tmp_path, 4)(loaded)[1].image, alone[0].image
    )


@pytest.mark.parametrize("room", [1, 0])
def test_where_memory_runs_out_images_come_one_by_one_or_are_named(
    models: Models, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    method, restore = Restorations("model", models, tmp_path, seed=3), Restorations._restore

    def within(self: Restorations, batch: Loaded) -> Any:
        if len(batch.samples) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return restore(self, batch)

    monkeypatch.setattr(Restorations, "_restore", within)
    outputs = method(loaded)
    assert len(outputs) == 2
    if room:
        assert all(method.path(sample).is_file() for sample in loaded.samples)
        assert all(output.image is not None and not output.fault for output in outputs)
    else:
        named = ["mine/hazy/a", "mine/rainy/b"]
        assert [o.fault for o in outputs] == [
            f"{n}: takes more memory than there is" for n in named
        ]
    monkeypatch.setattr(Restorations, "_restore", lambda *_: fault_of_ours())
    with pytest.raises(RuntimeError, match="a fault of ours"):
        method(loaded)


def fault_of_ours() -> None:
    raise RuntimeError("a fault of ours")


def test_pixels_that_are_no_number_are_named(
    models: Models, loaded: Loaded, tmp_path: Path
) -> None:
    network = models.denoiser.network
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    outputs = Restorations("model", models, tmp_path, seed=3)(loaded)
    assert outputs[0].image is None and re.match(r"mine/hazy/a: .*NaN", outputs[0].fault)
    assert outputs[0].found is not None and not list(tmp_path.rglob("restored/**/*.png"))


def test_ablations_replace_one_embedding_each(models: Models, loaded: Loaded) -> None:
    given = seen(models, loaded)
    same = given.embeddings
    daclip = models.encoder.daclip
    true_word = ABLATIONS["true_word"](models.encoder, given)
    assert true_word.content is same.content
    text = daclip.encode_text(daclip.tokenize(["hazy", "rainy"]))
    assert torch.allclose(
        normalize(true_word.degradation, dim=-1), normalize(text, dim=-1), atol=1e-6
    )
    assert torch.allclose(true_word.degradation.norm(dim=-1), same.degradation.norm(dim=-1))
    clean = ABLATIONS["clean_content"](models.encoder, given)
    assert clean.degradation is same.degradation
    assert given.clean is not None
    own = daclip.clip.encode_image(clip_preprocess(given.clean, daclip.image_size))
    assert torch.equal(clean.content, own)
    assert not torch.allclose(own, daclip(clip_preprocess(given.clean, daclip.image_size)).content)


@pytest.mark.parametrize(
    ("name", "left"), [("no_prompt", "content"), ("no_content", "degradation")]
)
def test_ablations_leave_one_embedding_out(
    models: Models, loaded: Loaded, name: str, left: str
) -> None:
    given = seen(models, loaded)
    conditions = ABLATIONS[name](models.encoder, given)
    assert getattr(conditions, left) is getattr(given.embeddings, left)
    assert conditions.count(None) == 1


def test_every_ablation_changes_the_result(models: Models, loaded: Loaded, tmp_path: Path) -> None:
    images = {
        name: torch.stack([o.image for o in Restorations(name, models, tmp_path, 0)(loaded)])
        for name in ("model", *ABLATIONS)
    }
    plain = images.pop("model")
    assert [name for name, image in images.items() if torch.equal(image, plain)] == []


def test_clean_content_needs_clean_images(models: Models, loaded: Loaded, tmp_path: Path) -> None:
    method = Restorations("clean_content", models, tmp_path, 0)
    assert method(loaded._replace(clean=None)) == []
    assert len(Restorations("true_word", models, tmp_path, 0)(loaded._replace(clean=None))) == 2


def test_unknown_or_idle_ablations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown 'no_prmpt'; there are no_prompt, no_content"):
        check_ablations(["no_prmpt"])
    settings = {k: v for k, v in UNET.items() if k != "name"}
    network = ConditionalUNet(**settings, degradation_prompt=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="true_word would change nothing"):
        check_ablations(["no_content", "true_word"], network)
    check_ablations(["no_content", "clean_content"], network)
