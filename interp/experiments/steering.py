"""Steering vectors from what a study wrote (`interp direction`), batch by batch."""

from typing import Literal

import torch

from interp.attribution.directions import mean_stream
from interp.experiments.written import WrittenRun
from interp.interventions.directions import Direction
from interp.models import LVLM, image_free


def from_run(
    model: LVLM,
    run: WrittenRun,
    layer: int,
    of: Literal["words", "pictures"] = "words",
    limit: int | None = None,
    batch_size: int = 20,
) -> Direction:
    """Correct minus hallucinated words, at the steps that write them; or with the picture minus without.

    Raises ValueError if the captions have no words of one kind.
    """
    captions = [c for c in run.captions.values() if len(c.tokens)][:limit]
    sums = [torch.zeros(model.d_model, dtype=torch.float64) for _ in range(2)]
    counts = [0, 0]
    for start in range(0, len(captions), batch_size):
        part = captions[start : start + batch_size]
        inputs = model.inputs([run.sample(c.image_id).image for c in part], run.prompt)
        if of == "pictures":
            groups = [(inputs, None), (image_free(model, inputs), None)]
        else:
            whole, before = inputs.extended([c.tokens for c in part]), inputs.input_ids.shape[1] - 1
            groups = [
                (whole, [[before + m.token for m in c.mentions if m.hallucinated is wrong] for c in part])
                for wrong in (False, True)
            ]
        for side, (batch, places) in enumerate(groups):
            n = len(part) if places is None else sum(map(len, places))
            if n:
                sums[side] += n * mean_stream(model, batch, layer, places).double().cpu()
                counts[side] += n
    if not all(counts):
        raise ValueError(f"expected correct and hallucinated words in {run.folder}, got {counts[0]} and {counts[1]}")
    return Direction(layer, (sums[0] / counts[0] - sums[1] / counts[1]).float())
