"""The configuration: every experiment composes, every wrong key is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import conf
from modules.diffusion.schedule import make_noise_schedule
from modules.inference.restore import make_sampling
from pipeline.chain import STAGES
from pipeline.compose import load_config
from pipeline.config import Config, ConfigError, build, check_targets
from pipeline.sections import SamplerConfig, check_sampler
from pipeline.stages.shards import ShardsConfig
from pipeline.stages.train_controller import ClipConfig
from pipeline.stages.train_restorer import ProcessConfig
from pipeline.training.sections import RestorerConfig, TrainerConfig

EXPERIMENTS = sorted(p.stem for p in (Path(conf.__file__).parent / "experiment").glob("*.yaml"))
NEEDS_ROOT = ["shards.source.root=/data"]
PHOTOS = ("base", "photos", "small")
"""Experiments on clean photographs."""


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_every_experiment_composes(experiment: str, logger: str) -> None:
    photos = ["shards.source.photos.root=/data"]
    more = {"demo": [], **dict.fromkeys(PHOTOS, photos)}.get(experiment, NEEDS_ROOT)
    config = load_config([f"experiment={experiment}", f"logger={logger}", *more])
    check_targets(config)
    assert config.run_dir == Path(f"outputs/{experiment}")


@pytest.mark.parametrize("source", ["folder", "synthetic", "embedded", "benchmarks", "existing"])
def test_every_source_can_be_chosen(source: str) -> None:
    root = {
        "folder": NEEDS_ROOT,
        "benchmarks": NEEDS_ROOT,
        "synthetic": ["shards.source.photos.root=/data"],
        "existing": ["shards.source.url=/data"],
    }.get(source, [])
    config = load_config(["experiment=universal", f"source={source}", *root])
    check_targets(config)
    assert config[ShardsConfig].source["_target_"].startswith("datamodules.")


def test_universal_is_the_published_recipe() -> None:
    config = load_config(["experiment=universal", *NEEDS_ROOT])
    assert config[ClipConfig].architecture == "ViT-B-32"
    assert config[ClipConfig].weights == "laion2b_s34b_b79k"
    assert (config[RestorerConfig].max_steps, config[RestorerConfig].batch_size) == (700_000, 16)
    assert config[RestorerConfig].prediction_type == "epsilon"
    assert config[RestorerConfig].optimizer["lr"] * config[
        RestorerConfig
    ].min_lr_ratio == pytest.approx(1e-6)
    assert config[ProcessConfig].lambda_ * 255 == pytest.approx(50)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("restorer.stepz=3", "restorer.stepz"),
        ("+restorer.stepz=3", "restorer.stepz"),
        ("+whatever=1", "whatever"),
        ("seed=first", "seed"),
        ("experiment=nothing", "nothing"),
        (
            "controller.final_weights=first",
            "controller.final_weights=first: it should be 'last' or 'best'",
        ),
        ("restorer.final_weights=all", "restorer.final_weights=all: it should be 'last' or 'best'"),
    ],
)
def test_wrong_keys_are_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config([override])


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("restorer.steps=3", "restorer.max_steps"),
        ("sampling.calls=3", "sampler.num_steps"),
        ("sampling.eta=1", "sampler.eta"),
        ("restorer.network.width=64", "network.width"),
        ("~data.shares", "data.task_weights"),
        ("source=ready", "source=existing"),
        ("workers=2", "num_workers"),
    ],
)
def test_keys_of_before_are_refused_with_their_new_names(override: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(override)}: .* now called {new}$"):
        load_config([override])


def test_network_may_be_given_as_a_class() -> None:
    config = load_config(["network={_target_: mypackage.MyNetwork, width: 8}"])
    assert config.network == {"_target_": "mypackage.MyNetwork", "width": 8}


def test_misspelt_key_in_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "conf"
    source = Path(conf.__file__).parent
    for path in source.rglob("*.yaml"):
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        target.write_text(text.replace("  patch_size: 64", "  pach_size: 64"), encoding="utf-8")
    monkeypatch.setattr("pipeline.compose.files", lambda package: copy)
    with pytest.raises(ConfigError, match=r"restorer\.pach_size"):
        load_config([])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("restorer.optimizer._target_=torch.optim.AdamX", r"restorer\.optimizer\._target_"),
        ("+shards.source.photos.vall=[]", r"shards\.source\.photos\.vall"),
    ],
)
def test_wrong_arguments_of_a_target_are_named(override: str, named: str) -> None:
    config = load_config([override])
    with pytest.raises(ConfigError, match=named):
        check_targets(config)


def test_missing_value_is_named() -> None:
    config = load_config(["experiment=universal"])  # which other stages do without
    with pytest.raises(ConfigError, match=r"no value for shards\.source\.root; give one as"):
        config[ShardsConfig]


def test_object_that_cannot_be_made_is_a_fault_of_the_configuration() -> None:
    node = {"_target_": "datamodules.shards.writer.Format", "encoding": "gif", "tile_size": None}
    with pytest.raises(ConfigError, match=r"Format: .*shard_mb"):
        build(node)
    with pytest.raises(ConfigError, match=r"Format: .*shards\.format\.encoding='gif'"):
        build(node | {"shard_mb": 1.0})


@pytest.mark.parametrize(
    "override",
    [
        "num_workers=-1",
        "seed=-1",
        "captions.batch_size=0",
        "restorer.val_every_n_steps=0",
        "controller.accumulate_grad_batches=0",
        "restorer.val_images_per_task=-1",
        "restorer.val_num_steps=0",
        "trainer.log_every_n_steps=0",
        "sampler.num_steps=0",
        "controller.max_steps=-1",
    ],
)
def test_numbers_out_of_range_are_named(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"{override}[:;] .*(or more|greater than or equal to)"):
        load_config(["experiment=demo", override])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_names_a_sampler_and_a_grid(experiment: str) -> None:
    roots = ["shards.source.photos.root=/data"] if experiment in PHOTOS else NEEDS_ROOT
    config = load_config([f"experiment={experiment}", *(roots if experiment != "demo" else [])])
    sampling = make_sampling(**config[SamplerConfig].model_dump())
    assert sampling.num_steps == config[SamplerConfig].num_steps
    assert (
        len(
            sampling.timestep_spacing(
                make_noise_schedule(**config[ProcessConfig].model_dump()), sampling.num_steps
            )
        )
        == sampling.num_steps + 1
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.name=Posterior", "sampler: unknown sampler 'Posterior'"),
        ("sampler.timestep_spacing=even", "sampler: unknown timestep spacing 'even'"),
        ("sampler.eta=2", "sampler: .*eta"),
    ],
)
def test_a_wrong_sampler_stops_every_stage(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sampler(load_config(["experiment=demo", override]))


def test_patch_that_cannot_be_cut_of_the_view_is_refused(
    tiny_config: Callable[..., Config],
) -> None:
    tiny_config("restorer.patch_size=32", "restorer.context_size=32")
    with pytest.raises(ConfigError, match=r"context_size=31 is smaller than restorer.patch_size"):
        tiny_config("restorer.patch_size=32", "restorer.context_size=31")


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (
            "restorer",
            ["restorer.loss=mathcing"],
            "unknown loss 'mathcing'; choose one of: matching",
        ),
        ("restorer", ["restorer.prediction_type=nois"], "unknown prediction type 'nois'"),
        ("restorer", ["process.noise_schedule=cosin"], "unknown noise schedule 'cosin'"),
        ("restorer", ["network.width=33"], "width must be even"),
        (
            "restorer",
            ["process.num_timesteps=1", "sampler.num_steps=3"],
            r"takes 3 steps an image, .* process.num_timesteps=1 .* 1 at",
        ),
        (
            "controller",
            ["controller.degradation_targets=multi"],
            "should be 'identity' or 'multi_pos",
        ),
        ("restorer", ["trainer.devices=3"], "batch_size=2 images cannot be shared out evenly to 3"),
        ("controller", ["trainer.num_nodes=3"], "batch_size=10 images cannot be shared .* to 3"),
        ("controller", ["clip.architecture.text_cfg.width=15"], "must be divisible"),
        ("controller", ["clip.architecture=ViT-B-33"], "unknown CLIP architecture 'ViT-B-33'"),
    ],
)
def test_training_that_cannot_work_is_refused_before_anything_is_set_aside(
    tiny_config: Callable[..., Config], stage: str, overrides: list[str], message: str
) -> None:
    STAGES[f"train-{stage}"].check(tiny_config())
    with pytest.raises(ConfigError, match=message):
        STAGES[f"train-{stage}"].check(tiny_config(*overrides))


@pytest.mark.parametrize("name", ["16-mixed", "16", "bf16-true", "64-true", "half"])
def test_precision_that_does_not_train_is_refused(
    tiny_config: Callable[..., Config], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"precision={name}: it should be 'auto', '32-true'"):
        tiny_config(f"trainer.precision={name}")


@pytest.mark.parametrize("override", ["ema_decay=99.5", "ema_decay=-0.1", "ema_update_every=0"])
def test_average_that_cannot_be_is_refused(
    tiny_config: Callable[..., Config], override: str
) -> None:
    with pytest.raises(ConfigError, match=f"restorer.{override}: it should be"):
        tiny_config(f"restorer.{override}")


@pytest.mark.parametrize("name", ["auto", "32-true", "32", "bf16-mixed", "bf16"])
def test_precision_that_trains_is_taken(tiny_config: Callable[..., Config], name: str) -> None:
    assert tiny_config(f"trainer.precision={name}")[TrainerConfig].precision == name


def test_class_with_its_arguments_replaces_a_node_and_later_arguments_join_it() -> None:
    own = load_config(["+network={_target_: mine.Net, dim: 8}", "++network.channels=3"])
    assert own.network == {"_target_": "mine.Net", "dim": 8, "channels": 3}
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    found = load_config(["controller.optimizer={_target_: torch.optim.SGD, lr: 0.1}"])
    assert found.value("controller.optimizer") == sgd


@pytest.mark.parametrize(
    ("override", "found"),
    [("~dashboard", "no dashboard; neither"), ("seed=null", "no seed"), ("network=null", "group")],
)
def test_sections_are_neither_removed_nor_null(override: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load_config([override])


def test_sampler_chosen_by_name_counts_as_overridden() -> None:
    assert load_config(["sampler=heun"]).is_overridden("sampler")
    assert not load_config(["evaluate.sampler.num_steps=2"]).is_overridden("sampler")
