"""Who does which batch: files that only one process can make, so that a launch shares its work as it goes.

Each process begins with its own part and then takes what others have not begun, from the end, so that none waits for a
slow one longer than that needs for a batch.  A file is made just before the work, one for a batch; this asks little of
a shared file system, and nothing but that making a file fails where it exists.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.experiments.records import ItemId


@dataclass(frozen=True)
class Batch:
    """A batch of a method: its number among the method's, and its items."""

    method: int
    number: int
    items: tuple[ItemId, ...]


@dataclass(frozen=True)
class Claims:
    """The claims of a launch on the batches of one table; a single process has nobody to ask."""

    folder: Path
    shared: bool

    @classmethod
    def of(cls, out: Path, stem: str, world: int) -> "Claims":
        """Where the processes of a launch make their files."""
        return cls(out / f".{stem}.claims", world > 1)

    def clear(self) -> None:
        """Forget them all: those of a launch that was killed, or of one that is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self) -> None:
        """Forget those of a launch before this one, and be ready for new ones."""
        self.clear()
        if self.shared:
            self.folder.mkdir()

    def take(self, batch: Batch) -> bool:
        """Whether a batch is this process's from now on."""
        if not self.shared:
            return True
        try:
            os.close(os.open(self.folder / f"{batch.method}-{batch.number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True


def own_and_others(batches: Sequence[Batch], rank: int, world: int) -> tuple[list[Batch], list[Batch]]:
    """The batches that a process begins with, in order, and those of others from the end."""
    own = [b for b in batches if b.number % world == rank]
    return own, [b for b in reversed(batches) if b.number % world != rank]


def by_method(batches: Sequence[Batch]) -> Iterator[tuple[int, list[Batch]]]:
    """Batches in order, those of a method together."""
    for method in dict.fromkeys(b.method for b in batches):
        yield method, [b for b in batches if b.method == method]
