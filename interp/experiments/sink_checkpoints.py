"""`interp sinks --checkpoints`: `Sink_1`, loss and norms over a training, a checkpoint at a time, resumable."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from interp import plots
from interp.english import digest
from interp.experiments.manifest import Manifest
from interp.experiments.setup import open_model
from interp.experiments.sinks import SinksConfig, measure_sinks, text_of
from interp.folder import locked, write_text
from interp.models.checkpoints import Checkpoint, checkpoints_of, put_weights


@dataclass(frozen=True)
class CheckpointsReport:
    """A row for each checkpoint, kind and length: `step`, `name`, and what `SinkRow` holds, as plain numbers."""

    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = ["step     inputs    tokens  number  Sink_1 (%)       any token  loss (nats)   hidden    key  value"]
        for r in self.rows:
            sink, loss = r["sink_1"], r["loss"]
            lines.append(
                f"{r['step']:<9}{r['kind']:<9}{r['length']:>7}{r['n']:>8}{sink['mean']:>8.1f} +- {sink['error']:<6.1f}"
                f"{r['any_token']['mean']:>10.1f}{loss['mean']:>13.3f}{r['hidden']:>9.1f}{r['key']:>7.2f}{r['value']:>7.2f}"
            )
        return "\n".join(lines)


def _measured(checkpoint: Checkpoint, config: SinksConfig) -> list[dict[str, Any]]:
    """The rows of one checkpoint."""
    model = open_model(replace(config.model, model=checkpoint.place, revision=checkpoint.revision))
    if checkpoint.weights is not None:
        put_weights(model, checkpoint.weights)
    head = {"step": checkpoint.step, "name": checkpoint.name, "weights": model.fingerprint}
    return [head | asdict(m.row) for m in measure_sinks(model, config)]


def run_checkpoints(config: SinksConfig) -> CheckpointsReport:
    """Measure the checkpoints that are not in `out` yet, and draw all of them."""
    assert config.checkpoints is not None
    assert config.out is not None
    if config.model.model != "testbed" or config.model.revision is not None:
        raise ValueError("--checkpoints names the models; leave out --model and --revision")
    checkpoints, out = checkpoints_of(config.checkpoints), Path(config.out)
    text = text_of(config)
    settings = asdict(config) | {"text": None if text is None else digest(text)}
    manifest = Manifest.of(experiment="sink-checkpoints", **{k: v for k, v in settings.items() if k != "out"})
    manifest.check(out)
    path = out / "checkpoints.json"
    with locked(out):
        manifest.claim(out)
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        for checkpoint in checkpoints:
            if checkpoint.step not in {row["step"] for row in rows}:
                rows = sorted([*rows, *_measured(checkpoint, config)], key=lambda row: row["step"])
                write_text(path, json.dumps({"rows": rows}, indent=1) + "\n")
        plots.draw_checkpoints(out)
    return CheckpointsReport(rows)
