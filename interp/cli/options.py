"""From configurations to options: flat names, and mistakes told when the command is called."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import tyro

from interp.experiments.config import DataConfig, ModelConfig, RunConfig

C = TypeVar("C")
flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes)
"""A command whose options are named after the fields of its parts: --limit, not --data.limit."""


class Unchecked:
    """Settings from the command line: checked when called, so that a mistake is told in one line, not by the parser."""

    def __post_init__(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class UncheckedModel(Unchecked, ModelConfig):
    """Which model, and how it is loaded."""


@dataclass(frozen=True)
class UncheckedData(Unchecked, DataConfig):
    """Which images, and what the model is asked about them."""


@dataclass(frozen=True)
class UncheckedRun(Unchecked, RunConfig):
    """How it runs, and where the results go."""


TESTBED, DATA, RUN = UncheckedModel(), UncheckedData(), UncheckedRun()


def checked(command: Any, kind: type[C]) -> C:
    """The configuration that a command's options make."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        value = getattr(command, field.name)
        parts = {UncheckedModel: ModelConfig, UncheckedData: DataConfig, UncheckedRun: RunConfig}
        values[field.name] = parts[type(value)](**vars(value)) if type(value) in parts else value
    return kind(**values)
