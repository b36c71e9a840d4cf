"""The import arrows of the package (CONTRIBUTING.md) and a few house rules, read from the source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "interp"
BASE = {"metrics", "evaluate"}
MAY_IMPORT: dict[str, set[str]] = {
    "metrics": set(),
    "evaluate": set(),
    "testbed": BASE,
    "models": {"testbed"},
    "trace": {"models", "metrics"},
    "interventions": {"trace", "models", "metrics"},
    "data": {"testbed", "evaluate"},
    "records": set(),
    "plots": {"evaluate"},
    "report": {"plots", *BASE},
    "study": {"interventions", "trace", "models", "data", "records", "report", *BASE},
    "cli": {"study", "models", "testbed"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The parts of interp that a file imports."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "interp" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("interp.")}
    return parts


def external(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = [n.module for n in tree if isinstance(n, ast.ImportFrom) and n.module]
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules += [alias.name for n in tree if isinstance(n, ast.Import) for alias in n.names]
    return {m.split(".")[0] for m in modules}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    assert part in MAY_IMPORT, f"{part} is new: give it its place in the arrows"
    wrong = imported(path) - MAY_IMPORT[part] - {part}
    assert not wrong, f"interp.{part} must not import {sorted(wrong)}"


def test_the_arrows_have_no_cycle():
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        free = [p for p, below in MAY_IMPORT.items() if p not in order and below <= set(order)]
        assert free, "a cycle"
        order += free


def test_nnsight_is_imported_in_one_place():
    users = [path for path in FILES if "nnsight" in external(path)]
    assert [str(p.relative_to(PACKAGE)) for p in users] == ["models/lvlm.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") <= 350
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_importing_does_nothing_inside_functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{path}: an import inside {node.name}"
