"""What mkdocs adds to the written pages: a page for each command, method list and package, files of the repository."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import interp
from interp import cli
from interp.cli.commands import COMMANDS, Command
from interp.interventions import describe_methods

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("models", "trace", "metrics", "interventions", "attribution", "evaluate", "experiments", "views", "testbed"),
    *("claims", "report"),
)
PULLED = (
    "CONTRIBUTING.md",
    "LOG.md",
    "CHANGELOG.md",
    "interp/testbed/weights/*/README.md",
    "figures/combinations.md",
    "figures/organisms/across.md",
    "figures/claims/*/claims.md",
    "figures/**/*.png",
    "notebooks/*.ipynb",
)
"""Files of the repository that are part of the site, at the same place from its root."""


def command_page(name: str) -> str:
    """Where the page of a command lies."""
    return f"commands/{name.replace(' ', '-')}.md"


def api_page(package: str) -> str:
    """Where the page of a package lies."""
    return f"api/{package}.md"


def generated() -> dict[str, str]:
    """Every page that is made and not written, by its place."""
    pages = {command_page(name): _command(name, command) for name, command in COMMANDS.items()}
    pages |= {api_page(package): f"::: interp.{package}\n" for package in PACKAGES}
    pages["api/interp.md"] = _top_level()
    pages["methods.md"] = _methods()
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the made pages where the navigation leaves room for them."""
    claimed = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("figures/claims/*/claims.md"))
    filled: dict[str, list[Any]] = {
        "Claims, model by model": [{Path(place).parent.name: place} for place in claimed],
        "Commands": [{f"interp {name}": command_page(name)} for name in COMMANDS],
        "API reference": [
            {"interp": "api/interp.md"},
            *({f"interp.{package}": api_page(package)} for package in PACKAGES),
        ],
    }
    config.nav = [{title: filled.get(title, place)} for entry in config.nav or [] for title, place in entry.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages and the files of the repository."""
    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    for pattern in PULLED:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that hold in the repository hold on the site, whose root shows both `docs/pages` and the repository's."""
    depth = page.file.src_uri.count("/")
    outward = "](" + "../" * (depth + 2)
    return markdown.replace(outward, "](" + "../" * depth).replace("](docs/pages/", "](")


def _command(name: str, command: Command) -> str:
    examples = "\n".join(command.examples)
    return (
        f"# interp {name}\n\n{command.about}\n\n```\n{examples}\n```\n\n"
        f'```text title="interp {name} --help"\n{_help(name)}\n```\n'
    )


def _help(name: str) -> str:
    """The command's own help, without the examples, which the page shows first."""
    os.environ["COLUMNS"] = "80"
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.parse([*name.split(), "--help"])
    return shown.getvalue().partition("\nexamples:\n")[0].strip()


def _methods() -> str:
    return (
        "# Methods\n\nWhat `interp methods` prints: name, parameters with their defaults, citation, cost, and the "
        "setting that changes nothing. In `--methods` a comma separates methods and a colon parameters: "
        "`greedy,vhr:alpha=1.5,vcd:alpha=0.5`. What they do on the testbed: [Results](results.md#methods).\n\n"
        f"```text\n{describe_methods()}\n```\n"
    )


def _top_level() -> str:
    names = [name for name in interp.__all__ if name in interp._HOMES]
    rows = "\n".join(f"| `interp.{name}` | [`{interp._HOMES[name]}`]({_home(name)}) |" for name in names)
    return (
        "# interp\n\n`import interp` imports nothing else; a name is looked up when it is first used. Each part of the "
        "package is there as well: `interp.trace`, `interp.metrics`, ...\n\n"
        f"| name | documented in |\n|---|---|\n{rows}\n"
    )


def _home(name: str) -> str:
    return f"{interp._HOMES[name].split('.')[1]}.md"
