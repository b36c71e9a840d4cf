"""Locks and whole files."""

import errno
import os
from pathlib import Path

import pytest

from interp.folder import is_temporary, locked, replacing, write_text


def test_one_at_a_time(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(ValueError, match="another run is writing to"), locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists(), "the refused one leaves the lock alone"
    with locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"

    def full(self, *_, **__):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "new")
    assert not list(tmp_path.iterdir()), "nothing is left that a later start would stumble over"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as new:
            new.write_text("half of")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_what_a_kill_leaves_is_cleared_away(tmp_path):
    left = tmp_path / f".summary.json.{os.getpid()}"
    left.write_text("half of")
    mine = tmp_path / ".hidden"
    mine.write_text("not a run's")
    assert is_temporary(left)
    with locked(tmp_path):
        assert not left.exists()
    assert mine.exists()
