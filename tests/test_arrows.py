"""The import arrows of the package (CONTRIBUTING.md) and a few house rules, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "interp"
BASE = {"metrics", "evaluate"}
MAY_IMPORT: dict[str, set[str]] = {
    "metrics": set(),
    "evaluate": set(),
    "english": set(),
    "folder": set(),
    "pictures": set(),
    "testbed": {"english", "folder", *BASE},
    "models": {"testbed", "pictures"},
    "trace": {"models", "metrics"},
    "interventions": {"plugins", "trace", "models", "metrics"},
    "attribution": {"interventions", "trace", "models", "metrics", "evaluate"},
    "data": {"sources", "testbed", "evaluate", "pictures"},
    "sources": {"evaluate"},
    "plugins": set(),
    "plots": BASE,
    "views": {"attribution", "trace", "models", "plots", "pictures", *BASE},
    "experiments": {
        *("attribution", "interventions", "trace", "models", "data", "sources", "plugins", "plots", "folder"),
        "english",
        *("pictures", *BASE),
    },
    "bench": {
        *("attribution", "data", "evaluate", "experiments", "folder", "interventions", "models", "plots", "testbed"),
        "trace",
    },
    "claims": {"experiments", "attribution", "interventions", "trace", "models", "folder", *BASE},
    "report": {"experiments", "views", "trace", "models", "plots", "folder", "pictures", *BASE},
    "integrations": {"experiments", "interventions", "models"},
    "__main__": {"cli"},
    "cli": {
        "attribution",
        "bench",
        "claims",
        "experiments",
        "folder",
        "views",
        "interventions",
        "trace",
        "models",
        "data",
        "pictures",
        "plots",
        "report",
        "testbed",
        *BASE,
    },
}
"""What each part of the package may import beside itself."""
INSIDE: dict[str, list[set[str]]] = {
    "interventions": [{"base", "directions"}, {"primitives"}, {"methods"}, {"registry"}],
    "plots": [
        {"names", "placing", "style"},
        {"heads"},
        {"attention", "lens", "methods", "sinks", "speed", "sweeps", "verdicts", "words"},
        {"redraw"},
    ],
    "models": [
        {"compat", "families", "inputs", "encoding", "smollm2"},
        {"kernels", "generation"},
        {"steering"},
        {"lvlm"},
        {"sites", "image_free", "layout", "resuming"},
        {"checkpoints", "doctor", "gradients"},
        {"loading"},
    ],
}
"""Floors inside a package, the lowest first: a module imports from its own floor and those below."""
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules(path: Path) -> set[str]:
    """Every module that a file imports, by its full name; relative imports are not allowed."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imported(path: Path) -> set[str]:
    """The parts of interp that a file imports."""
    parts = {m.split(".")[1] for m in modules(path) if m.startswith("interp.")} - {"__version__"}
    assert "interp" not in modules(path) or parts, f"{path}: import a part of interp, not the whole"
    return parts


def external(path: Path) -> set[str]:
    return {m.split(".")[0] for m in modules(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    assert part in MAY_IMPORT, f"{part} is new: give it its place in the arrows"
    wrong = imported(path) - MAY_IMPORT[part] - {part}
    assert not wrong, f"interp.{part} must not import {sorted(wrong)}"


@pytest.mark.parametrize("package", INSIDE)
def test_imports_point_one_way_inside_a_package(package):
    floor = {module: i for i, modules in enumerate(INSIDE[package]) for module in modules}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        own = path.relative_to(PACKAGE / package).with_suffix("").parts[0]
        if own == "__init__":
            continue
        assert own in floor, f"interp.{package}.{own} is new: give it its floor"
        below = {m.split(".")[2] for m in modules(path) if m.startswith(f"interp.{package}.") and m.count(".") > 1}
        above = {m for m in below if m in floor and floor[m] > floor[own]}
        assert not above, f"interp.{package}.{own} must not import {sorted(above)}"


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


def test_imports_stand_at_the_top():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{path}: an import inside {node.name}"


def test_importing_prints_nothing_and_draws_no_random_number():
    files = [p for p in FILES if p.stem != "lmms_eval"]  # lmms-eval imports that one, if it is there
    names = [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for p in files]
    state = "(torch.initial_seed(), numpy.random.get_state()[1].sum(), random.getstate())"
    lines = ["import random, torch, numpy", f"before = {state}", *(f"import {name}" for name in names)]
    code = "\n".join([*lines, f"assert before == {state}"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
