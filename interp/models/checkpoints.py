"""The checkpoints of a training, as users name them: folders, revisions of a hub model, or what interp's trainers keep.

`runs/x` with `checkpoint-100`, `checkpoint-200`, ... in it is all of them, in order; `runs/NAME.steps`, which `interp
testbed train --keep-checkpoints` and `interp testbed decoders` write, are weights for the model in `runs/NAME`;
`EleutherAI/pythia-70m@step1000` is a hub model at a revision.
"""

import re
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from safetensors.torch import load_file

from interp.models.lvlm import LVLM


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model: the folder or hub id to load, its revision, and weights to put in, if they lie apart.

    `step` is the last number of its name (its place in the list, where it has none).
    """

    name: str
    step: int
    place: str
    revision: str | None = None
    weights: Path | None = None


def _number(text: str, otherwise: int) -> int:
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else otherwise


def _inside(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder that is none itself."""
    files = sorted(folder.glob("step-*.safetensors"))
    if files:
        model = folder.with_suffix("")
        if folder.suffix != ".steps" or not (model / "config.json").exists():
            raise ValueError(
                f"the weights in {folder} belong to a model folder beside it, {model}, which is not there; it is "
                "written at the end of a training, of a kernel that any loader knows"
            )
        return [Checkpoint(f.stem, _number(f.stem, 0), str(model), weights=f) for f in files]
    folders = [path.parent for path in folder.glob("*/config.json") if re.search(r"\d", path.parent.name)]
    return sorted((Checkpoint(f.name, _number(f.name, 0), str(f)) for f in folders), key=lambda c: c.step)


def checkpoints_of(listed: str) -> list[Checkpoint]:
    """The checkpoints that a comma-separated list names, by step; ValueError for an entry in which there is none."""
    found: list[Checkpoint] = []
    for i, entry in enumerate(part.strip() for part in listed.split(",")):
        folder = Path(entry)
        if folder.is_dir() and not (folder / "config.json").exists():
            inside = _inside(folder)
            if not inside:
                raise ValueError(
                    f"{entry} holds no checkpoints: expected folders such as checkpoint-500 with a config.json, or "
                    "step-000500.safetensors as interp's trainers keep them"
                )
            found += inside
        else:
            place, _, revision = entry.partition("@")
            found.append(Checkpoint(entry, _number(revision or folder.name, i), place, revision or None))
    if len({c.step for c in found}) < len(found):
        raise ValueError(f"two checkpoints of {listed!r} are of the same step: {sorted(c.step for c in found)}")
    return sorted(found, key=lambda c: c.step)


def put_weights(model: LVLM, path: Path) -> None:
    """Put the weights that a trainer of interp kept (`decoder.`, `head.`, `projector.`) into the trained model."""
    parts = {
        "decoder": attrgetter(model.family.layers.rpartition(".")[0])(model.hf),
        "head": model.hf.get_output_embeddings(),
        "projector": getattr(getattr(model.hf, "model", None), "multi_modal_projector", None),
    }
    own = {f"{part}.{n}": p for part, m in parts.items() if m is not None for n, p in m.named_parameters()}
    weights = load_file(path)
    wrong = [n for n, w in weights.items() if n not in own or own[n].shape != w.shape]
    if wrong:
        raise ValueError(f"{path} holds weights that {model.name} has no place for: {', '.join(wrong[:3])}")
    with torch.no_grad():
        for name, w in weights.items():
            own[name].copy_(w)
