"""What README and docs say holds: their commands parse, their links resolve, what the site adds is there."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import interp
from interp import cli
from interp.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
WRITTEN = sorted([*ROOT.glob("*.md"), *PAGES.rglob("*.md")])
MARK = re.compile(r"<!-- not run here: \S.*-->\s*$")
GENERATED = {"methods.md", *(f"commands/{name.replace(' ', '-')}.md" for name in COMMANDS)}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[tuple[str, bool]]:
    """Each fenced block with whether the line before it marks it as not run."""
    parts = re.split(r"^```[^\n]*\n(.*?)^```\s*$", text, flags=re.M | re.S)
    return [(block, bool(MARK.search(before))) for before, block in zip(parts[::2], parts[1::2], strict=False)]


def commands(block: str) -> list[str]:
    """The lines of a block that start with `interp `, continued lines joined."""
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    return [line for line in lines if line.startswith("interp ")]


def words(line: str) -> list[str]:
    """A command's words as a shell would give them: comments and pipes cut, `$(cat FILE)` read."""
    line = re.sub(r"\$\(cat ([^)]+)\)", lambda found: (ROOT / found[1]).read_text().strip(), line)
    given = shlex.split(line, comments=True)
    return given[1 : given.index("|") if "|" in given else None]


SHOWN = [
    pytest.param(line, id=f"{ids(path)}: {line[:60]}")
    for path in WRITTEN
    for block, marked in blocks(path.read_text(encoding="utf-8"))
    if not marked
    for line in commands(block)
]


def test_the_readme_is_short_and_shows_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") <= 130
    assert sum(len(commands(block)) for block, _ in blocks(readme)) >= 4


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_parses(line, capsys):
    given = words(line)
    if given in (["--help"], ["--version"]):
        cli.main(given)
        return
    assert callable(cli.parse(given))


NOT_RUN = {
    "bench attention": "it measures memory in processes of their own, for many minutes",
    "testbed evaluate": "the figures of the card take long even of two scenes; test_testbed.py tests their parts",
}
"""Commands that are shown and that no test runs, with the reason."""


def _said(node: ast.AST) -> list[str]:
    """The words that a call of main begins with."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.List)):
        return []
    called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    constants = [x.value if isinstance(x, ast.Constant) else None for x in node.args[0].elts]
    return [str(x) for x in constants[:2]] if called == "main" else []


def _refusals(tree: ast.AST) -> set[int]:
    """The nodes inside `with pytest.raises(...)`: what runs there is refused."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "raises" in ast.dump(n.items[0].context_expr)]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def run_by_tests() -> set[str]:
    """The commands that tests run to their end: `main(["study", ...])`."""
    found = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        refused = _refusals(tree)
        for node in ast.walk(tree):
            said = _said(node) if id(node) not in refused else []
            found |= {" ".join(said[:n]) for n in (1, 2)} & set(COMMANDS)
    return found


def _command(given: list[str]) -> str:
    return next(name for name in (" ".join(given[:2]), given[0]) if name in COMMANDS)


def test_every_shown_command_is_run_by_a_test_or_it_is_said_why_not():
    shown = [words(str(param.values[0])) for param in SHOWN]
    shown = [given for given in shown if given not in (["--help"], ["--version"])]
    ran = run_by_tests()
    assert {_command(given) for given in shown} - ran <= set(NOT_RUN)
    assert not set(NOT_RUN) & ran
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for given in shown:
        if _command(given) not in NOT_RUN:
            options = {word for word in given if word.startswith("--")}
            unused = {o for o in options if f'"{o}"' not in source and o[2:].replace("-", "_") not in source}
            assert not unused, f"interp {' '.join(given)}: no test uses {', '.join(unused)}"


def test_a_refused_command_is_not_one_that_ran():
    tree = ast.parse('with pytest.raises(SystemExit):\n    main(["study"])\ncli.main(["testbed", "show", x])')
    refused = _refusals(tree)
    assert [_said(n) for n in ast.walk(tree) if _said(n) and id(n) not in refused] == [["testbed", "show"]]


def test_a_wrong_command_would_be_found(capsys):
    with pytest.raises(ValueError, match="Unrecognized options: --no-such-option, 3"):
        cli.parse(words("interp study --no-such-option 3  # a comment"))
    assert words("interp methods | head -1  # a comment") == ["methods"]
    (block, marked), (_, second) = blocks(
        "<!-- not run here: why -->\n```\ninterp a \\\n  b\n```\nx\n```text\ny\n```\n"
    )
    assert (commands(block), marked, second) == (["interp a b"], True, False)


def anchors(path: Path) -> set[str]:
    """The headings of a page as links name them."""
    outside = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", outside, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_relative_links_resolve(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "``", text)  # code is no link
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        if place in GENERATED or place.startswith("api/"):
            assert path.parent == PAGES, f"{link}: the site alone has this page"
            assert not place.startswith("api/") or hasattr(interp, Path(place).stem)
            continue
        target = path.parent / place if place else path
        assert target.exists(), f"{ids(path)} links {link}"
        assert not anchor or anchor in anchors(target), f"{ids(path)} links {link}"


@pytest.mark.parametrize("path", WRITTEN, ids=ids)
def test_figures_shown_have_their_run_beside_them(path):
    for link in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        folder = (path.parent / link).resolve().parent
        assert folder == ROOT / "figures" or any(folder.rglob("*.json")), f"{link}: no configuration beside it"


def test_the_site_has_a_page_for_each_command_and_package(monkeypatch):
    hooks = _hooks(monkeypatch)
    pages = hooks.generated()
    assert set(pages) >= GENERATED
    for name, command in COMMANDS.items():
        page = pages[hooks.command_page(name)]
        assert f"usage: interp {name}" in page
        assert all(example in page for example in command.examples)
    packages = {p.parent.name for p in (ROOT / "interp").glob("*/__init__.py")} - {"bench", "cli", "integrations"}
    assert packages <= {*hooks.PACKAGES, "plots"}
    assert all(getattr(interp, package) for package in hooks.PACKAGES)


def test_links_of_the_repository_become_links_of_the_site(monkeypatch):
    hooks = _hooks(monkeypatch)
    page = type("Page", (), {"file": type("File", (), {"src_uri": "results.md"})})
    text = "![](../../figures/study/vhd.png) [c](concepts.md) [m](docs/pages/models.md#the-proof)"
    shown = hooks.on_page_markdown(text, page, None, None)
    assert shown == "![](figures/study/vhd.png) [c](concepts.md) [m](models.md#the-proof)"


def _hooks(monkeypatch):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "site_hooks", raising=False)
    return __import__("site_hooks")


def test_the_citation_is_of_this_version_and_names_the_papers():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version"} <= set(cff)
    assert cff["version"] == interp.__version__
    assert [r["identifiers"][0]["value"] for r in cff["references"]] == [
        "arXiv:2412.13949",
        "arXiv:2501.06553",
        "arXiv:2410.10781",
    ]
    assert f"## [{interp.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
