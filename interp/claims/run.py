"""Running the claims on one model: claim by claim, written as they come, and gone on with where a run stopped."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.claims.bench import Bench
from interp.claims.claim import Claim, Verdict
from interp.claims.table import CLAIMS, FILE, Found, read_found, table, write_found
from interp.experiments.config import HUNDRED, DataConfig, ExperimentConfig, RunConfig, at_least
from interp.experiments.engine import Run
from interp.experiments.setup import Setup

FIFTY_AT_ONCE = RunConfig(batch_size=50)


@dataclass(frozen=True)
class ClaimsConfig(ExperimentConfig):
    """Settings of `interp claims`; every field is an option of the command."""

    data: DataConfig = HUNDRED
    run: RunConfig = FIFTY_AT_ONCE
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    texts: int = 32
    """Texts of each kind, for the claims about sinks."""
    only: str | None = None
    """Comma-separated names of claims; all if None."""

    def __post_init__(self) -> None:
        at_least(2, max_new_tokens=self.max_new_tokens, texts=self.texts, limit=self.data.limit)
        known = [claim.name for claim in CLAIMS]
        wrong = [name for name in self.names if name not in known]
        if wrong:
            raise ValueError(f"only names claims among {', '.join(known)}, got {', '.join(wrong)}")

    @property
    def names(self) -> list[str]:
        """The claims asked for."""
        return [c.name for c in CLAIMS] if self.only is None else [name.strip() for name in self.only.split(",")]


@dataclass(frozen=True)
class ClaimsReport:
    """What one model shows of the claims."""

    found: Mapping[str, Found]
    settings: Mapping[str, Any]
    out: Path
    failures: int = 0

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for one in self.found.values():
            counts[one.verdict.outcome] = counts.get(one.verdict.outcome, 0) + 1
        told = ", ".join(f"{outcome}: {n}" for outcome, n in counts.items())
        return f"{table(self.found, self.settings)}\n{told}\nresults: {self.out}"


def run_claims(config: ClaimsConfig) -> ClaimsReport:
    """Measure the claims, or go on with a run that was interrupted."""
    setup = Setup.of(config)
    if setup.shard.world > 1:
        raise ValueError("interp claims runs in one process; start it without a launcher")
    if setup.model.family.has_vision:
        setup.require_truth()
    return claims(setup, config)


def claims(setup: Setup, config: ClaimsConfig) -> ClaimsReport:
    """The claims on a setup's model and pictures."""
    manifest = setup.manifest(
        "claims", config, prompt=config.data.prompt, max_new_tokens=config.max_new_tokens, texts=config.texts
    )
    out = setup.folder("claims-", config, manifest)
    settings = {
        "model": config.model.model,
        "data": config.data.data,
        "n_images": len(setup.data.image_ids),
        "n_texts": config.texts,
        "command": _command(config),
    }
    with Run.opened(out, manifest, setup.shard) as run:
        found = read_found(out / FILE)
        bench = Bench(setup, config, run, max_new_tokens=config.max_new_tokens, texts=config.texts)
        for claim in (c for c in CLAIMS if c.name in config.names and c.name not in found):
            found[claim.name] = measured(claim, bench)
            write_found(out, found, settings)
            print(f"{claim.name}: {found[claim.name].verdict.outcome}", file=sys.stderr)
        write_found(out, found, settings)
        return ClaimsReport(found, settings, out, len(run.failures))


def measured(claim: Claim, bench: Bench) -> Found:
    """One claim on a bench."""
    if claim.pictures and not bench.model.family.has_vision:
        return Found({}, Verdict("not measured", "it takes pictures, and this is a text model"))
    numbers = claim.measure(bench)
    return Found(numbers, claim.judge(numbers))


def _command(config: ClaimsConfig) -> str:
    """The command that makes these results."""
    plain = ClaimsConfig()
    told = {
        "data": (config.data.data, plain.data.data),
        "split": (config.data.split, plain.data.split),
        "limit": (config.data.limit, plain.data.limit),
        "seed": (config.data.seed, plain.data.seed),
        "batch-size": (config.run.batch_size, plain.run.batch_size),
        "max-new-tokens": (config.max_new_tokens, plain.max_new_tokens),
        "texts": (config.texts, plain.texts),
        "out": (config.run.out, plain.run.out),
    }
    options = [f"--{name} {mine}" for name, (mine, default) in told.items() if mine != default]
    return " ".join([f"interp claims --model {config.model.model}", *options])
