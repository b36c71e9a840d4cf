"""interp: mechanistic interpretability of object hallucination in large vision-language models.

Importing it imports nothing else: a name is looked up when it is first used, so `import interp` and `interp --help` are
quick.  Every part of the package is there after `import interp`: `interp.trace`, `interp.metrics`, ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import (
        attribution,
        claims,
        evaluate,
        experiments,
        interventions,
        metrics,
        models,
        plots,
        report,
        testbed,
        trace,
        views,
    )
    from interp.experiments.tables import read_run
    from interp.interventions import VHR, EditHeads, VASparse, parse_method
    from interp.models import LVLM, UnsupportedModelError, diagnose, load, read, run_with_edits
    from interp.trace.divergence import token_vhd, vhd

__version__ = "0.1.0"

__all__ = [
    "LVLM",
    "VHR",
    "EditHeads",
    "UnsupportedModelError",
    "VASparse",
    "attribution",
    "claims",
    "diagnose",
    "evaluate",
    "experiments",
    "interventions",
    "load",
    "metrics",
    "models",
    "parse_method",
    "plots",
    "read",
    "read_run",
    "report",
    "run_with_edits",
    "testbed",
    "token_vhd",
    "trace",
    "vhd",
    "views",
]

_HOMES = {
    "LVLM": "interp.models",
    "VHR": "interp.interventions",
    "EditHeads": "interp.interventions",
    "UnsupportedModelError": "interp.models",
    "VASparse": "interp.interventions",
    "diagnose": "interp.models",
    "load": "interp.models",
    "parse_method": "interp.interventions",
    "read": "interp.models",
    "read_run": "interp.experiments.tables",
    "run_with_edits": "interp.models",
    "token_vhd": "interp.trace.divergence",
    "vhd": "interp.trace.divergence",
}
"""Where the names come from that are not parts of the package."""


def __getattr__(name: str) -> Any:
    """Look a public name up, once (PEP 562)."""
    if name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        found = import_module(f"interp.{name}")
    else:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """What there is, looked up or not."""
    return sorted({*globals(), *__all__})
