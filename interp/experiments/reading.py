"""Reading the items of a run ahead, in processes that end with the one that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from interp.experiments.records import ItemId

Pairs = list[tuple[ItemId, Any]]
_PR_SET_PDEATHSIG = 1
"""Linux, prctl(2): the signal that a process gets when its parent dies."""


class _Batches(Dataset[Pairs]):
    """Batches of items by id, an unreadable one as its error: it must not end the run."""

    def __init__(self, batches: Sequence[Sequence[ItemId]], load: Callable[[ItemId], Any], reader: int | None) -> None:
        self.batches, self.load, self.reader = batches, load, reader

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Pairs:
        found = []
        for item in self.batches[index]:
            if self.reader is not None and os.getppid() != self.reader:
                os._exit(1)  # nobody is left to read for
            try:
                found.append((item, self.load(item)))
            except (ValueError, OSError, MemoryError) as error:
                found.append((item, error))
        return found


def _as_they_are(pairs: Pairs) -> Pairs:
    """In place of a collation that would turn numbers into tensors."""
    return pairs


def _end_with(parent: int, _: int) -> None:
    """In a new worker: be killed when the process that started it is (Linux; elsewhere it looks between items)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed in between
        os._exit(1)


def read_batches(
    batches: Sequence[Sequence[ItemId]], load: Callable[[ItemId], Any], workers: int = 0
) -> Iterator[Pairs]:
    """Each batch as pairs of an id and what was read, or the error if it cannot be read."""
    parent = os.getpid()
    items = _Batches(batches, load, parent if workers else None)
    begin = partial(_end_with, parent) if workers else None
    yield from DataLoader(items, None, num_workers=workers, collate_fn=_as_they_are, worker_init_fn=begin)
