"""The configuration: sections, each checked by a typed model that stands beside what reads it.

A section is a `Section` with the name it has in conf/config.yaml:

    class CaptionsConfig(Section, name="captions"):
        captioner: Node
        batch_size: int = Field(ge=1)

`config[CaptionsConfig]` is the checked section. A wrong value in any section stops every command; a
missing one (`???`) stops only those that read the section.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.errors import message

Node = dict[str, Any]
"""A `_target_` with its arguments, or plain settings of a free form."""
MISSING = "???"
ROOT_KEYS = ("run_dir", "seed", "num_workers")
"""Keys outside of any section."""
S = TypeVar("S", bound="Section")


def _as_text(value: Any) -> Any:
    """What the command line takes for a number or a truth value, as it was written."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


AsText = BeforeValidator(_as_text)
Text = Annotated[str, AsText]
"""Text that may look like a number."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key."""


class Section(BaseModel):
    """A part of the configuration; a subclass that is given a `name` is one of its sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
    section: ClassVar[str]
    known: ClassVar[dict[str, type[Section]]] = {}
    """By name, of all the modules that are imported."""

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        """Make the section known."""
        super().__init_subclass__(**kwargs)
        if name:
            cls.section = name
            Section.known[name] = cls


class Config:
    """All settings; their values and meanings stand in conf/config.yaml."""

    def __init__(self, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
        """Check every section that is known.

        Args:
            values: the whole configuration, resolved.
            overrides: the Hydra overrides it was composed with.

        Raises:
            ConfigError: a key is unknown, or a value is wrong or of the wrong type.
        """
        self.values, self.overrides = values, tuple(overrides)
        needed = {*Section.known, *ROOT_KEYS, "network"}
        if unknown := sorted(set(values) - needed):
            raise ConfigError(f"unknown key {unknown[0]}")
        if absent := sorted(key for key in needed if values.get(key) is None):
            raise ConfigError(f"no {absent[0]}; neither remove it nor set it to null")
        for key in ("seed", "num_workers"):
            if type(values[key]) is not int or values[key] < 0:
                raise ConfigError(f"{key}={values[key]}; give a whole number, 0 or more")
        self._sections: dict[type[Section], Section] = {}
        for section in Section.known.values():
            if not _missing(values[section.section], section.section):
                self[section]

    def __getitem__(self, section: type[S]) -> S:
        """A checked section.

        Raises:
            ConfigError: a value is missing.
        """
        if section not in self._sections:
            self._sections[section] = self._checked(section)
        return cast(S, self._sections[section])

    @property
    def run_dir(self) -> Path:
        """The folder below which everything a run makes is written."""
        if self.values["run_dir"] == MISSING:
            raise ConfigError("no value for run_dir; give one as run_dir=FOLDER")
        return Path(self.values["run_dir"])

    @property
    def seed(self) -> int:
        """Of everything random."""
        return int(self.values["seed"])

    @property
    def num_workers(self) -> int:
        """Processes that make shards, or load data for each device."""
        return int(self.values["num_workers"])

    @property
    def network(self) -> Node:
        """The restorer's network: a registered `name`, or a class as `_target_`, with arguments."""
        return dict(self.values["network"])

    @property
    def network_classes(self) -> list[str]:
        """The network's class, where it is given by its path: the user's settings vouch for it."""
        return [str(self.network["_target_"])] if "_target_" in self.network else []

    def value(self, key: str) -> Any:
        """Whatever stands under a dotted key."""
        return reduce(lambda node, name: node[name], key.split("."), self.values)

    def is_overridden(self, section: str) -> bool:
        """Whether the command line sets a section, or a value in it."""
        begins = (f"{section}.", f"{section}=")
        return any(override.lstrip("+~").startswith(begins) for override in self.overrides)

    def _checked(self, section: type[S]) -> S:
        name = section.section
        if missing := _missing(self.values[name], name):
            raise ConfigError(f"no value for {', '.join(missing)}; give one as {missing[0]}=VALUE")
        try:
            return section.model_validate(self.values[name])
        except ValidationError as error:
            raise ConfigError(_explained(error, name)) from error


def check_targets(config: Config) -> None:
    """Check every `_target_`; apart, because it imports what they name.

    Raises:
        ConfigError: a target does not exist or does not take an argument.
    """
    for key, node in _targets(config.values, ""):
        _check_target(key, node)


def build(node: Mapping[str, Any], **more: Any) -> Any:
    """Make what a `_target_` node describes, with further arguments.

    Raises:
        ConfigError: it cannot be made of these arguments.
    """
    try:
        return instantiate(dict(node), _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{node.get('_target_')}: {' '.join(message(cause).split())}") from error


def _missing(node: Any, key: str) -> list[str]:
    """The keys at or below a node that have no value."""
    if isinstance(node, Mapping):
        return [found for name, child in node.items() for found in _missing(child, f"{key}.{name}")]
    return [key] if node == MISSING else []


def _explained(error: ValidationError, section: str) -> str:
    """The first fault: its full key, what was found, and what is wanted."""
    fault = error.errors()[0]
    key = ".".join([section, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if fault["type"] == "missing":
        return f"no value for {key}; give one as {key}=VALUE"
    if fault["type"] == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}={fault['input']}: {str(fault['msg']).replace('Input', 'it')}"


def _targets(node: Any, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """All `_target_` nodes at or below a node, with their keys."""
    if not isinstance(node, Mapping):
        return []
    below = [
        found
        for name, child in node.items()
        for found in _targets(child, f"{key}.{name}" if key else str(name))
    ]
    return [(key, node), *below] if "_target_" in node else below


def _check_target(key: str, node: Mapping[str, Any]) -> None:
    """Raise ConfigError where a target does not exist or does not take an argument."""
    try:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
    except Exception as error:
        raise ConfigError(f"{key}._target_: {node['_target_']!r} cannot be found") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    given = {name for name in node if not name.startswith("_")}
    if unknown := sorted(given - set(parameters)):
        raise ConfigError(
            f"unknown key {key}.{unknown[0]}; {node['_target_']} takes {', '.join(parameters)}"
        )
