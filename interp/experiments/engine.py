"""Running over items so that nothing is lost: a lock, shards over processes, halved batches, a list of what failed.

Every experiment that goes over images or questions is a `Setup` (model and images, once) and a `Job` (what to do with
a batch, and the records that gives), which a `Run` works through.  Started by `accelerate launch --num_processes N
-m interp ...`, each process takes every N-th batch and writes a file of its own; the first one joins them in the order
of a single process.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import PartialState
from tqdm import tqdm

from interp.experiments.config import RunConfig
from interp.experiments.manifest import Manifest
from interp.experiments.reading import read_batches
from interp.experiments.records import FailureRecord, ItemId, Record, RecordFile, read_records, to_json
from interp.folder import locked, replacing
from interp.models import NonFiniteLogitsError

Key = tuple[ItemId, str]
R = TypeVar("R", bound=Record)


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


@dataclass(frozen=True)
class Job(Generic[R]):
    """Records to be made: one for each item and name (of a method), by `work(name, samples)` for a batch.

    They go to `stem.jsonl`.  A name in `least_rows` needs so many rows in a batch.  `image_of` tells the image of an
    item that is none (a question).
    """

    stem: str
    kind: type[R]
    items: Sequence[ItemId]
    names: Sequence[str]
    load: Callable[[ItemId], Any]
    work: Callable[[str, Sequence[Any]], list[R]]
    unit: str = "image"
    least_rows: Mapping[str, int] = field(default_factory=dict)
    image_of: Callable[[ItemId], ItemId] | None = None

    def failure(self, item: ItemId, name: str, error: str) -> FailureRecord:
        """The record of an item that failed."""
        if self.image_of is None:
            return FailureRecord(item, name, error)
        return FailureRecord(self.image_of(item), name, error, item)

    def check(self, batch_size: int) -> None:
        """ValueError if a method needs more rows than there can be."""
        require_rows(self.least_rows, self.unit, len(self.items), batch_size)


def require_rows(least_rows: Mapping[str, int], unit: str, n_items: int, batch_size: int) -> None:
    """ValueError if a method needs more rows in a batch than there can be."""
    for name, least in least_rows.items():
        if least > min(batch_size, n_items):
            raise ValueError(
                f"{name} needs at least {least} {unit}s in a batch, got {n_items} in all and batches of {batch_size}"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or a CPU, however deep a library has wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError | MemoryError):
            return True
        words = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
        if isinstance(seen, RuntimeError) and any(word in str(seen) for word in words):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_Pairs = Sequence[tuple[ItemId, Any]]


def halving(
    pairs: _Pairs, work: Callable[[Sequence[Any]], list[R]], least: int = 1
) -> Iterator[tuple[_Pairs, list[R] | str]]:
    """Work on a batch of `(id, sample)`, on its halves if memory is short or logits are not finite, and so on.

    Yields each part with its records, or with what went wrong where it cannot be halved into parts of `least` rows.
    """
    if not pairs:
        return
    if len(pairs) < least:
        yield pairs, f"it needs {least} rows in a batch, and no other of its batch could be read"
        return
    try:
        yield pairs, work([sample for _, sample in pairs])
        return
    except (RuntimeError, ValueError, MemoryError) as error:
        if is_out_of_memory(error):
            failure = f"out of memory: {error}"
        elif isinstance(error, NonFiniteLogitsError):
            failure = str(error)
        else:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(pairs) < 2 * least:
        yield pairs, failure
        return
    middle = len(pairs) // 2
    for half in (pairs[:middle], pairs[middle:]):
        yield from halving(half, work, least)


def cut(items: Sequence[ItemId], size: int, least: int = 1) -> list[list[ItemId]]:
    """Batches of `size` in order, always cut at the same places, so that a run that goes on computes what one does.

    A rest of fewer than `least` goes with the batch before it.
    """
    starts = list(range(0, len(items), size))
    if len(starts) > 1 and len(items) - starts[-1] < least:
        starts.pop()
    return [list(items[start:stop]) for start, stop in pairwise([*starts, len(items)])]


@dataclass(frozen=True)
class Run:
    """A folder of records that this process, and others of its launch, add to."""

    out: Path
    shard: Shard

    @classmethod
    @contextmanager
    def opened(cls, out: Path, manifest: Manifest, shard: Shard) -> Iterator["Run"]:
        """Claim the folder and keep other runs out of it; ValueError if one is in it, or it is another's.

        The processes of a launch leave together, so that what the first one writes at the end is there for all.
        """
        with ExitStack() as stack:
            if shard.rank == 0:
                manifest.check(out)
                stack.enter_context(locked(out))
                manifest.claim(out)
            shard.wait()
            yield cls(out, shard)
            shard.wait()

    @property
    def failures(self) -> list[FailureRecord]:
        """What failed in the end."""
        return read_records(self.out / "failures.jsonl", FailureRecord)

    def _own(self, stem: str) -> Path:
        return self.out / (f"{stem}.{self.shard.rank}.jsonl" if self.shard.world > 1 else f"{stem}.jsonl")

    def _files(self, stem: str) -> list[Path]:
        return [self.out / f"{stem}.jsonl", *sorted(self.out.glob(f"{stem}.[0-9]*.jsonl"))]

    def _records(self, job: Job[R]) -> dict[Key, R]:
        """Every record so far, of all processes, by item and method."""
        items, names = set(job.items), set(job.names)
        found: dict[Key, R] = {}
        for path in self._files(job.stem):
            for record in read_records(path, job.kind):
                key = (record.item, record.method)
                if record.item not in items or record.method not in names:
                    raise ValueError(f"{path}: {key} is not of this run; remove the line, or the folder, and run again")
                if key in found and to_json(found[key]) != to_json(record):
                    raise ValueError(f"{path}: {key} has two different records; remove one of them and run again")
                found.setdefault(key, record)
        return found

    def made(self, job: Job[R], config: RunConfig) -> list[R] | None:
        """Make the records that are missing; all of them in the order of one process, None in the other processes."""
        job.check(config.batch_size)
        done = set(self._records(job))
        if self.shard.rank == 0:  # what failed before is tried again
            for path in self.out.glob("failures*.jsonl"):
                path.unlink()
        self.shard.wait()  # before anyone writes
        own = RecordFile(self._own(job.stem), job.kind)
        failed = RecordFile(self.out / f"failures.{self.shard.rank}.jsonl", FailureRecord)
        quiet: dict[str, Any] = {"disable": True} if self.shard.rank else {}  # else as TQDM_DISABLE says
        with tqdm(total=len(job.names) * len(job.items), initial=len(done), unit=job.unit, **quiet) as bar:
            for name in job.names:
                bar.set_description(name)
                least = job.least_rows.get(name, 1)
                mine = cut(job.items, config.batch_size, least)[self.shard.rank :: self.shard.world]
                left = [batch for batch in mine if any((i, name) not in done for i in batch)]
                for pairs in read_batches(left, job.load, config.workers):
                    missing = {i for i, _ in pairs if (i, name) not in done}
                    wrong = {i: str(e) for i, e in pairs if isinstance(e, Exception)}
                    readable = [pair for pair in pairs if pair[0] not in wrong]
                    for part, records in halving(readable, partial(job.work, name), least):
                        if isinstance(records, str):
                            wrong |= {i: records for i, _ in part}
                        else:
                            own.append(record for record in records if record.item in missing)
                    failed.append(job.failure(i, name, e) for i, e in wrong.items() if i in missing)
                    bar.update(len(missing))
        return self._joined(job)

    def _joined(self, job: Job[R]) -> list[R] | None:
        """All records in the order of a single process, written as one file."""
        self.shard.wait()
        if self.shard.rank:
            return None
        found = self._records(job)
        records = [found[i, name] for name in job.names for i in job.items if (i, name) in found]
        parts = sorted(self.out.glob("failures.*.jsonl"))
        _write(self.out / "failures.jsonl", FailureRecord, [r for p in parts for r in read_records(p, FailureRecord)])
        first, *others = self._files(job.stem)
        lines = first.read_bytes().count(b"\n") if first.exists() else 0  # a record may stand there twice
        if others or lines != len(records) or [(r.item, r.method) for r in records] != list(found):
            _write(first, job.kind, records)
        for path in (*parts, *others):
            path.unlink()
        return records


def _write(path: Path, kind: type[R], records: Sequence[R]) -> None:
    """Write a whole file of records; none if there are none."""
    if records:
        with replacing(path) as new:
            RecordFile(new, kind).append(records)
