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

    @property
    def value(self) -> float:
        """The median."""
        return median(self.rounds)

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where there is no target."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value) else "missed"

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        spread = f"{_figure(min(self.rounds))} to {_figure(max(self.rounds))}"
        target = "" if self.target is None else str(self.target)
        return (self.part, self.name, _figure(self.value), self.unit, spread, target, self.verdict)


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
    folder: Path, rows: Sequence[Row], machine: Mapping[str, object], notes: Sequence[str]
) -> None:
    """Write `bench-data.json` and `bench-data.md`.

    Raises:
        OSError: they cannot be written.
    """
    found = [asdict(row) | {"value": row.value, "verdict": row.verdict} for row in rows]
    whole = {"machine": machine, "notes": notes, "rows": found}
    write_json(folder / "bench-data.json", whole)
    facts = "".join(f"- {name}: {fact}\n" for name, fact in machine.items())
    remarks = "".join(f"- {note}\n" for note in notes)
    page = f"# Data benchmark\n\n{facts}\n{markdown(rows)}\n{remarks}"
    with atomic_write(folder / "bench-data.md") as file:
        file.write(page.encode())
