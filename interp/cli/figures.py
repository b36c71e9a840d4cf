"""The command that draws a run's figures again."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from interp import plots


@dataclass(frozen=True)
class Figures:
    """Draw the figures of a run again from the numbers saved in its folder; no model is loaded."""

    run: Positional[tuple[str, ...]]
    """Folders of runs: study, sweep, ablate, causal, attention, sinks."""

    def __call__(self) -> None:
        """Draw."""
        for folder in self.run:
            for path in plots.redraw(Path(folder)):
                print(path)
