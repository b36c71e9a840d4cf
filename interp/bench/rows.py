"""A row of the table: what is measured, against what, what it is to reach, and what came out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.bench.clock import Spread, Timing, alternating
from interp.bench.sizes import Size
from interp.models import LVLM


@dataclass(frozen=True)
class Bench:
    """What a row measures with: a model of a size, and how often."""

    model: LVLM
    size: Size
    repeats: int
    tokens: int

    def alternating(self, runs: Mapping[str, Callable[[], Any]], warm: int = 1) -> dict[str, Timing]:
        """Time things in turns; see `interp.bench.clock`."""
        return alternating(runs, self.repeats, self.model.synchronize, warm)


@dataclass(frozen=True)
class Line:
    """One comparison of a row: `value` is how many times the reference's (`unit`: of what), and by the wall.

    `lower`: smaller is better.  `reached`: whether the median keeps the aim; None where there is none.
    """

    case: str
    value: Spread
    wall: Spread | None = None
    aim: float | None = None
    lower: bool = True
    unit: str = "x"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the median is as good as the aim."""
        if self.aim is None:
            return None
        return self.value.median <= self.aim if self.lower else self.value.median >= self.aim

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        of = {"case": self.case, "value": vars(self.value), "wall": None if self.wall is None else vars(self.wall)}
        return of | {"aim": self.aim, "lower": self.lower, "unit": self.unit, "reached": self.reached, **self.more}


def ratio(case: str, mine: Timing, other: Timing, aim: float | None = None, on_gpu: bool = False, **more: Any) -> Line:
    """How many times as long one thing takes as another: by processor time, on a GPU by the wall."""
    seconds = {"seconds": Spread.of(list(mine.wall)).median, "reference_seconds": Spread.of(list(other.wall)).median}
    return Line(case, mine.against(other, wall=on_gpu), mine.against(other, wall=True), aim, more=seconds | more)


@dataclass(frozen=True)
class Row:
    """A row of the table.  `sizes`: at which it is measured; `run` gives its comparisons."""

    name: str
    what: str
    reference: str
    aim: str
    run: Callable[[Bench], list[Line]]
    sizes: tuple[str, ...] = ("tiny", "tiny-7b", "testbed", "testbed-smollm2", "smollm2", "7b")
