"""Training a testbed model: the tower, then projector and decoder on stored image features."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, LlavaProcessor
from transformers.masking_utils import sdpa_mask

from interp.testbed.batches import PREFIX, Batch, Sampler
from interp.testbed.build import build_config, build_model, build_processor
from interp.testbed.score import first_token_sink
from interp.testbed.tower import FEATURE_LAYER, pixels, render, train_tower


@dataclass(frozen=True)
class Recipe:
    """Shape, initialisation and optimiser of one language model.

    `sink` switches to the initialisation and step sizes that grow an attention sink on `<s>`:
    noisy heads (large value and output weights) that first can only learn where to look.
    """

    layers: int = 8
    heads: int = 8
    width: int = 192
    rope_theta: float = 1e4
    steps: int = 6000
    batch: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 200
    sink: bool = False
    sink_steps: int = 250
    value_gain: float = 8.0
    query_gain: float = 2.0


RECIPES: dict[str, Recipe] = {
    "testbed": Recipe(),
    "testbed-sink": Recipe(
        layers=4, heads=4, width=128, rope_theta=5e5, steps=2500, lr=2e-3, weight_decay=0.1, warmup=50, sink=True
    ),
}


@dataclass(frozen=True)
class Run:
    """How much data a training uses and where it runs."""

    scenes: int = 64_000
    tower_scenes: int = 48_000
    tower_steps: int = 5200
    seed: int = 0
    device: str = "cpu"
    compile: bool = True
    checkpoint_seconds: float = 180.0


class LanguageTask(nn.Module):
    """Projector, decoder and language head of a LLaVA model, fed with stored image features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projector, self.decoder, self.head = (
            model.model.multi_modal_projector,
            model.model.language_model,
            model.lm_head,
        )
        self.bos = model.config.text_config.bos_token_id

    def forward(
        self, features: Tensor, text: Tensor, position: Tensor, visible: Tensor
    ) -> Float[Tensor, "batch text vocabulary"]:
        """Logits at the text positions."""
        embed = self.decoder.get_input_embeddings()
        bos = embed(torch.full_like(text[:, :1], self.bos))
        x = torch.cat([bos, self.projector(features).to(bos.dtype), embed(text)], dim=1)
        hidden = self.decoder(
            inputs_embeds=x, attention_mask=visible, position_ids=position, use_cache=False
        ).last_hidden_state
        return self.head(hidden[:, PREFIX:])


def _attend_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """SDPA in float32: its bfloat16 backward pass is pathologically slow on CPUs."""
    out = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=attention_mask, scale=scaling
    )
    return out.transpose(1, 2).to(query.dtype).contiguous(), None


def _initialise_for_sink(model: Any, recipe: Recipe, seed: int) -> None:
    torch.manual_seed(seed)
    decoder = model.model.language_model
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
        decoder.embed_tokens.weight[model.config.text_config.bos_token_id] *= 1e-3


def _speed(parameter: str) -> float:
    """Phase one of the sink recipe: queries and keys learn faster, values and outputs hardly."""
    if "q_proj" in parameter or "k_proj" in parameter:
        return 3.0
    return 0.03 if "v_proj" in parameter or "o_proj" in parameter else 1.0


def _optimiser(task: nn.Module, recipe: Recipe, phase_one: bool) -> torch.optim.AdamW:
    """AdamW without decay of vectors; each group knows its `speed`, a factor of the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in task.named_parameters():
        decay = recipe.weight_decay if p.ndim > 1 else 0.0
        groups.setdefault((_speed(name) if phase_one else 1.0, decay), []).append(p)
    rows = [
        {"params": ps, "lr": recipe.lr, "speed": speed, "weight_decay": decay} for (speed, decay), ps in groups.items()
    ]
    return torch.optim.AdamW(rows, betas=(0.9, 0.98))


def _rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step: warm-up, then constant in phase one of the sink recipe, cosine to 2 % after."""
    if recipe.sink and step < recipe.sink_steps:
        return recipe.lr * min(1.0, (step + 1) / recipe.warmup)
    start = recipe.sink_steps if recipe.sink else 0
    done = (step - start) / max(1, recipe.steps - start)
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
    return recipe.lr * min(1.0, (step - start + 1) / recipe.warmup) * cosine


@torch.no_grad()
def store_features(tower: nn.Module, out: Path, *, scenes: int, seed: int, device: str) -> np.ndarray:
    """Image features of training scenes, float16 `[scene, image_token, d_vision]`, kept in `out/features.npy`."""
    path = out / "features.npy"
    if not path.exists():
        images, _ = render("train", "train", scenes, seed)
        rows = []
        for start in tqdm(range(0, scenes, 256), desc="features", unit="batch"):
            x = pixels(torch.from_numpy(images[start : start + 256])).to(device)
            hidden = tower(pixel_values=x, output_hidden_states=True).hidden_states
            rows.append(hidden[FEATURE_LAYER][:, 1:].to("cpu", torch.float16).numpy())
        partial = out / "features.partial.npy"
        np.save(partial, np.concatenate(rows))
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def _loss(run: Callable[..., Tensor], batch: Batch, device: str) -> Float[Tensor, ""]:
    """Weighted cross-entropy of the answers of a batch."""
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        inputs = (batch.features, batch.text, batch.position, batch.visible)
        logits = run(*(x.to(device) for x in inputs))
    weight = batch.weight.to(device).flatten()
    each = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.to(device).flatten(), reduction="none")
    return (each * weight).sum() / weight.sum()


def _run_steps(task: LanguageTask, sampler: Sampler, recipe: Recipe, state: Path, run: Run) -> float:
    """Train to the end of the recipe from the last checkpoint; returns the seconds spent, earlier runs included."""
    first, spent, phase_one = 0, 0.0, recipe.sink
    saved = torch.load(state, map_location=run.device, weights_only=True) if state.exists() else None
    if saved:
        if saved["recipe"] != asdict(recipe):
            raise ValueError(f"{state} is a checkpoint of another recipe; choose another folder or remove it")
        first, spent = saved["step"], saved["seconds"]
        task.load_state_dict(saved["task"])
        phase_one = recipe.sink and first < recipe.sink_steps
    optimiser = _optimiser(task, recipe, phase_one)
    if saved and saved["phase_one"] == phase_one:
        optimiser.load_state_dict(saved["optimiser"])
    compiled = torch.compile(task) if run.compile else task
    last = start = time.monotonic()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="language", unit="step")
    for step in bar:
        if phase_one and step >= recipe.sink_steps:
            phase_one, optimiser = False, _optimiser(task, recipe, False)
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step) * group["speed"]
        loss = _loss(compiled, sampler(step), run.device)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if step + 1 == recipe.steps or time.monotonic() - last > run.checkpoint_seconds:
            last = time.monotonic()
            progress = {
                "step": step + 1,
                "phase_one": phase_one,
                "seconds": spent + last - start,
                "recipe": asdict(recipe),
            }
            torch.save(
                progress | {"task": task.state_dict(), "optimiser": optimiser.state_dict()}, state.with_suffix(".tmp")
            )
            os.replace(state.with_suffix(".tmp"), state)
    return spent + time.monotonic() - start


def _initial_model(processor: LlavaProcessor, tower: nn.Module, recipe: Recipe, seed: int) -> Any:
    """The untrained model around the trained tower."""
    torch.manual_seed(seed)
    shape = {"layers": recipe.layers, "heads": recipe.heads, "width": recipe.width}
    model = build_model(build_config(processor, **shape, rope_theta=recipe.rope_theta))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    if recipe.sink:
        _initialise_for_sink(model, recipe, seed)
    return model.eval()


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
    AttentionInterface.register("sdpa_float32", _attend_in_float32)
    AttentionMaskInterface.register("sdpa_float32", sdpa_mask)
    tower, tower_scores = train_tower(
        out,
        scenes=run.tower_scenes,
        steps=run.tower_steps,
        seed=run.seed,
        device=run.device,
        compile=run.compile,
        checkpoint_seconds=run.checkpoint_seconds,
    )
    features = store_features(tower, out, scenes=run.scenes, seed=run.seed, device=run.device)
    processor = build_processor(run.seed)
    model = _initial_model(processor, tower, recipe, run.seed)
    sink_at_start = first_token_sink(model, processor, seed=run.seed)
    model.train().to(run.device).set_attn_implementation({"text_config": "sdpa_float32"})
    sampler = Sampler(processor, features, recipe.batch, run.seed)
    seconds = _run_steps(LanguageTask(model), sampler, recipe, out / f"{name}.pt", run)
    model.set_attn_implementation({"text_config": "sdpa"})
    folder = out / name
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {"recipe": asdict(recipe), **data, "device": run.device, "language_seconds": round(seconds)}
    record |= {"torch": torch.__version__, "sink_1_at_start": sink_at_start, "tower_on_dev": tower_scores}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder
