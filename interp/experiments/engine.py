"""Running over items so that nothing is lost: a lock, shards over processes, halved batches, a list of what failed.

Started by `accelerate launch --num_processes N -m interp ...`, each process takes every N-th batch and writes a file of
its own; the first one joins them in the order of a single process.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from interp.experiments.records import Manifest, Records

_Row = dict[str, Any]
Key = tuple[Any, str]


@dataclass(frozen=True)
class Shard:
    """Which part of the batches this process takes, of how many."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls, device: str) -> "Shard":
        """As the launcher says (`RANK`, `WORLD_SIZE`); one process without one."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        state = PartialState(cpu=device == "cpu", timeout=timedelta(days=2))  # ranks may be uneven
        return cls(state.process_index, state.num_processes)

    def device(self, device: str) -> str:
        """The device of this process: `cuda` becomes one of its own."""
        return f"cuda:{PartialState().local_process_index}" if self.world > 1 and device == "cuda" else device

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            PartialState().wait_for_everyone()


class _Items(Dataset[list[tuple[Any, Any]]]):
    """Items by id, an unreadable one as its error: it must not end the run."""

    def __init__(self, batches: Sequence[Sequence[Any]], load: Callable[[Any], Any]) -> None:
        self.batches, self.load = batches, load

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[tuple[Any, Any]]:
        found = []
        for item in self.batches[index]:
            try:
                found.append((item, self.load(item)))
            except (ValueError, OSError) as error:
                found.append((item, error))
        return found


def _as_they_are(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """In place of a collation that would turn numbers into tensors."""
    return pairs


_Pairs = Sequence[tuple[Any, Any]]


def halving(pairs: _Pairs, work: Callable[[Sequence[Any]], list[_Row]]) -> Iterator[tuple[_Pairs, list[_Row] | str]]:
    """Work on a batch of `(id, sample)`, on its halves if memory is short, and so on.

    Yields each part with its records, or with what went wrong for a sample that does not fit even alone.
    """
    if not pairs:
        return
    try:
        yield pairs, work([sample for _, sample in pairs])
        return
    except (torch.OutOfMemoryError, MemoryError) as error:
        failure = f"out of memory: {error}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(pairs) == 1:
        yield pairs, failure
        return
    middle = len(pairs) // 2
    for half in (pairs[:middle], pairs[middle:]):
        yield from halving(half, work)


def in_order(ids: Sequence[Any], names: Iterable[str]) -> dict[Key, int]:
    """The place of each record in a run by one process."""
    return {(i, name): place for place, (name, i) in enumerate((name, i) for name in names for i in ids)}


@dataclass(frozen=True)
class Run:
    """A folder of records that this process, and others of its launch, add to."""

    out: Path
    shard: Shard
    stem: str
    id_field: str

    @property
    def _own(self) -> Path:
        return self.out / (f"{self.stem}.{self.shard.rank}.jsonl" if self.shard.world > 1 else f"{self.stem}.jsonl")

    def _files(self) -> list[Path]:
        return [self.out / f"{self.stem}.jsonl", *sorted(self.out.glob(f"{self.stem}.[0-9]*.jsonl"))]

    @classmethod
    @contextmanager
    def opened(cls, out: Path, manifest: Manifest, shard: Shard, stem: str, id_field: str) -> Iterator["Run"]:
        """Claim the folder and keep other runs out of it; ValueError if one is in it."""
        if shard.rank == 0:
            manifest.claim(out)
        shard.wait()
        lock = FileLock(out / ".lock")
        try:
            if shard.rank == 0:
                lock.acquire(timeout=0)
            shard.wait()
            yield cls(out, shard, stem, id_field)
        except Timeout:
            raise ValueError(f"another run is writing to {out}; wait for it, or choose another --out") from None
        finally:
            if lock.is_locked:
                (out / ".lock").unlink(missing_ok=True)
                lock.release()

    def rows(self) -> list[_Row]:
        """Every record so far, of all processes."""
        return [row for path in self._files() for row in Records(path).rows]

    def work_through(
        self,
        ids: Sequence[Any],
        names: Iterable[str],
        load: Callable[[Any], Any],
        work: Callable[[str, Sequence[Any]], list[_Row]],
        *,
        batch_size: int,
        workers: int = 0,
        unit: str = "item",
    ) -> None:
        """Make the records that are missing: `work(name, samples)` gives one or more a sample, naming it by id.

        Batches are always cut at the same places, so that a run that goes on computes what an unbroken one does.
        """
        names = list(names)
        done = {(row[self.id_field], row["method"]) for row in self.rows()}
        if self.shard.rank == 0:  # what failed before is tried again
            for path in self.out.glob("failures*.jsonl"):
                path.unlink()
        self.shard.wait()  # before anyone writes
        own, failed = Records(self._own), Records(self.out / f"failures.{self.shard.rank}.jsonl")
        total = len(names) * len(ids)
        quiet: dict[str, Any] = {"disable": True} if self.shard.rank else {}  # else as TQDM_DISABLE says
        bar = tqdm(total=total, initial=len(done), unit=unit, **quiet)
        with bar:
            for name in names:
                bar.set_description(name)
                cut = [list(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
                mine = [b for i, b in enumerate(cut) if i % self.shard.world == self.shard.rank]
                left = [b for b in mine if any((i, name) not in done for i in b)]
                loader = DataLoader(_Items(left, load), batch_size=None, num_workers=workers, collate_fn=_as_they_are)
                for pairs in loader:
                    missing = {i for i, _ in pairs if (i, name) not in done}
                    wrong = {i: str(e) for i, e in pairs if isinstance(e, Exception)}
                    readable = [pair for pair in pairs if pair[0] not in wrong]
                    for part, rows in halving(readable, partial(work, name)):
                        if isinstance(rows, str):
                            wrong[part[0][0]] = rows
                        else:
                            own.append(row for row in rows if row[self.id_field] in missing)
                    failed.append({self.id_field: i, "method": name, "error": e} for i, e in wrong.items())
                    bar.update(len(missing))

    def joined(self, order: Mapping[Key, int]) -> list[_Row] | None:
        """All records in the order of a single process, written as one file; None in all processes but the first."""
        self.shard.wait()
        if self.shard.rank:
            return None
        files = self._files()
        rows = sorted(self.rows(), key=lambda row: order[row[self.id_field], row["method"]])
        parts = sorted(self.out.glob("failures.*.jsonl"))
        failures = [row for path in parts for row in Records(path).rows]
        for path in parts:
            path.unlink()
        if failures:
            Records(self.out / "failures.jsonl").append(failures)
        if len(files) > 1 or rows != Records(files[0]).rows:
            new = self.out / f"{self.stem}.new"
            new.unlink(missing_ok=True)
            Records(new).append(rows)
            os.replace(new, files[0])
            for path in files[1:]:
                path.unlink()
        return rows
