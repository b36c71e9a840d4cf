"""Kills: each command is killed at random moments, goes on, and must end with the records of an unbroken run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attack.attacks import rows

KILLED: dict[str, tuple[str, ...]] = {
    "study": ("study", "--limit", "30", "--batch-size", "5", "--methods", "greedy,vhr"),
    "pope": ("study", "--task", "pope", "--limit", "8", "--batch-size", "4", "--methods", "greedy,m3id"),
    "sweep": ("sweep", "--limit", "15", "--batch-size", "5", "--methods", "vhr", "--vary", "alpha=1,2"),
    "ablate": ("ablate", "--limit", "10", "--batch-size", "5", "--heads", "L0H0+L1H1"),
    "attention": ("attention", "--limit", "12", "--max-new-tokens", "20"),
    "causal": ("causal", "--split", "dev", "--limit", "6"),
    "workers": ("study", "--limit", "30", "--batch-size", "5", "--methods", "greedy", "--workers", "2"),
}


@dataclass(frozen=True)
class Killed:
    """A run that was killed: how often, and whether it ended as an unbroken one does."""

    command: str
    kills: int
    same: bool
    said: str


def _started(args: Sequence[str], out: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "interp", *args, "--out", str(out)]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def _records(out: Path) -> dict[str, list[dict[str, object]]]:
    found = {str(p.relative_to(out)): rows(p) for p in sorted(out.rglob("*.jsonl"))}
    return {name: content for name, content in found.items() if "failures" not in name}


def kill(name: str, folder: Path, seed: int, deadline: float, most: int = 5) -> Killed:
    """Run a command unbroken, then with kills at random moments of that run's length."""
    rng, args = random.Random(seed), KILLED[name]
    begun = time.monotonic()
    whole = _started(args, folder / "whole")
    said = whole.communicate()[1]
    if whole.returncode:
        return Killed(name, 0, False, said[-400:])
    length, kills = time.monotonic() - begun, 0
    while True:
        run = _started(args, folder / "killed")
        try:
            last = kills >= most or time.monotonic() > deadline
            said = run.communicate(timeout=None if last else rng.uniform(0.3, 1.0) * length)[1]
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            kills += 1
            continue
        same = run.returncode == 0 and _records(folder / "killed") == _records(folder / "whole")
        return Killed(name, kills, same, "" if same else said[-400:])
