"""The command line: finds the command in a table and imports that one alone; options are its configuration's fields."""

import contextlib
import difflib
import importlib
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from interp import __version__
from interp.cli.commands import COMMANDS, SECTIONS

OK, FAILED, MISTAKE, INTERRUPTED, CLOSED = 0, 1, 2, 130, 141
"""Exit codes: done; some items failed; a user's mistake; Ctrl-C; whoever reads the output went away."""

_INTERRUPTED = "interp: interrupted; what writes a folder goes on where it stopped when started again"
_EXIT_CODES = "Exit codes: 0 done, 1 some items failed, 2 a mistake in what was asked, 130 interrupted."


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `interp` command; ends the process unless the exit code is 0."""
    try:
        code = _run(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError as error:
        code = CLOSED if _reader_is_gone() else _mistake(error)
    except (ValueError, OSError) as error:
        code = _mistake(error)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        code = INTERRUPTED
    if code:
        sys.exit(code)


def parse(args: Sequence[str]) -> Callable[[], int | None]:
    """The command that the words ask for, its options read and not yet run.

    Raises:
        ValueError: no such command, or options that do not fit.
        SystemExit: from tyro, for `--help`, which has been printed.
    """
    name = _name(args)
    command = COMMANDS[name]
    module, _, cls = command.where.partition(":")
    with _interrupts_end_at_once():
        tyro: Any = importlib.import_module("tyro")
        found = getattr(importlib.import_module(module), cls)
    _quieten()
    options = list(args)[len(name.split()) :]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(found, prog=f"interp {name}", args=options)
    except SystemExit as end:
        if end.code:
            raise ValueError(_said(box.getvalue(), name)) from None
        if {"-h", "--help"} & set(options):
            print("\n".join(["examples:", *(f"  {example}" for example in command.examples)]))
        raise


def _said(box: str, name: str) -> str:
    """What tyro's box says, in one line and without the words of Python that are in it."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # after the title
    parts = [list(part) for rule, part in groupby(lines, lambda line: not line.strip("─-╰╯")) if not rule]
    text = " ".join(parts[0])
    for found, better in _BETTER:
        text = re.sub(found, better, text)
    near = [line.split()[0] for part in parts[1:] if "meant" in part[0] for line in part if line.startswith("--")]
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{text}{meant} `interp {name} --help` shows the options"


_BETTER = (
    (r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*)\]", r"\1 takes \2, got \3"),
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 takes a whole number, got \2."),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 takes a number, got \2."),
)


def help_text(group: str | None = None) -> str:
    """Every command in a line each; those that share the first word `group` alone, if it is given."""
    shown = {
        section: {name: c.about for name, c in commands.items() if group is None or name.split()[0] == group}
        for section, commands in SECTIONS.items()
    }
    width = max(len(name) for commands in shown.values() for name in commands)
    lines = [f"usage: interp {group or ''}{' ' if group else ''}COMMAND [OPTIONS]"]
    if group is None:
        lines += ["", "Mechanistic interpretability of object hallucination in large vision-language models."]
    for section, commands in shown.items():
        if commands:
            lines += ["", section, *(f"  {name:{width}}  {about}" for name, about in commands.items())]
    lines += ["", "`interp COMMAND --help` shows a command's options and two examples."]
    if group is None:
        lines += ["`interp --version` prints the version.", _EXIT_CODES]
    return "\n".join(lines)


def _run(args: list[str]) -> int:
    first = args[0] if args else None
    if first in ("-h", "--help"):
        print(help_text())
        return OK
    if first == "--version":
        print(f"interp {__version__}")
        return OK
    if first is None:
        print(help_text(), file=sys.stderr)
        return MISTAKE
    if first in _groups() and (len(args) == 1 or args[1] in ("-h", "--help")):
        print(help_text(first), file=sys.stdout if len(args) > 1 else sys.stderr)
        return OK if len(args) > 1 else MISTAKE
    return parse(args)() or OK


def _groups() -> set[str]:
    """The first words that several commands may share."""
    return {name.split()[0] for name in COMMANDS if " " in name}


def _name(args: Sequence[str]) -> str:
    """The command's name, one word or two; ValueError says which is meant, perhaps."""
    asked = " ".join(args[: 2 if args and args[0] in _groups() else 1])
    if asked in COMMANDS:
        return asked
    near = difflib.get_close_matches(asked, COMMANDS, n=1) or [
        name for name in COMMANDS if asked and asked.split()[-1] in name.split()
    ]
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no command {asked!r}; {meant}`interp --help` lists all")


def _mistake(error: Exception) -> int:
    print(f"interp: {' '.join(str(error).split())}", file=sys.stderr)
    return MISTAKE


def _quieten() -> None:
    """Figures go to files, and libraries keep their notes to themselves, where the command has imported them."""
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use("Agg")
    if "transformers" in sys.modules:
        logging: Any = importlib.import_module("transformers.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextlib.contextmanager
def _interrupts_end_at_once() -> Iterator[None]:
    """Ctrl-C while modules are imported ends the process; raised there, libraries turn it into errors of their own."""
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end)
    except ValueError:  # not the main thread, which alone gets signals
        before = None
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED)


def _reader_is_gone() -> bool:
    """Whether it was stdout that broke; if so, it is pointed at nothing, or Python's exit would complain once more."""
    output = sys.stdout.fileno()
    ends = select.poll()
    ends.register(output, 0)  # errors are reported whatever is asked for
    gone = any(event & select.POLLERR for _, event in ends.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone
