"""From the command line to a configuration: composed by Hydra out of conf/, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pipeline.chain  # noqa: F401  # it makes the sections of all stages known
from pipeline.config import Config, ConfigError
from pipeline.legacy import new_name


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration and check all of it but the arguments of `_target_`s.

    Args:
        overrides: Hydra overrides, such as `experiment=universal`, `restorer.max_steps=1000` or
            `network={_target_: mypackage.MyNetwork, width: 32}`.

    Raises:
        ConfigError: a key is unknown or was renamed, or a value is wrong or of the wrong type.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if new := new_name(key, value):
            raise ConfigError(f"{override}: this setting is now called {new}")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        nodes = _from_first_node(parsed)
        others = [text for text, one in zip(overrides, parsed, strict=True) if one not in nodes]
        with initialize_config_dir(str(files("conf")), version_base="1.3"):
            composed = compose("config", overrides=others)
        OmegaConf.set_struct(composed, False)
        for node in nodes:
            OmegaConf.update(composed, node.key_or_group, node.value(), merge=False)
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_reason(error)) from error
    return Config(cast(dict[str, Any], OmegaConf.to_container(composed)), overrides)


def _from_first_node(overrides: Sequence[Override]) -> list[Override]:
    """Overrides that give a class with its arguments, and later ones of these arguments.

    Such a node replaces the one before it; Hydra would merge the arguments of both.
    """
    found: list[Override] = []
    for override in overrides:
        value, key = override.value(), override.key_or_group
        is_node = isinstance(value, dict) and ("_target_" in value or key == "network")
        if is_node or any(key.startswith(f"{node.key_or_group}.") for node in found):
            found.append(override)
    return found


def _reason(error: Exception) -> str:
    """The library's message, with its cause where that says more."""
    cause = error.__cause__
    lines = [str(error).strip()] + ([str(cause).strip()] if cause is not None else [])
    return "; ".join(" ".join(line.split()) for line in lines)
