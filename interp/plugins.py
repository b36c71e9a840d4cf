"""What users bring themselves: methods, rankings and scores, by `package.module:Name` or by an entry point.

    --methods mypackage.mymodule:MyMethod:alpha=2        a class in a module that Python can import
    --methods my-method:alpha=2                          the same under a name that an installed package registers:

    [project.entry-points."interp.methods"]              # in that package's pyproject.toml
    my-method = "mypackage.mymodule:MyMethod"

The current folder counts as importable, as it does for `python -m`.
"""

import sys
from importlib import import_module
from importlib.metadata import entry_points
from os import getcwd
from typing import Any

METHODS = "interp.methods"
SCORES = "interp.scores"
"""Groups of entry points."""


def registered(group: str) -> list[str]:
    """The names that installed packages register."""
    return sorted(entry.name for entry in entry_points(group=group))


def brought(group: str, name: str) -> Any | None:
    """What `package.module:Name` or an entry point of `group` names; None if it is neither.

    Raises ValueError if it cannot be imported, naming what failed.
    """
    for entry in entry_points(group=group):
        if entry.name == name:
            return _imported(entry.value)
    return _imported(name) if is_path(name) else None


def is_path(name: str) -> bool:
    """Whether a name is written `package.module:Name`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def split_path(text: str) -> tuple[str, str]:
    """Part a method's text into its name, `package.module:Name` or a plain one, and its settings."""
    first, _, rest = text.partition(":")
    second, _, settings = rest.partition(":")
    return (f"{first}:{second}", settings) if second and is_path(f"{first}:{second}") else (first, rest)


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    if getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(getcwd())
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot bring {path}: {error}; expected package.module:Name of something that Python can import here"
        ) from error
