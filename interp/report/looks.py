"""Looking into the captions of a run anew: the heads of largest VHD at each token, and where on the picture they look.

A record keeps T-VHD and no heads, so the model is loaded, and reads each finished caption: with the picture and without
it for VHD, and once more for the attention of the steps that predicted the tokens.  No method is open meanwhile: of a
caption that a method wrote this tells what the model itself sees in it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from interp.experiments.records import CaptionRecord, ItemId
from interp.experiments.written import WrittenRun
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Inputs, read
from interp.models.layout import layout
from interp.report.content import Look
from interp.trace.divergence import token_vhd
from interp.views.overlay import coarse


def look_into(model: LVLM, inputs: Inputs, captions: Sequence[torch.Tensor], top: int, top_k: int) -> list[Look]:
    """The heads of each caption of a batch; captions have at least one token."""
    traces = token_vhd(model, inputs, captions)
    longest, n = max(map(len, captions)), inputs.input_ids.shape[1]
    steps = torch.arange(n - 1, n - 1 + longest, device=model.device).expand(len(captions), -1)
    image = inputs.image_mask.cpu()
    whole = inputs.extended(list(captions))
    pattern = read(model, whole, "pattern", positions=steps)["pattern"]  # [batch, layer, head, step, key]
    found = []
    for row, (trace, ids) in enumerate(zip(traces, captions, strict=True)):
        vhd = trace.vhd.float().cpu()
        best = vhd.flatten(1).topk(min(top, vhd[0].numel()), dim=-1)
        chosen = torch.stack([best.indices // model.n_heads, best.indices % model.n_heads], -1)
        token = torch.arange(len(ids))[:, None]
        mine = pattern[row].float().cpu()[chosen[..., 0], chosen[..., 1], token].numpy()  # [token, top, key]
        mass = mine[..., : image.shape[1]][..., image[row].numpy()].sum(-1)
        maps = None
        if model.family.layout is not None:
            pieces = layout(model, inputs, row)[0]
            maps = np.array([[coarse(pieces, keys) for keys in heads] for heads in mine])
        t_vhd = token_divergence(vhd, top_k).numpy()
        probability = trace.probability.float().cpu().numpy()
        found.append(Look(chosen.numpy(), best.values.numpy(), mass, maps, t_vhd, probability))
    return found


def looks_of(
    model: LVLM,
    run: WrittenRun,
    records: Sequence[CaptionRecord],
    image_ids: Sequence[ItemId],
    top: int,
    top_k: int | None,
    batch_size: int = 8,
) -> Iterator[tuple[tuple[ItemId, str], Look]]:
    """The looks into the captions of some images by every method, with image and method."""
    k = default_top_k(model.n_heads) if top_k is None else top_k
    place = {image: i for i, image in enumerate(image_ids)}
    mine = sorted((r for r in records if r.image_id in place and r.tokens), key=lambda r: place[r.image_id])
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        inputs = model.inputs([run.sample(r.image_id).image for r in batch], run.prompt)
        ids = [torch.tensor(r.tokens, dtype=torch.long) for r in batch]
        for record, look in zip(batch, look_into(model, inputs, ids, top, k), strict=True):
            yield (record.image_id, record.method), look
