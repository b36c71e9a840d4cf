"""The command line; options are the fields of the configurations."""

import sys
from collections.abc import Sequence
from typing import Any

import matplotlib
import tyro
from transformers.utils import logging

from interp.bench import BenchAttention
from interp.cli.looking import Doctor, Heads, Overlay, Sinks
from interp.cli.running import Ablate, Attention, Causal, Methods, Study, Sweep
from interp.cli.scoring import Amber, Chair, Opope, Pope
from interp.cli.testbed import Evaluate, Export, Show, Train


def _app() -> Any:
    testbed: Any = tyro.extras.SubcommandApp()
    for name, command in (("train", Train), ("evaluate", Evaluate), ("export", Export), ("show", Show)):
        testbed.command(command, name=name)
    app: Any = tyro.extras.SubcommandApp()
    app.command(Study, name="study")
    app.command(Sweep, name="sweep")
    app.command(Causal, name="causal")
    app.command(Ablate, name="ablate")
    app.command(Methods, name="methods")
    for name, command in (("chair", Chair), ("pope", Pope), ("opope", Opope), ("amber", Amber)):
        app.command(command, name=name)
    app.command(Heads, name="heads")
    app.command(Attention, name="attention")
    app.command(Sinks, name="sinks")
    app.command(Overlay, name="overlay")
    app.command(Doctor, name="doctor")
    bench: Any = tyro.extras.SubcommandApp()
    bench.command(BenchAttention, name="attention")
    app.command(bench, name="bench", help="Benchmarks, each measurement in a process of its own.")
    app.command(testbed, name="testbed", help="Train, examine, export or show the bundled testbed.")
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `interp` command: a user's mistake is one line and exit code 2."""
    matplotlib.use("Agg")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        command = _app().cli(
            prog="interp", description="Looking inside vision-language models that hallucinate.", args=args
        )
        code = command()
    except (ValueError, OSError) as error:
        print(f"interp: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interp: interrupted; study and testbed train go on where they stopped", file=sys.stderr)
        sys.exit(130)
    if code:
        sys.exit(code)
