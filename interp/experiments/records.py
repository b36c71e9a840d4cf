"""What a study writes: a manifest, and JSONL records that are flushed as they come and survive a kill."""

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Manifest:
    """Everything that decides a run's results; two runs with equal manifests may share a folder."""

    settings: dict[str, Any]

    @classmethod
    def of(cls, **settings: Any) -> "Manifest":
        """A manifest of settings, with the versions of the libraries that matter."""
        packages = ("lvlm-interp", "torch", "transformers", "nnsight")
        versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
        return cls(json.loads(json.dumps({"versions": versions, **settings})))

    @property
    def digest(self) -> str:
        """A short name of the settings."""
        return sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    def claim(self, folder: Path) -> None:
        """Make `folder` this run's, or check that it is; ValueError if it holds a run with other settings."""
        path = folder / "manifest.json"
        if not path.exists():
            if folder.exists() and any(folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run; choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            return
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(k for k in {*there, *self.settings} if there.get(k) != self.settings.get(k))
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings (differing: {', '.join(differing)}); "
                "choose another --out or remove it"
            )


class Records:
    """An append-only JSONL file; a line that a kill cut short is dropped when the file is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            whole = path.read_bytes()
            kept = whole[: whole.rfind(b"\n") + 1]
            if len(kept) < len(whole):
                path.write_bytes(kept)
            self.rows = [json.loads(line) for line in kept.splitlines()]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write records and hand them to the operating system at once."""
        new = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
            file.flush()
        self.rows += new


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
