"""Training a testbed model: the tower, then projector and decoder on stored image features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import LlavaProcessor

from interp.testbed.batches import Pool, Sampler, layout_of_testbed
from interp.testbed.build import build_config, build_model, build_processor
from interp.testbed.score import first_token_sink
from interp.testbed.steps import LanguageTask, Run, Schedule, ready_to_train, run_steps
from interp.testbed.tower import FEATURE_LAYER, pixels, render, train_tower
from interp.testbed.world import Kind


@dataclass(frozen=True)
class Recipe(Schedule):
    """Shape, initialisation and optimiser of one language model.

    `sink` switches to the initialisation and step sizes that grow an attention sink on `<s>`:
    noisy heads (large value and output weights) that first can only learn where to look.
    """

    layers: int = 8
    heads: int = 8
    width: int = 192
    rope_theta: float = 1e4
    sink: bool = False
    sink_steps: int = 250
    value_gain: float = 8.0
    query_gain: float = 2.0

    @property
    def slow_steps(self) -> int:
        """The first phase of the sink recipe."""
        return self.sink_steps if self.sink else 0


RECIPES: dict[str, Recipe] = {
    "testbed": Recipe(),
    "testbed-sink": Recipe(
        layers=4, heads=4, width=128, rope_theta=5e5, steps=2500, lr=2e-3, weight_decay=0.1, warmup=50, sink=True
    ),
}


def initialise_for_sink(decoder: Any, recipe: Recipe, begin: int, seed: int) -> None:
    """Weights from which a sink grows on the token `begin`: large values and outputs, and hardly an embedding of it."""
    torch.manual_seed(seed)
    for name, p in decoder.named_parameters():
        if p.ndim < 2:
            continue
        gain = (
            recipe.value_gain
            if ("v_proj" in name or "o_proj" in name)
            else recipe.query_gain
            if ("q_proj" in name or "k_proj" in name)
            else 1.0
        )
        nn.init.normal_(p, std=gain / recipe.width**0.5)
    with torch.no_grad():
        decoder.embed_tokens.weight[begin] *= 1e-3


@torch.no_grad()
def store_features(tower: nn.Module, out: Path, kind: Kind, *, scenes: int, seed: int, device: str) -> np.ndarray:
    """Features of training scenes of a kind, float16 `[scene, image_token, d_vision]`, kept in `out/KIND.npy`."""
    path = out / f"{kind}.npy"
    if not path.exists():
        images, _ = render(kind, "train", scenes, seed)
        rows = []
        for start in tqdm(range(0, scenes, 256), desc="features", unit="batch"):
            x = pixels(torch.from_numpy(images[start : start + 256])).to(device)
            hidden = tower(pixel_values=x, output_hidden_states=True).hidden_states
            rows.append(hidden[FEATURE_LAYER][:, 1:].to("cpu", torch.float16).numpy())
        partial = out / f"{kind}.partial.npy"
        np.save(partial, np.concatenate(rows))
        partial.rename(path)
    stored = np.load(path, mmap_mode="r")
    if len(stored) != scenes:
        raise ValueError(f"{path} holds features of {len(stored)} scenes, not {scenes}; choose another folder")
    return stored


def _initial_model(processor: LlavaProcessor, tower: nn.Module, recipe: Recipe, seed: int) -> Any:
    """The untrained model around the trained tower."""
    torch.manual_seed(seed)
    shape = {"layers": recipe.layers, "heads": recipe.heads, "width": recipe.width}
    model = build_model(build_config(processor, **shape, rope_theta=recipe.rope_theta))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    if recipe.sink:
        initialise_for_sink(model.model.language_model, recipe, processor.tokenizer.bos_token_id, seed)
    return model.eval()


def save_model(folder: Path, model: Any, processor: LlavaProcessor, record: dict[str, Any]) -> Path:
    """Write a model in bfloat16, its processor, and how it was made (`training.json`)."""
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    record = record | {"torch": torch.__version__}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def train(out: Path, name: str, recipe: Recipe, run: Run) -> Path:
    """Train tower and language model and write the model folder `out/name`; goes on where it stopped.

    Tower and features are shared by all recipes trained in the same `out`; ValueError if what lies there was
    made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = out / "data.json"
    data = {"scenes": run.scenes, "tower_scenes": run.tower_scenes, "tower_steps": run.tower_steps, "seed": run.seed}
    if made.exists() and json.loads(made.read_text(encoding="utf-8")) != data:
        raise ValueError(f"{out} holds a training with other data ({made.read_text().strip()}); choose another folder")
    made.write_text(json.dumps(data) + "\n", encoding="utf-8")
    tower, tower_scores = train_tower(
        out,
        scenes=run.tower_scenes,
        steps=run.tower_steps,
        seed=run.seed,
        device=run.device,
        compile=run.compile,
        checkpoint_seconds=run.checkpoint_seconds,
    )
    features = store_features(tower, out, "train", scenes=run.scenes, seed=run.seed, device=run.device)
    processor = build_processor(run.seed)
    model = _initial_model(processor, tower, recipe, run.seed)
    sink_at_start = first_token_sink(model, processor, seed=run.seed)
    ready_to_train(model, recipe, run.device)
    layout = layout_of_testbed(processor.tokenizer)
    sampler = Sampler(
        processor.tokenizer, Pool(features, (("train", run.scenes),), run.seed), layout, recipe.batch, run.seed
    )
    seconds = run_steps(LanguageTask(model, layout), sampler, recipe, out / f"{name}.pt", run)
    model.set_attn_implementation({"text_config": "sdpa"})
    record = {"recipe": asdict(recipe), **data, "device": run.device, "language_seconds": round(seconds)}
    record |= {"sink_1_at_start": sink_at_start, "tower_on_dev": tower_scores}
    return save_model(out / name, model, processor, record)
