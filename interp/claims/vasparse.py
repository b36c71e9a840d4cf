"""The claims of VASparse: Zhuang et al., CVPR 2025, arXiv 2501.06553."""

from functools import partial
from itertools import combinations

import numpy as np
import torch

from interp.claims.bench import Bench
from interp.claims.claim import (
    Claim,
    Measured,
    above,
    all_of,
    below,
    by_image,
    lower_at_no_loss,
    mean_over,
    share_of_trials,
)
from interp.claims.vhd import _at_equal_recall
from interp.evaluate.bootstrap import Interval
from interp.interventions.primitives.contrast import EmbeddingReader
from interp.interventions.primitives.kv_cache import received_so_far
from interp.metrics.attention import FRACTIONS, KINDS
from interp.metrics.selection import penalised, top_mask
from interp.models import AttentionCall, run_with_edits
from interp.trace.sinks import sequences

CITATION = "Zhuang et al., CVPR 2025, arXiv 2501.06553"
AGNOSTIC = ("top-k:keep=0.5", "top-k:keep=0.2", "fastv")
SELECTING = "vasparse:scope=all:keep=0.5:alpha=0:beta=0:dropped=discard"
BLIND, AWARE = f"{SELECTING}:lambda_=0", SELECTING
GENERATED = 1
"""The group of generated queries in an attention record."""


def _top_percent(bench: Bench) -> Measured:
    at = FRACTIONS.index(0.01)
    if bench.model.family.has_vision:
        held = np.array([np.nanmean(r.arrays["recall"][:, :, GENERATED, at], 1) for r in bench.attention])
    else:  # the rows of a text, a sequence in the place of an image
        held = bench.text("natural").recall[:, :, :, 0, at].mean(2).numpy()
    return {
        "mass in the median layer (%)": by_image(
            len(held), lambda rows: float(np.median(100 * np.nanmean(held[rows], 0))), bench.seed
        )
    }


def _image_tokens(bench: Bench) -> Measured:
    half, excess = FRACTIONS.index(0.5), []
    for record in bench.attention:
        kept = np.nanmean(record.arrays["kept"][:, :, GENERATED, half, KINDS.index("image")])
        n_image = sum(t.count for t in record.tokens if t.kind == "image")
        excess.append(100 * (kept - n_image / record.arrays["n_keys"][GENERATED]))
    return {"image tokens in the top half of the keys, minus their share of all keys (points)": mean_over(excess)}


def _agnostic(bench: Bench) -> Measured:
    found = {}
    for name in AGNOSTIC:
        difference = bench.minus(name)
        found[f"CHAIR_I with {name} minus greedy"] = difference["chair_i"]
        found[f"CHAIR_S with {name} minus greedy"] = difference["chair_s"]
    return found


def _aware(bench: Bench) -> Measured:
    with_p, without = bench.minus(AWARE, BLIND), bench.minus(BLIND)
    return {
        "CHAIR_I with P minus without": with_p["chair_i"],
        "recall with P minus without": with_p["recall"],
        "CHAIR_I with P minus greedy": bench.minus(AWARE)["chair_i"],
        "CHAIR_I without P minus greedy": without["chair_i"],
    }


def _theorem(bench: Bench) -> Measured:
    return {"cases in which the top S is the minimum (%)": by_brute_force(bench.seed)}


def by_brute_force(seed: int, trials: int = 300) -> Interval:
    """Theorem 1 against all subsets of up to nine keys, in integers so that ties are exact."""
    rng, minimal = np.random.default_rng(seed), 0
    for _ in range(trials):
        n = int(rng.integers(2, 10))
        size, y, p = int(rng.integers(1, n + 1)), rng.integers(-3, 4, n), rng.integers(0, 4, n)
        delta = torch.from_numpy((y * y + p).astype(float))
        chosen = top_mask(delta, torch.ones(n, dtype=torch.bool), size / n).numpy()

        def loss(mask: np.ndarray, y: np.ndarray = y, p: np.ndarray = p) -> int:
            return int(((y - mask * y) ** 2).sum() - (p * mask).sum())

        every = [np.isin(np.arange(n), kept) for kept in combinations(range(n), size)]
        minimal += chosen.sum() == size and loss(chosen) == min(map(loss, every))
    return share_of_trials(minimal, trials)


def _without(bench: Bench, part: str) -> Measured:
    difference = bench.minus("vasparse", f"vasparse:{part}=0")
    return {
        f"CHAIR_I minus without {part}": difference["chair_i"],
        f"recall minus without {part}": difference["recall"],
        f"CHAIR_S minus without {part}": difference["chair_s"],
    }


def _contrast_and_picture(bench: Bench) -> Measured:
    """How far the contrast's distribution moves when the picture is another one of the batch, at the first step."""
    moved: dict[str, list[float]] = {"pooled": [], "last": []}
    for inputs in bench.inputs():
        for kind, distances in moved.items():
            phi = EmbeddingReader(bench.model, inputs, kind, 0.5, bench.seed)  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                p = phi(inputs.input_ids).softmax(-1)
            distances += (50 * (p - p.roll(1, 0)).abs().sum(-1)).tolist()
    return {
        f"total variation between two pictures, {kind} (%)": mean_over(found, bench.seed)
        for kind, found in moved.items()
    }


def _penalty_on_sinks(bench: Bench) -> Measured:
    """The attention of the later half of a text to the token that has received most, with the penalty and without."""
    inputs = sequences(bench.model, "natural", bench.n_texts, 64, bench.seed)
    before, after = [], []

    def watch(_: int, call: AttentionCall) -> None:
        scores = call.scores().float()
        pattern = call.pattern(scores).float()
        received = received_so_far(None, pattern)
        weights = received.masked_fill(~call.visible, -torch.inf).softmax(-1).nan_to_num(0)
        changed = call.pattern(penalised(scores, weights, 0.1)).float()
        half = pattern.shape[2] // 2
        sink = received[:, :, half].argmax(-1)[..., None, None].expand(-1, -1, half, 1)
        for rows, of in ((before, pattern), (after, changed)):
            rows.append(of[:, :, -half:].gather(-1, sink).mean((2, 3)))

    run_with_edits(bench.model, inputs, {"attention": watch})
    old, new = (torch.stack(rows, 1).mean((1, 2)).numpy() for rows in (before, after))
    return {
        "attention to the sink without the penalty (%)": mean_over(100 * old, bench.seed),
        "change with the penalty (%)": mean_over(100 * (new - old) / old, bench.seed),
    }


CLAIMS = (
    Claim(
        "one-percent-of-keys",
        CITATION,
        "section 3, figure 2",
        "In most layers the top 1 % of the keys hold over 98 % of the attention.",
        "mass held by the top 1 % of the keys of a generated query (a text's queries for a text model), median layer",
        "more than 98 %",
        _top_percent,
        above("mass in the median layer (%)", 98),
        paper="over 98 %",
        pictures=False,
    ),
    Claim(
        "image-tokens-low",
        CITATION,
        "section 3, figure 3",
        "Image tokens lie in the low-attention region.",
        "share of image tokens among the top half of the keys minus their share among all keys, generated queries",
        "below 0",
        _image_tokens,
        below("image tokens in the top half of the keys, minus their share of all keys (points)", 0),
    ),
    Claim(
        "agnostic-sparsification",
        CITATION,
        "section 3, figure 1",
        "Sparsification that does not look at the picture raises hallucination.",
        f"CHAIR_I minus greedy with {', '.join(AGNOSTIC)}",
        "above 0 for each",
        _agnostic,
        all_of(*(above(f"CHAIR_I with {name} minus greedy", 0) for name in AGNOSTIC)),
        paper="CHAIR_I 7.2 to 8.5 with FastV (LLaVA-1.5-7b)",
    ),
    Claim(
        "aware-selection",
        CITATION,
        "eqs. 3 to 5, table 3",
        "The visual term P of the selection takes the harm back.",
        "CHAIR_I with half of all keys kept, with P (lambda 0.1) minus without",
        "below 0, and recall is not lower",
        _aware,
        lower_at_no_loss("CHAIR_I with P minus without", "recall with P minus without"),
        paper="CHAIR_I 6.06 without P, 5.82 with it (LLaVA-1.5-7b)",
    ),
    Claim(
        "theorem-1",
        CITATION,
        "theorem 1",
        "Keeping the S largest delta minimises the objective of the selection.",
        "300 random cases of up to nine keys with ties, against all subsets",
        "all of them (the exact interval lies above 98 %)",
        _theorem,
        above("cases in which the top S is the minimum (%)", 98),
        paper="100 %: a theorem",
        pictures=False,
    ),
    Claim(
        "vasparse-at-equal-recall",
        CITATION,
        "table 1",
        "VASparse lowers CHAIR.",
        "CHAIR_I below what greedy decoding reaches at the same recall by stopping sooner or later (points)",
        "above 0",
        partial(_at_equal_recall, name="vasparse"),
        above("CHAIR_I below greedy's at the same recall", 0),
        paper="CHAIR_I 7.2 to 5.8, CHAIR_S 22.2 to 18.5 (LLaVA-1.5-7b), not at equal recall",
    ),
    Claim(
        "contrast-helps",
        CITATION,
        "eq. 6, table 3",
        "The contrast with the embeddings helps.",
        "CHAIR_I of VASparse minus that of VASparse with alpha=0",
        "below 0, and recall is not lower",
        partial(_without, part="alpha"),
        lower_at_no_loss("CHAIR_I minus without alpha", "recall minus without alpha"),
        paper="CHAIR_I 6.91 without, 5.82 with it (LLaVA-1.5-7b)",
    ),
    Claim(
        "contrast-sees-the-picture",
        CITATION,
        "eq. 6",
        "The contrast depends on the picture.",
        "total variation between the contrast's distributions for two pictures, pooled and last embedding",
        "more than 1 % for the pooled one",
        _contrast_and_picture,
        above("total variation between two pictures, pooled (%)", 1),
    ),
    Claim(
        "penalty-lowers-sinks",
        CITATION,
        "eq. 7",
        "The penalty lowers the attention that sinks get.",
        "relative change of the attention of later queries to the token that has received most, text, beta 0.1",
        "below 0",
        _penalty_on_sinks,
        below("change with the penalty (%)", 0),
        pictures=False,
    ),
    Claim(
        "penalty-helps",
        CITATION,
        "eq. 7, table 3",
        "The penalty on sinks lowers hallucination.",
        "CHAIR_I of VASparse minus that of VASparse with beta=0",
        "below 0, and recall is not lower",
        partial(_without, part="beta"),
        lower_at_no_loss("CHAIR_I minus without beta", "recall minus without beta"),
        paper="CHAIR_I 6.32 without, 5.82 with it (LLaVA-1.5-7b)",
    ),
)
