"""Folders that a run writes to: one run in each at a time, and files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made if need be; ValueError if one is in it.

    The lock belongs to the process, so that it goes with a process that is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is writing to {folder}; wait for it, or choose another --out") from None
    try:
        for path in folder.iterdir():
            if is_temporary(path) and path.name != LOCK:
                path.unlink()
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; it becomes `path` when the block ends, and goes if the block fails."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole: a kill or a full disk leaves the old one or none."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` file whole, as `write_text` does."""
    with replacing(path) as new, new.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def is_temporary(path: Path) -> bool:
    """Whether a file is a lock, or what a kill left of a file that was being written."""
    return path.name == LOCK or (path.name.startswith(".") and path.suffix[1:].isdigit())
