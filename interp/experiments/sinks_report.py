"""What `interp sinks` prints and writes: a table of kinds and lengths, maps of heads, profiles by layer."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from interp import plots
from interp.english import digest, reference_manual
from interp.experiments.setup import open_model
from interp.experiments.sinks import TAIL, Estimate, Measured, SinkRow, SinksConfig, measure_sinks
from interp.folder import write_arrays, write_text
from interp.models import LVLM


def shown(value: Estimate, digits: int = 1) -> str:
    """A mean with its standard error."""
    return f"{value.mean:.{digits}f}" + ("" if np.isnan(value.error) else f" +- {value.error:.{digits}f}")


@dataclass(frozen=True)
class SinksReport:
    """The table of `interp sinks`, and by kind the share of sequences in which a head has its sink on the first.

    `random` is the first row's kind on the same configuration with random weights, where that was asked for.
    """

    config: SinksConfig
    model: str
    measured: tuple[Measured, ...]
    random: Measured | None = None

    @property
    def rows(self) -> tuple[SinkRow, ...]:
        """A row for each kind and length."""
        return tuple(m.row for m in self.measured)

    @property
    def heads(self) -> dict[str, Float[np.ndarray, "layer head"]]:
        """Maps by kind; where there are several lengths, by kind and length."""
        several = len(self.config.lengths) > 1
        return {f"{m.row.kind}_{m.row.length}" if several else m.row.kind: m.heads for m in self.measured}

    def __str__(self) -> str:
        first = "" if self.config.first == "kept" else f"; first token: {self.config.first}"
        lines = [
            f"{self.model}: a sink receives more than {self.config.eps}{first}",
            f"{'':<61}first token / median   cosine with keys",
            f"{'inputs    tokens  number  Sink_1 (%)     any token  loss (nats)':<65}hidden    key  value"
            "   first  others",
        ]
        for name, r in [
            *((r.kind, r) for r in self.rows),
            *((("random weights", self.random.row),) if self.random else ()),
        ]:
            lines.append(
                f"{name:<9}{r.length:>7}{r.n:>8}  {shown(r.sink_1):<14}{r.any_token.mean:>9.1f}  {shown(r.loss, 2):<14}"
                f"{r.hidden:>10.1f}{r.key:>7.2f}{r.value:>7.2f}{r.cosine:>9.2f}{r.cosine_others:>8.2f}"
            )
        lines += [
            "",
            f"Sink_1 (%) by eps {', '.join(self.rows[0].by_eps)}; Sink_k of the first places (eps {self.config.eps})",
        ]
        for r in self.rows:
            eps, places = ("".join(f"{v:>7.1f}" for v in values) for values in (r.by_eps.values(), r.places))
            lines.append(f"{r.kind:<9}{r.length:>7} {eps}   |{places}")
        lines += [
            "",
            f"the last {TAIL} queries: smallest share of the keys (%) that holds 98 %, mass (%) of the top 1 %",
        ]
        for r in self.rows:
            lines.append(
                f"{r.kind:<9}{r.length:>7}  keys {shown(r.share)}, without the first {shown(r.share_rest)}; "
                f"top {shown(r.top)}, without the first {shown(r.top_rest)}"
            )
        lines += ["", "tokens that are sinks, or come nearest: position, text, share of heads (%)"]
        for r in self.rows:
            named = "; ".join(f"{t.position} {t.text!r} {100 * t.sink:.1f}" for t in r.tokens[:4])
            lines.append(f"{r.kind:<9}{r.length:>7}  {named}")
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """Save `sinks.json`, and each figure beside its data."""
        out.mkdir(parents=True, exist_ok=True)
        summary = {"settings": asdict(self.config), "model": self.model, "rows": [asdict(r) for r in self.rows]}
        if self.config.text == "python":
            summary["text"] = digest(reference_manual())
        if self.random is not None:
            summary["random"] = asdict(self.random.row)
            write_arrays(out / "random_weights.npz", first_is_sink_percent=self.random.heads)
        write_text(out / "sinks.json", json.dumps(summary, indent=2) + "\n")
        for kind, share in self.heads.items():
            write_arrays(out / f"sink_{kind}.npz", first_is_sink_percent=share)
        for kind, m in zip(self.heads, self.measured, strict=True):
            write_arrays(out / f"layers_{kind}.npz", **m.layers)
        plots.draw_sinks(out)


def with_random_weights(model: LVLM, seed: int = 0) -> LVLM:
    """The same configuration with the weights of its usual initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model.hf)._from_config(model.hf.config)
    return LVLM(fresh.to(model.device, model.dtype), model.processor, f"{model.name}, random weights")


def report_sinks(model: LVLM, config: SinksConfig) -> SinksReport:
    """Measure a loaded model, and its random twin where that is asked for."""
    measured = tuple(measure_sinks(model, config))
    random = None
    if config.against_random:
        one = replace(config, inputs=config.kinds[0], length="{}x{}".format(*config.lengths[0]))
        (random,) = measure_sinks(with_random_weights(model, config.seed), one)
    return SinksReport(config, model.name, measured, random)


def run_sinks(config: SinksConfig) -> SinksReport:
    """Load the model, measure, and write the report if `out` says where."""
    report = report_sinks(open_model(config.model), config)
    if config.out is not None:
        report.write(Path(config.out))
    return report
