"""What decides the results of a run, in `manifest.json`: a folder belongs to one run, and goes on only as that."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from interp.folder import is_temporary, write_text

PACKAGES = ("lvlm-interp", "torch", "transformers", "nnsight", "pillow", "torchvision")
"""The last two resize pictures, not quite alike: transformers takes torchvision where it is installed."""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def content_digest(path: Path) -> str:
    """The SHA-256 of a file's content; ValueError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of files by name: a manifest knows what was in them, not where they lay."""
    return {name: content_digest(path) for name, path in files.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder; ValueError if there is none, or it cannot be read."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: expected a manifest.json, as interp study writes it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON in UTF-8"
        raise ValueError(
            f"{path} cannot be read, so nobody knows what the records beside it are of; restore it from a copy, "
            f"or remove the folder and run again: {reason}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no manifest: expected a JSON object, got {str(found)[:60]}")
    return found


@dataclass(frozen=True)
class Manifest:
    """Everything that decides a run's results; two runs with equal manifests may share a folder."""

    settings: dict[str, Any]

    @classmethod
    def of(cls, **settings: Any) -> "Manifest":
        """A manifest of settings, with the versions of the libraries that matter."""
        versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
        return cls(json.loads(json.dumps({"versions": versions, **settings})))

    @property
    def digest(self) -> str:
        """A short name of the settings."""
        return sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    def check(self, folder: Path) -> None:
        """ValueError if `folder` holds a run with other settings, or something that is no run."""
        if not (folder / "manifest.json").exists():
            if folder.exists() and not all(is_temporary(path) for path in folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run; choose another --out")
            return
        there = read_manifest(folder)
        differing = sorted(k for k in {*there, *self.settings} if there.get(k) != self.settings.get(k))
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings (differing: {', '.join(differing)}); "
                "choose another --out or remove it"
            )

    def claim(self, folder: Path) -> None:
        """Make `folder` this run's, or check that it is."""
        self.check(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "manifest.json").exists():
            write_text(folder / "manifest.json", json.dumps(self.settings, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
