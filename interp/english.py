"""Real English text that comes with Python: its reference manual and the docstrings of its standard library.

Both are under the licence of the Python Software Foundation (PSF-2.0).  They change with Python's version, so whoever
reports a number reports `digest` with it.
"""

import ast
import sysconfig
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

LICENCE = "PSF-2.0"
LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib", "pydoc_data", "turtledemo")
"""Folders of the standard library whose docstrings are others' or hardly prose."""
SHORTEST = 200
"""Characters: shorter docstrings are half signature."""


@cache
def reference_manual() -> str:
    """The pages of Python's language reference that `help()` shows, some 460,000 characters, in order of title."""
    topics: Any = import_module("pydoc_data.topics")  # half a megabyte, read when asked for
    return "\n\n".join(topics.topics[title] for title in sorted(topics.topics))


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # the library holds broken files for its own tests
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text and len(text) >= SHORTEST]


@cache
def python_documentation() -> str:
    """The reference manual, then the longer docstrings of the standard library: some 1.7 million characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not set(path.relative_to(root).parts) & set(LEFT_OUT)]
    texts = dict.fromkeys(text for path in files for text in _docstrings(path))
    return "\n\n".join([reference_manual(), *texts])


def digest(text: str) -> str:
    """A short name of a text's content."""
    return sha256(text.encode()).hexdigest()[:12]
