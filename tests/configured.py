"""Configurations from flat settings, as the command line takes them."""

from dataclasses import fields, replace
from typing import Any, TypeVar

C = TypeVar("C")


def configured(kind: type[C], **settings: Any) -> C:
    """A configuration whose parts (model, data, run) take the settings that are theirs."""
    made: dict[str, Any] = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name in ("model", "data", "run"):
            part: Any = field.default
            own = {f.name for f in fields(part)} & set(settings)
            made[field.name] = replace(part, **{name: settings.pop(name) for name in own})
    return kind(**made, **settings)
