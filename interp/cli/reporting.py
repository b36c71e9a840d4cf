"""Commands that put results together for a person to read."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from interp import plots
from interp.claims.run import ClaimsConfig, run_claims
from interp.claims.table import by_model, matrix, verdicts
from interp.cli.options import TESTBED, Unchecked, UncheckedData, UncheckedModel, UncheckedRun, checked, flat
from interp.cli.running import shown
from interp.report.page import ReportConfig, write_report

_CLAIMS_DATA, _CLAIMS_RUN = UncheckedData(**vars(ClaimsConfig.data)), UncheckedRun(**vars(ClaimsConfig.run))


@flat
@dataclass(frozen=True)
class Claims(Unchecked, ClaimsConfig):
    """Measure every claim of the three papers: value with interval, the paper's value, and the verdict with its reason.

    Each criterion stands in the code, and was written before it was run. Written claim by claim.
    """

    model: UncheckedModel = TESTBED
    data: UncheckedData = _CLAIMS_DATA
    run: UncheckedRun = _CLAIMS_RUN
    matrix: tuple[str, ...] = ()
    """Folders that this command wrote: print claims by models, draw them into out/matrix.png, and measure nothing."""

    def __call__(self) -> int:
        """Measure and print the table."""
        if self.matrix:
            each = by_model([Path(folder) for folder in self.matrix])
            print(matrix(each), end="")
            if self.run.out is not None:
                out = Path(self.run.out)
                out.mkdir(parents=True, exist_ok=True)
                plots.save(plots.verdict_matrix(verdicts(each), list(each)), out / "matrix.png")
            return 0
        return shown(run_claims(checked(self, ClaimsConfig)))


@dataclass(frozen=True)
class Report(Unchecked, ReportConfig):
    """Write a run as one HTML file that needs no server and no network: tables, figures, captions to look through.

    A click on a token of a caption shows its heads and where on the picture they look; for that the model is loaded.
    """

    run: Positional[str]
    """Folder of a run; captions are shown of runs of interp study."""

    def __call__(self) -> None:
        """Write it."""
        print(write_report(checked(self, ReportConfig)))
