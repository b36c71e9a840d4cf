"""Commands that put results together for a person to read."""

from dataclasses import dataclass
from pathlib import Path

from interp.claims.run import ClaimsConfig, run_claims
from interp.claims.table import matrix
from interp.cli.options import TESTBED, Unchecked, UncheckedData, UncheckedModel, UncheckedRun, checked, flat
from interp.cli.running import shown

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
    """Folders that this command wrote: print claims by models, and measure nothing."""

    def __call__(self) -> int:
        """Measure and print the table."""
        if self.matrix:
            print(matrix([Path(folder) for folder in self.matrix]), end="")
            return 0
        return shown(run_claims(checked(self, ClaimsConfig)))
