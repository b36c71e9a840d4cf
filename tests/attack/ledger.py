"""What became of each attack, and the table of all."""

import contextlib
import io
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from interp import cli

LEAKS = re.compile(
    r"Expecting value|unsupported operand|allow_pickle|has no attribute|NoneType|codec can't|index out of range"
    r"|KeyError|not subscriptable|Traceback|invalid literal|unhashable|non-negative integer|Extra data|must be str"
)
"""Words of Python and its libraries that say nothing to a user."""
Wanted = Literal["refused", "same", "any"]
End = Literal["refused", "same", "read", "traceback", "accepted"]


@dataclass(frozen=True)
class Attack:
    """One attack: `act(folder)` gives a command line, or a Python call.

    `wanted`: it is `refused`; or refused or without effect (`same`: prints what `intact`'s
    command prints, or returns True); or
    refused or read (`any`), where either may be right.
    """

    group: str
    name: str
    act: Callable[[Path], Sequence[str] | Callable[[], Any]]
    wanted: Wanted = "refused"
    intact: Callable[[Path], Sequence[str]] | None = None


@dataclass(frozen=True)
class Outcome:
    """How an attack ended, and what was said."""

    group: str
    name: str
    end: End
    leak: bool
    said: str


def command(args: Sequence[str]) -> tuple[int, str, str]:
    """Run a command line in this process: exit code, standard output, standard error; any other exception comes out."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(args))
        except SystemExit as stop:
            code = stop.code
    return int(code or 0) if not isinstance(code, str) else 1, out.getvalue(), err.getvalue()


class Ledger:
    """Runs attacks and counts."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._intact: dict[str, str] = {}

    def run(self, attack: Attack, folder: Path) -> Outcome:
        """Run one attack in an empty folder of its own."""
        folder.mkdir(parents=True)
        try:
            act = attack.act(folder)
            end, said = self._called(act) if callable(act) else self._commanded(act, attack, folder)
        except BaseException as error:  # what nothing caught, Rust's panics and interrupts included
            if isinstance(error, KeyboardInterrupt):
                raise
            end, said = "traceback", "".join(traceback.format_exception(error)[-3:])
        outcome = Outcome(attack.group, attack.name, end, bool(LEAKS.search(said)) and end == "refused", said[-600:])
        self.outcomes.append(outcome)
        return outcome

    def _called(self, act: Callable[[], Any]) -> tuple[End, str]:
        try:
            return ("same", "") if act() is True else ("accepted", "returned")
        except ValueError as error:
            return "refused", str(error)

    def _commanded(self, args: Sequence[str], attack: Attack, folder: Path) -> tuple[End, str]:
        code, out, err = command(args)
        said = f"interp {' '.join(args)}\n{err[-500:]}"
        if code:
            own = [line for line in err.splitlines() if line.startswith("interp: ")]
            told = len(own) == 1 or (code == 1 and ("FAIL" in out or "failures.jsonl" in out))
            return ("refused", own[0] if own else "") if told else ("traceback", said)
        if attack.wanted == "any":
            return "read", ""
        if attack.wanted == "same" and attack.intact is not None:
            if attack.group not in self._intact:
                whole = folder / "whole"
                whole.mkdir()
                self._intact[attack.group] = command(attack.intact(whole))[1]
            return ("same", "") if _text(out) == _text(self._intact[attack.group]) else ("accepted", said)
        return "accepted", said

    def table(self) -> str:
        """One row a group."""
        head = ("attacks", "tried", "refused", "no effect", "read", "tracebacks", "silently accepted", "leaks")
        rows: list[tuple[str, ...]] = [head]
        for group in [*dict.fromkeys(o.group for o in self.outcomes), "all"]:
            own = [o for o in self.outcomes if group in (o.group, "all")]
            ends = Counter(o.end for o in own)
            counts = [len(own), *(ends[e] for e in ("refused", "same", "read", "traceback", "accepted"))]
            rows.append((group, *(str(n) for n in (*counts, sum(o.leak for o in own)))))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    @property
    def bad(self) -> list[Outcome]:
        """What must not be."""
        return [o for o in self.outcomes if o.end in ("traceback", "accepted") or o.leak]

    def write(self, path: Path, more: Iterable[Any] = ()) -> None:
        """Every outcome as JSON."""
        content = {"attacks": [asdict(o) for o in self.outcomes], "kills": [asdict(k) for k in more]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _text(printed: str) -> str:
    """What was printed, without the names of folders."""
    return re.sub(r"/[\w./-]+", "", printed)
