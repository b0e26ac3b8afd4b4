"""Registries: classes and functions under the names that choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
M = TypeVar("M")


class Registry(Mapping[str, T], Generic[T]):
    """Members of one kind by name, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        """Start empty; `kind` names a member in error messages, such as `sampler`."""
        self.kind = kind
        self._members: dict[str, T] = {}

    def register(self, name: str) -> Callable[[M], M]:
        """Decorate a class or function to add it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._members:
            raise ValueError(f"the {self.kind} {name!r} is registered twice; choose another name")

        def add(member: M) -> M:
            self._members[name] = member  # type: ignore[assignment]
            return member

        return add

    def find(self, name: str) -> T:
        """The member of a name.

        Raises:
            ValueError: there is none; the message lists the names.
        """
        if name not in self._members:
            names = ", ".join(self._members)
            raise ValueError(f"unknown {self.kind} {name!r}; choose one of: {names}")
        return self._members[name]

    def __getitem__(self, name: str) -> T:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
