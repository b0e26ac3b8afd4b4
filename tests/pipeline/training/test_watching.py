"""The figures of a training: means by task and by time, scores, confusion, speed."""

from __future__ import annotations

from collections import namedtuple
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.diffusion.losses import LOSSES
from modules.diffusion.prediction import PREDICTION_TYPES, Prediction
from modules.diffusion.samplers import make_sampler
from modules.diffusion.schedule import NoiseSchedule, make_noise_schedule
from modules.inference.restore import Denoiser, Sampling
from modules.networks.unet import ConditionalUNet
from pipeline.evaluation.scoring import validation_metrics
from pipeline.training import callbacks
from pipeline.training.callbacks import Throughput
from pipeline.training.daclip_module import DaClipModule
from pipeline.training.draws import random_crops
from pipeline.training.group_mean import GroupMean, bucket_of, by_group, time_buckets
from pipeline.training.restorer_module import RestorerModule
from pipeline.training.sections import ControllerConfig, RestorerConfig
from pipeline.training.trainer import WandbMetrics
from tests.conftest import section
from tests.pipeline.training.test_training import TINY_CLIP

WORDS = ("hazy", "rainy", "snowy")
SETTINGS = section(
    RestorerConfig,
    loss="matching", timestep_power=0.0, patch_size=40, context_size=None, text_prompt_prob=0.0,
    swapped_prompt_prob=0.0,
)  # fmt: skip
Fake = namedtuple("Fake", "lq gt size caption degradation number valid key")


def batch(*words: str, valid: list[bool] | None = None) -> Fake:
    generator = torch.Generator().manual_seed(3)
    lq, gt = torch.randint(0, 256, (2, len(words), 3, 40, 40), generator=generator).byte()
    flags = torch.tensor(valid or [True] * len(words))
    size = [(40, 40)] * len(words)
    return Fake(
        lq, gt, size, ["a"] * len(words), list(words), list(range(len(words))), flags, list(words)
    )


def test_group_means() -> None:
    metric = GroupMean(3, 2)
    metric.update(torch.tensor([[1.0, 10], [2, 20]]), torch.tensor([0, 2]))
    metric.update(torch.tensor([[4.0, 40]]), torch.tensor([2]))
    means = metric.compute()
    assert means[[0, 2]].tolist() == [[1, 10], [3, 30]]
    assert means[1].isnan().all()
    assert means[-1].tolist() == pytest.approx([7 / 3, 70 / 3])
    assert list(by_group("x", WORDS, means[:-1, 0])) == ["x/hazy", "x/snowy"]


def test_group_means_of_ranks_are_those_of_all() -> None:
    values, groups = torch.rand(9, 1), torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 0])
    whole, *ranks = (GroupMean(2) for _ in range(3))
    whole.update(values, groups)
    for metric, part in zip(ranks, (slice(0, 2), slice(2, 9)), strict=True):
        metric.update(values[part], groups[part])
    ranks[0].merge_state(ranks[1])
    torch.testing.assert_close(ranks[0].compute(), whole.compute())


def test_group_mean_is_updated_after_a_reset_in_inference() -> None:
    metric = GroupMean(1)
    with torch.inference_mode():
        metric.reset()
    metric.update(torch.ones(1, 1, requires_grad=True), torch.zeros(1, dtype=torch.int64))
    assert metric.compute().tolist() == [[1], [1]]


@pytest.mark.parametrize("T", [5, 7, 100, 1000])
def test_times_fall_in_the_bucket_that_names_them(T: int) -> None:
    names = time_buckets(T, 5)
    assert len(names) == 5
    t = torch.arange(1, T + 1)
    found = bucket_of(t, T, 5).tolist()
    for time, bucket in zip(t.tolist(), found, strict=True):
        first, last = map(int, names[bucket].split("-"))
        assert first <= time <= last
    sizes = np.bincount(found)
    assert sizes.max() - sizes.min() <= 1


@pytest.fixture
def restorer() -> RestorerModule:
    torch.manual_seed(0)
    network = ConditionalUNet(width=32, multipliers=(1, 1), context_dim=32)
    controller = DaClipEncoder(build_daclip(TINY_CLIP), WORDS)
    denoiser = Denoiser(network, make_noise_schedule(), PREDICTION_TYPES.find("sample"))
    sampling = Sampling(make_sampler("posterior"), num_steps=1)
    module = RestorerModule(
        denoiser, controller, SETTINGS, lambda groups: None, lambda step: 1.0, sampling,  # type: ignore[arg-type,return-value]
        validation_metrics(torch.device("cpu")), WORDS, seed=0,
    )  # fmt: skip
    module.logged = {}  # type: ignore[assignment]
    module.log = lambda name, value, **how: module.logged.update({name: value})  # type: ignore[assignment]
    module.log_dict = lambda values, **how: module.logged.update(values)  # type: ignore[assignment]
    module._trainer = SimpleNamespace(global_step=0, global_rank=0, accumulate_grad_batches=1)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_single_images_average_to_that_of_the_batch(
    restorer: RestorerModule, name: str
) -> None:
    restorer._loss = LOSSES[name]
    loss = restorer.training_step(batch("hazy", "rainy", "rainy", "snowy"), 0)
    restorer.on_validation_epoch_end()
    assert restorer.loss_by_time.counts.sum() == 0
    compare, seen = LOSSES[name], list[torch.Tensor]()

    def watched(
        schedule: NoiseSchedule, predicted: Prediction, *images: torch.Tensor
    ) -> torch.Tensor:
        seen.append(compare(schedule, predicted, *images))
        of_one = Prediction(*(part[2:3] for part in predicted))
        seen.append(compare(schedule, of_one, *(part[2:3] for part in images)))
        return seen[0]

    restorer._loss = watched
    restorer.training_step(batch("hazy", "rainy", "rainy", "snowy"), 0)
    assert seen[0].shape == (4,)
    assert seen[0].mean().item() == pytest.approx(loss.item())
    assert seen[0][2].item() == pytest.approx(seen[1].item())
    assert restorer.loss_by_time.compute()[-1, 0] == pytest.approx(loss.item())
    assert not restorer.loss_by_time.compute().requires_grad


def test_controller_sees_more_than_the_patch_that_is_trained_on(restorer: RestorerModule) -> None:
    seen: list[torch.Tensor] = []
    embed = restorer._encoder.embed
    restorer._encoder.embed = lambda mu: (seen.append(mu), embed(mu))[1]  # type: ignore[method-assign,func-returns-value]
    restorer.network.register_forward_hook(lambda network, args, F: seen.append(args[1]))
    restorer._settings = SETTINGS.model_copy(update={"patch_size": 24, "context_size": 40})
    samples = batch("hazy", "rainy")
    restorer.training_step(samples, 0)
    whole, patch = seen
    torch.testing.assert_close(whole, samples.lq.float() / 255)
    assert patch.shape == (2, 3, 24, 24)


@pytest.mark.parametrize("told", [(0.5, 0.0), (0.0, 0.5)])
def test_a_share_of_the_images_is_told_by_words_or_by_others(
    restorer: RestorerModule, told: tuple[float, float]
) -> None:
    samples = batch(*["hazy", "snowy"] * 20)
    conditions: list[torch.Tensor] = []
    restorer.network.register_forward_hook(lambda network, args, F: conditions.append(args[3]))
    for text, swapped in ((0.0, 0.0), told):
        restorer._settings = SETTINGS.model_copy(
            update={"text_prompt_prob": text, "swapped_prompt_prob": swapped}
        )
        restorer.training_step(samples, 0)
    seen, mixed = conditions
    changed = (seen != mixed).any(dim=1)
    assert 10 <= changed.sum() <= 30
    texts = restorer._encoder.embed_texts(samples.degradation) * seen.norm(dim=1, keepdim=True)
    expected = texts if told[0] else seen.roll(1, 0)
    torch.testing.assert_close(mixed[changed], expected[changed])


def test_word_that_the_controller_does_not_know_is_named(restorer: RestorerModule) -> None:
    restorer._settings = SETTINGS.model_copy(update={"text_prompt_prob": 1.0})
    with pytest.raises(ValueError, match="does not know foggy, but hazy, rainy, snowy"):
        restorer.training_step(batch("hazy", "foggy"), 0)


def test_patches_of_both_images_lie_in_the_same_place() -> None:
    images = torch.arange(2 * 3 * 30 * 40.0).reshape(2, 3, 30, 40)
    places = set()
    for draw in range(200):
        generators = [torch.Generator().manual_seed(2 * draw + i) for i in range(2)]
        patches, same = random_crops(24, generators, images, -images)
        assert torch.equal(patches, -same)
        assert patches.shape == (2, 3, 24, 24)
        place = int(patches[0, 0, 0, 0])
        top, left = divmod(place, 40)
        assert torch.equal(patches[0], images[0, :, top : top + 24, left : left + 24])
        places.add((top, left))
    tops, lefts = zip(*places, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 6, 0, 16)


def test_validation_scores_tasks_and_leaves_padding_out(restorer: RestorerModule) -> None:
    samples = batch("hazy", "rainy", "rainy", "snowy", valid=[True, True, True, False])
    restored = restorer.validation_step(samples, 0)
    restorer.on_validation_epoch_end()
    logged = restorer.logged
    metrics = validation_metrics(torch.device("cpu"))
    for key, images in (("val_psnr", restored), ("val_psnr_degraded", samples.lq)):
        each = metrics["psnr"](images, samples.gt)
        assert logged[key] == pytest.approx(each[:3].mean().item())
        assert logged[f"{key}/hazy"] == pytest.approx(each[0].item())
        assert logged[f"{key}/rainy"] == pytest.approx(each[1:3].mean().item())
        assert f"{key}/snowy" not in logged
    assert logged["val_ssim/hazy"] == pytest.approx(metrics["ssim"](restored, samples.gt)[0].item())
    assert restorer.restored.counts.sum() == 0


def test_validation_restores_as_in_use_whatever_precision_trains(restorer: RestorerModule) -> None:
    samples = batch("hazy", "rainy")
    whole = restorer.validation_step(samples, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restorer.validation_step(samples, 0), whole)


def controller(words: tuple[str, ...] = WORDS) -> DaClipModule:
    return DaClipModule(
        build_daclip(TINY_CLIP),
        section(ControllerConfig, degradation_targets="identity", crop_scale=[0.9, 1.0]),
        words,
        lambda groups: torch.optim.SGD(groups, lr=0.0),  # type: ignore[arg-type]
        lambda step: 1.0,
        seed=0,
    )


def test_confusion_counts_words(monkeypatch: pytest.MonkeyPatch) -> None:
    module = controller()
    daclip = module.daclip
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **how: logged.update(values)  # type: ignore[assignment]
    monkeypatch.setattr(module, "_encode", lambda texts: torch.eye(3, 32))
    looks = torch.eye(3, 32)[[0, 1, 2, 2]]  # as hazy, rainy, snowy, snowy
    monkeypatch.setattr(daclip, "forward", lambda view: SimpleNamespace(degradation=looks))
    module.validation_step(batch("hazy", "rainy", "rainy", "hazy", valid=[True] * 3 + [False]), 0)
    module.on_validation_epoch_end()
    assert module.recognised.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert logged["degradation_accuracy"] == pytest.approx(0.75)  # of two words alike
    assert logged["degradation_accuracy/hazy"] == 1
    assert logged["degradation_accuracy/rainy"] == 0.5
    assert "degradation_accuracy/snowy" not in logged
    module.validation_step(batch("rainy", "rainy", "rainy", "rainy"), 0)
    module.on_validation_epoch_end()
    assert module.recognised.sum() == 4


def test_words_that_are_near_are_told_apart_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosines, 0.999 and 1, are one number in bfloat16; the first word would win."""
    module = controller()
    module.log_dict = lambda values, **how: None  # type: ignore[assignment,method-assign]
    texts = torch.eye(3, 32)
    texts[0] = torch.nn.functional.normalize(texts[1] + 0.0447 * texts[2], dim=0)
    monkeypatch.setattr(module, "_encode", lambda words: texts)
    looks = texts[[1, 1]]
    monkeypatch.setattr(module.daclip, "forward", lambda v: SimpleNamespace(degradation=looks))
    with torch.autocast("cpu", torch.bfloat16):
        module.validation_step(batch("rainy", "rainy"), 0)
    module.on_validation_epoch_end()
    assert module.recognised.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]


def test_a_single_word_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    module = controller(("rainy",))
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **how: logged.update(values)  # type: ignore[assignment]
    module.validation_step(batch("rainy", "rainy", valid=[True, False]), 0)
    module.on_validation_epoch_end()
    assert module.recognised.tolist() == [[1]] and logged["degradation_accuracy"] == 1


def test_the_logit_scale_is_bounded_when_a_step_ends() -> None:
    """Before any callback saves it, and so for the next step as for one after a resume."""
    from lightning.pytorch import Callback, Trainer

    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            seen.append(module.daclip.logit_scale.exp().item())

    module = controller()
    module.daclip.logit_scale.data.fill_(5)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, callbacks=[Watch()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([batch("hazy", "rainy", "snowy")], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader)
    assert seen == [pytest.approx(100, rel=1e-6)]


def test_the_average_is_the_reference_s() -> None:
    """The reference's loop: at each tenth step copies, up to 100 and once more, then decays."""
    average, steps = callbacks.EmaCallback(decay=0.995, every=10), range(4001)
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average.update_average)
    weights = torch.rand(len(steps), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    expected, begun = 0.0, False
    for step in steps:
        if not average.should_update(step_idx=step):
            assert step % 10
            continue
        network.weight.data.fill_(weights[step])
        averaged.update_parameters(network)
        if step <= 100 or not begun:
            expected, begun = weights[step].item(), step > 100
        decay = min(0.995, 1 - (1 + max(0, step - 100)) ** (-2 / 3))
        expected += (1 - decay) * (weights[step].item() - expected)
        if step in (0, 90, 100, 110, 120, 2000, 4000):
            assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)
        if step <= 110:
            assert averaged.module.weight.item() == pytest.approx(weights[step].item())
    assert not average.should_update(epoch_idx=0)


def test_the_average_is_on_the_device_that_will_train(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    strategy = type(trainer.strategy)
    monkeypatch.setattr(strategy, "root_device", property(lambda self: torch.device("meta")))
    module = controller()
    average = callbacks.EmaCallback(decay=0.9, every=1)
    average.setup(trainer, module, "fit")
    assert average._average_model is not None
    assert {p.device.type for p in average._average_model.module.parameters()} == {"meta"}


def test_speed_by_the_trainers_own_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Time passes only where data are fetched (3 s), in training (1 s) and in validation (50 s)."""
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    now = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> int:
            now[0] += 1.5
            return index

    class Endless(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Any:
            return cycle(range(12))

    class Module(LightningModule):
        def training_step(self, samples: Any, batch_idx: int) -> torch.Tensor:
            now[0] += 1
            return self.weight.sum()

        def validation_step(self, samples: Any, batch_idx: int) -> None:
            now[0] += 50

        def configure_optimizers(self) -> Any:
            self.weight = torch.nn.Parameter(torch.zeros(1))
            return torch.optim.SGD([self.weight], lr=0.1)

    class Keep(WandbMetrics):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "images_per_s" in metrics:
                kept.append((step, metrics))

    kept: list[Any] = []
    speed = Throughput()
    trainer = Trainer(
        max_steps=5, accelerator="cpu", logger=Keep(), log_every_n_steps=2,
        callbacks=[speed], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, val_check_interval=1, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    loader = DataLoader(
        Slow(),
        batch_size=2,
        sampler=Endless(),
        collate_fn=lambda items: SimpleNamespace(key=items, valid=items),
    )
    trainer.fit(Module(), loader, DataLoader(Slow(), batch_size=12, collate_fn=list))
    assert [step for step, _ in kept] == [2, 4, 5]
    for _, values in kept:
        assert values["images_per_s"] == pytest.approx(2 / (3 + 1))
        assert values["data_wait"] == pytest.approx(3 / (3 + 1))
        assert "gpu_peak_gb" not in values


def test_speed_is_not_logged_where_no_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    speed, logged = Throughput(), list[Any]()
    logger = SimpleNamespace(log_metrics=lambda *row: logged.append(row))
    trainer: Any = SimpleNamespace(
        world_size=1, log_every_n_steps=1, global_step=1, loggers=[logger]
    )
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    samples: Any = SimpleNamespace(key=["a"])
    speed.on_train_batch_end(trainer, module, None, samples, 0)
    assert logged == []
