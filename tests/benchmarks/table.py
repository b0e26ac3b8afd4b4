"""What a benchmark found: rows with all their rounds, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from datamodules.files import atomic_write, write_json


@dataclass(frozen=True)
class Target:
    """A limit that a row's value should keep."""

    limit: float
    at_least: bool
    """False where the value should stay below it."""

    def met(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value >= self.limit if self.at_least else value < self.limit

    def __str__(self) -> str:
        """`>= 4` or `< 2`."""
        return f"{'>=' if self.at_least else '<'} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One figure; its value is the median of the rounds."""

    part: str
    name: str
    unit: str
    rounds: Sequence[float]
    target: Target | None = None
    reason: str = ""
    """Why there are no rounds, where there are none."""

    @property
    def value(self) -> float | None:
        """The median; None where nothing was measured."""
        return median(self.rounds) if self.rounds else None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, nothing where there is no target, or why nothing was measured."""
        if self.value is None or self.target is None:
            return self.reason
        return "met" if self.target.met(self.value) else "missed"

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        target = "" if self.target is None else str(self.target)
        value, spread = "", ""
        if self.value is not None:
            value = _figure(self.value)
            spread = f"{_figure(min(self.rounds))} to {_figure(max(self.rounds))}"
        return (self.part, self.name, value, self.unit, spread, target, self.verdict)


def _figure(value: float) -> str:
    """Three digits, and none behind the point from a hundred up."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


HEAD = ("part", "what", "median", "unit", "all rounds", "target", "result")


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table whose columns line up."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


def write_results(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    machine: Mapping[str, object],
    notes: Sequence[str],
) -> None:
    """Write `bench-NAME.json` and `bench-NAME.md`.

    Raises:
        OSError: they cannot be written.
    """
    found = [asdict(row) | {"value": row.value, "verdict": row.verdict} for row in rows]
    whole = {"machine": machine, "notes": notes, "rows": found}
    write_json(folder / f"bench-{name}.json", whole)
    facts = "".join(f"- {name}: {fact}\n" for name, fact in machine.items())
    remarks = "".join(f"- {note}\n" for note in notes)
    page = f"# {name.capitalize()} benchmark\n\n{facts}\n{markdown(rows)}\n{remarks}"
    with atomic_write(folder / f"bench-{name}.md") as file:
        file.write(page.encode())
