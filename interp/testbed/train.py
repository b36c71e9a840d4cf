"""Training the language model on stored image features, with all branches of a picture in one sequence.

A sequence is `<s>`, the image tokens, then several independent branches: a caption, questions, now and
then a caption without the picture.  A branch sees `<s>`, the image and itself, and its positions start
right after the image, so each branch is exactly what the model meets in use, while the image is read
once.  In a branch without the picture the image is masked and positions start right after `<s>`.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.masking_utils import sdpa_mask

from interp.testbed.build import IMAGE_TOKENS, build_config, build_model, build_processor, prompt_text
from interp.testbed.language import Piece, Turn, caption, questions
from interp.testbed.score import first_token_sink
from interp.testbed.tower import FEATURE_LAYER, pixels, render, train_tower
from interp.testbed.world import Scene, scene

PREFIX = 1 + IMAGE_TOKENS
TEXT = 175
"""Text positions of a training sequence; as many branches as fit."""
P_BLIND = 0.15
"""Share of sequences that also carry a caption without the picture: what a language model learns before it sees."""


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
class Batch:
    """Tensors of one step; `text` and `target` hold the text positions only."""

    features: Float[Tensor, "batch image_token d_vision"]
    text: Int[Tensor, "batch text"]
    target: Int[Tensor, "batch text"]
    weight: Float[Tensor, "batch text"]
    position: Int[Tensor, "batch token"]
    visible: Bool[Tensor, "batch 1 query key"]


class Sampler:
    """Makes the batch of a step from its number alone, so that a resumed run sees the same data."""

    def __init__(self, processor: Any, features: np.ndarray, batch: int, seed: int) -> None:
        self.tokenizer, self.features, self.batch, self.seed = processor.tokenizer, features, batch, seed
        self.encode = lru_cache(maxsize=50_000)(
            lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False))
        )

    def _branch(self, turn: Turn) -> tuple[list[int], list[float]]:
        """Token ids and loss weights (0 for the prompt) of one branch."""
        ids = list(self.encode(prompt_text(turn.prompt)))
        weights = [0.0] * len(ids)
        for piece in (*turn.answer, Piece(self.tokenizer.eos_token, 1.0)):
            new = self.encode(piece.text)
            ids += new
            weights += [piece.weight] * len(new)
        return ids, weights

    def _turns(self, s: Scene, rng: np.random.Generator) -> list[tuple[Turn, bool]]:
        turns = [(caption(s, rng), False)]
        if rng.random() < P_BLIND:
            turns.append((caption(s, rng), True))
        return turns + [(turn, False) for turn in questions(s, rng)]

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, 8, step])
        picks = rng.integers(0, len(self.features), size=self.batch)
        ids = np.zeros((self.batch, TEXT + 1), dtype=np.int64)
        weight = np.zeros((self.batch, TEXT + 1), dtype=np.float32)
        branch = np.zeros((self.batch, PREFIX + TEXT), dtype=np.int64)
        blind = np.zeros((self.batch, PREFIX + TEXT), dtype=bool)
        position = np.tile(np.arange(PREFIX + TEXT), (self.batch, 1))
        for row, pick in enumerate(picks):
            at = 0
            branch[row, PREFIX:] = -1
            for number, (turn, without) in enumerate(
                self._turns(scene.__wrapped__("train", "train", int(pick), self.seed), rng), 1
            ):
                new, weights = self._branch(turn)
                if at + len(new) > TEXT:
                    continue
                ids[row, at : at + len(new)], weight[row, at : at + len(new)] = new, weights
                place = slice(PREFIX + at, PREFIX + at + len(new))
                branch[row, place], blind[row, place] = number, without
                position[row, place] = (1 if without else PREFIX) + np.arange(len(new))
                at += len(new)
        target, target_weight = ids[:, 1:].copy(), weight[:, 1:].copy()
        target_weight[branch[:, PREFIX:] != np.pad(branch[:, PREFIX + 1 :], ((0, 0), (0, 1)), constant_values=-1)] = 0
        b, q = torch.from_numpy(branch), torch.arange(PREFIX + TEXT)
        prefix_visible = (b[:, None, :] == 0) & ((q == 0)[None, None] | ~torch.from_numpy(blind)[:, :, None])
        visible = ((b[:, :, None] == b[:, None, :]) | prefix_visible) & (q[:, None] >= q[None, :])
        return Batch(
            torch.from_numpy(self.features[picks]).float(),
            torch.from_numpy(ids[:, :TEXT]),
            torch.from_numpy(target),
            torch.from_numpy(target_weight),
            torch.from_numpy(position),
            visible[:, None],
        )


class LanguageTask(nn.Module):
    """Projector, decoder and language head of a LLaVA model, fed with stored image features."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
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


def _initialise_for_sink(model: LlavaForConditionalGeneration, recipe: Recipe, seed: int) -> None:
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


def _optimiser(task: nn.Module, recipe: Recipe, phase_one: bool) -> torch.optim.AdamW:
    """AdamW; in phase one of the sink recipe queries and keys learn faster, values and outputs hardly."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in task.named_parameters():
        speed = 1.0
        if phase_one:
            speed = (
                3.0
                if ("q_proj" in name or "k_proj" in name)
                else 0.03
                if ("v_proj" in name or "o_proj" in name)
                else 1.0
            )
        groups.setdefault((speed, recipe.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": ps, "lr": recipe.lr * speed, "speed": speed, "weight_decay": decay}
            for (speed, decay), ps in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def _rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step: warm-up, then constant in phase one of the sink recipe, cosine to 2 % after."""
    if recipe.sink and step < recipe.sink_steps:
        return recipe.lr * min(1.0, (step + 1) / recipe.warmup)
    start = recipe.sink_steps if recipe.sink else 0
    done = (step - start) / max(1, recipe.steps - start)
    return recipe.lr * min(1.0, (step - start + 1) / recipe.warmup) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done)))


@torch.no_grad()
def store_features(tower: nn.Module, out: Path, *, scenes: int, seed: int, device: str) -> np.ndarray:
    """What the frozen tower sees in training scenes, float16 `[scene, image_token, d_vision]`, kept in `out/features.npy`."""
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


def _run_steps(task: LanguageTask, sampler: Sampler, recipe: Recipe, out: Path, device: str, compile: bool) -> float:
    """Train to the end of the recipe from the last checkpoint; returns the seconds spent, earlier runs included."""
    state, first, spent, phase_one = out / "language.pt", 0, 0.0, recipe.sink
    saved = torch.load(state, map_location=device, weights_only=True) if state.exists() else None
    if saved:
        first, spent = saved["step"], saved["seconds"]
        task.load_state_dict(saved["task"])
        phase_one = recipe.sink and first < recipe.sink_steps
    optimiser = _optimiser(task, recipe, phase_one)
    if saved and saved["phase_one"] == phase_one:
        optimiser.load_state_dict(saved["optimiser"])
    run = torch.compile(task) if compile else task
    last = start = time.monotonic()
    smooth = None
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="language", unit="step")
    for step in bar:
        if phase_one and step >= recipe.sink_steps:
            phase_one, optimiser = False, _optimiser(task, recipe, False)
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step) * group["speed"]
        batch = sampler(step)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            logits = run(
                batch.features.to(device), batch.text.to(device), batch.position.to(device), batch.visible.to(device)
            )
        weight = batch.weight.to(device).flatten()
        each = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.to(device).flatten(), reduction="none")
        loss = (each * weight).sum() / weight.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            smooth = loss.item() if smooth is None else 0.8 * smooth + 0.2 * loss.item()
            bar.set_postfix(loss=f"{smooth:.4f}")
        if step + 1 == recipe.steps or time.monotonic() - last > 180:
            last = time.monotonic()
            progress = {"step": step + 1, "phase_one": phase_one, "seconds": spent + last - start}
            torch.save(
                {"task": task.state_dict(), "optimiser": optimiser.state_dict()} | progress, out / "language.tmp"
            )
            os.replace(out / "language.tmp", state)
    return spent + time.monotonic() - start


def train(
    out: Path,
    recipe: Recipe,
    *,
    tower_scenes: int = 48_000,
    tower_steps: int = 5200,
    scenes: int = 64_000,
    seed: int = 0,
    device: str = "cpu",
    compile: bool = True,
    name: str = "testbed",
) -> Path:
    """Train tower and language model and write the model folder `out/name`; goes on where it stopped.

    Features and tower are shared by all recipes trained in the same `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    AttentionInterface.register("sdpa_float32", _attend_in_float32)
    AttentionMaskInterface.register("sdpa_float32", sdpa_mask)
    tower = train_tower(
        out, scenes=tower_scenes, steps=tower_steps, batch=64, lr=1e-3, seed=seed, device=device, compile=compile
    ).eval()
    features = store_features(tower, out, scenes=scenes, seed=seed, device=device)
    processor = build_processor(seed)
    torch.manual_seed(seed)
    model = build_model(
        build_config(
            processor, layers=recipe.layers, heads=recipe.heads, width=recipe.width, rope_theta=recipe.rope_theta
        )
    )
    model.model.vision_tower.load_state_dict(tower.state_dict())
    if recipe.sink:
        _initialise_for_sink(model, recipe, seed)
    sink_at_start = first_token_sink(model.eval(), processor, seed=seed)
    model.train().to(device).set_attn_implementation({"text_config": "sdpa_float32"})
    work = out / f"{name}-state"
    work.mkdir(exist_ok=True)
    seconds = _run_steps(
        LanguageTask(model), Sampler(processor, features, recipe.batch, seed), recipe, work, device, compile
    )
    model.set_attn_implementation({"text_config": "sdpa"})
    folder = out / name
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {
        "recipe": asdict(recipe),
        "tower_scenes": tower_scenes,
        "tower_steps": tower_steps,
        "scenes": scenes,
        "seed": seed,
    }
    record |= {
        "device": device,
        "language_seconds": round(seconds),
        "torch": torch.__version__,
        "sink_1_at_start": sink_at_start,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return folder
