"""`interp sinks`: how often the first token of a text is an attention sink, and what it looks like inside.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781: `Sink_k^eps`
(section 3), and what a sink looks like inside (a large hidden state, a small value, a key that queries point at).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp import plots
from interp.experiments.config import ExperimentConfig, ModelConfig, at_least
from interp.experiments.setup import open_model
from interp.folder import write_arrays, write_text
from interp.models import LVLM
from interp.trace.attention import attention_statistics
from interp.trace.sinks import TEXTS, inside, sequences


@dataclass(frozen=True)
class SinksConfig:
    """Settings of `interp sinks`; vision-language models run without a picture."""

    model: ModelConfig = ExperimentConfig.model
    inputs: str = "natural,random,repeated,chat"
    """Comma-separated kinds of input: natural, random, repeated, chat."""
    length: int = 64
    """Tokens of a sequence (T)."""
    eps: float = 0.3
    """A token that receives more than this is a sink."""
    n: int = 32
    """Sequences of each kind."""
    seed: int = 0
    """Seed of the tokens drawn."""
    text: str | None = None
    """File with natural text; a few paragraphs that come with interp if None."""
    out: str | None = None
    """Folder for sinks.json and the figures."""

    def __post_init__(self) -> None:
        at_least(2, length=self.length)
        at_least(1, n=self.n)
        at_least(0, seed=self.seed)
        if not 0 < self.eps < 1:
            raise ValueError(f"eps lies between 0 and 1, got {self.eps}")
        wrong = [k for k in self.kinds if k not in TEXTS]
        if wrong or not self.kinds:
            raise ValueError(f"inputs are of the kinds {', '.join(TEXTS)}, got {self.inputs!r}")

    @property
    def kinds(self) -> list[str]:
        """The kinds of input asked for."""
        return [k.strip() for k in self.inputs.split(",")]


@dataclass(frozen=True)
class SinkRow:
    """One kind of input: `Sink_1^eps` in percent, what the first token receives, and it against the other tokens.

    `hidden`, `key` and `value` are its norms over the median of the others (mean over layers, the largest layer's for
    `hidden`); the cosines are with the queries that see a key.
    """

    kind: str
    sink_1: float
    received: float
    hidden: float
    key: float
    value: float
    cosine: float
    cosine_others: float


@dataclass(frozen=True)
class SinksReport:
    """The table of `interp sinks`, and by kind the share of sequences in which a head has its sink on the first."""

    config: SinksConfig
    model: str
    rows: tuple[SinkRow, ...]
    heads: dict[str, Float[np.ndarray, "layer head"]]

    def __str__(self) -> str:
        c = self.config
        lines = [
            f"{self.model}: {c.n} sequences of {c.length} tokens; a sink receives more than {c.eps}",
            "                             first token / median of the others    cosine of queries with its key",
            "inputs    Sink_1   received  hidden (largest)    key    value     first    others",
        ]
        for r in self.rows:
            norms = f"{r.hidden:>12.1f}{r.key:>13.2f}{r.value:>9.2f}"
            lines.append(
                f"{r.kind:<9}{r.sink_1:>6.1f} %{r.received:>10.3f}{norms}{r.cosine:>10.2f}{r.cosine_others:>10.2f}"
            )
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """Save `sinks.json` and a heat map for each kind, with its data beside it."""
        out.mkdir(parents=True, exist_ok=True)
        summary = {"settings": asdict(self.config), "rows": [vars(row) for row in self.rows]}
        write_text(out / "sinks.json", json.dumps(summary, indent=2) + "\n")
        for kind, share in self.heads.items():
            write_arrays(out / f"sink_{kind}.npz", first_is_sink_percent=share)
        plots.draw_sinks(out)


def run_sinks(config: SinksConfig) -> SinksReport:
    """Load the model, measure, and write the report if `out` says where."""
    report = measure_sinks(open_model(config.model), config)
    if config.out is not None:
        report.write(Path(config.out))
    return report


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read text from {path}; expected a file in UTF-8: {error}") from error


def measure_sinks(model: LVLM, config: SinksConfig) -> SinksReport:
    """`Sink_1^eps` and the inside of the first token for each kind of input."""
    text = None if config.text is None else _text(Path(config.text))
    rows, heads = [], {}
    for kind in config.kinds:
        inputs = sequences(model, kind, config.n, config.length, config.seed, text)
        stats = attention_statistics(model, inputs, with_sparsity=False)
        look = inside(model, inputs)
        is_sink = stats.sinks(config.eps)[..., 0].float()
        heads[kind] = 100 * is_sink.mean(0).numpy()

        def ratio(x: Tensor) -> Tensor:
            return x[..., 0] / x[..., 1:].median(-1).values.clamp(min=1e-9)

        rows.append(
            SinkRow(
                kind,
                100 * is_sink.mean().item(),
                stats.received[..., 0].mean().item(),
                ratio(look.hidden_norm).mean(0).max().item(),
                ratio(look.key_norm).mean().item(),
                ratio(look.value_norm).mean().item(),
                look.cosine[..., 0].mean().item(),
                look.cosine[..., 1:].mean().item(),
            )
        )
    return SinksReport(config, model.name, tuple(rows), heads)
