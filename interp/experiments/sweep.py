"""A sweep: methods at every combination of some parameters' values, on the same images, drawn as curves."""

import csv
import itertools
from dataclasses import dataclass, fields

from interp import plots
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.compared import BASELINE, method_name
from interp.experiments.report import Summary
from interp.folder import replacing
from interp.interventions import parse_method

COLUMNS = ("chair_s", "recall", "length")


@dataclass(frozen=True)
class SweepConfig(StudyConfig):
    """Settings of `interp sweep`: those of a study, and what varies."""

    methods: str = "vhr,random-heads:seed=0,random-heads:seed=1,random-heads:seed=2"
    """Comma-separated methods; those that differ in `seed` only are drawn as one band."""
    vary: tuple[str, ...] = ("alpha=0.5,1,1.5,2,3",)
    """Parameters and their values, the first one along the horizontal axis: keep=1,0.5,0.1."""

    def __post_init__(self) -> None:
        self.study()

    @property
    def varied(self) -> dict[str, list[str]]:
        """The values of each varied parameter, as they are written."""
        found: dict[str, list[str]] = {}
        for text in self.vary:
            name, equals, listed = text.partition("=")
            name, values = name.strip(), [v.strip() for v in listed.split(",") if v.strip()]
            if not equals or not values:
                raise ValueError(f"vary takes parameter=value,value,..., got {text!r}")
            if name in found or len(set(values)) < len(values):
                raise ValueError(f"vary takes each parameter and each of its values once, got {' '.join(self.vary)}")
            found[name] = values
        if not found:
            raise ValueError("expected at least one parameter to vary, such as keep=1,0.5,0.1")
        return found

    def points(self) -> dict[str, dict[str, str]]:
        """Every method of the sweep as it is written, with `method` and the settings that its name carries."""
        found: dict[str, dict[str, str]] = {}
        for base in (m.strip() for m in self.methods.split(",")):
            default = parse_method(base)
            own = {name: v for name, v in self.varied.items() if hasattr(default, name)}
            if base != BASELINE and not own:
                raise ValueError(f"{base} has none of the varied parameters {', '.join(self.varied)}")
            fixed = {key: value for key, _, value in (setting.partition("=") for setting in base.split(":")[1:])}
            twice = ", ".join(name for name in own if name in fixed)
            if twice:
                raise ValueError(f"{base} sets {twice}, which is varied; leave it out of the method")
            for values in itertools.product(*own.values()):
                settings = dict(zip(own, values, strict=True))
                name = ":".join([base, *(f"{k}={v}" for k, v in settings.items())])
                found[name] = {"method": base.split(":")[0], **fixed, **settings}
        return found

    def study(self) -> StudyConfig:
        """The study that measures every point."""
        shared = {f.name: getattr(self, f.name) for f in fields(StudyConfig)}
        return StudyConfig(**{**shared, "methods": ",".join(self.points())})


def run_sweep(config: SweepConfig) -> Summary | None:
    """Measure every point, or go on; draws `sweep.png` and writes `sweep.csv` beside the study's results.

    None in the processes of a launch but the first.
    """
    summary = run_study(config.study())
    if summary is None:
        return None
    with replacing(summary.out / "sweep.csv") as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "method", *config.varied, *(f"{c}{end}" for c in COLUMNS for end in ("", "_low", "_high"))]
        )
        for name, settings in {BASELINE: {"method": BASELINE}, **config.points()}.items():
            values = [summary.methods[method_name(name)][c] for c in COLUMNS]
            row = [settings.get(p, "") for p in config.varied]
            writer.writerow([name, settings["method"], *row, *(x for v in values for x in (v.value, v.low, v.high))])
    plots.draw_sweep(summary.out)
    return summary
