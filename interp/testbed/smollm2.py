"""Training `testbed-smollm2`: the testbed's tower on SmolLM2, made as LLaVAs are made.

First the projector alone learns to say each patch in the language model's own words; then projector and
low-rank adapters learn to describe, while tower and language model stay as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from interp.testbed import WEIGHTS
from interp.testbed.batches import Layout, Pool, Sampler
from interp.testbed.build import IMAGE_TOKENS
from interp.testbed.steps import LanguageTask, Run, Schedule, run_steps, train_in_float32_attention
from interp.testbed.tower import FEATURE_LAYER, render, tower_config
from interp.testbed.train import store_features
from interp.testbed.world import CATEGORIES, COLOURS

IMAGE = "<reponame>"
"""A token of SmolLM2's vocabulary that no chat uses; it stands for image features."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterRecipe(Schedule):
    """Adapters, data and optimiser of a LLaVA on a pretrained language model."""

    steps: int = 540
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 30
    autocast: bool = False
    rank: int = 16
    alpha: float = 32.0
    warm_start_steps: int = 250
    warm_start_lr: float = 2e-3
    unbiased: float = 0.15
    """Share of pictures of scenes without habit."""
    text: int = 150
    """Text positions of a sequence: a caption and two or three questions."""


SMOLLM2 = AdapterRecipe()


def smollm2_layout(tokenizer: Any, text: int) -> Layout:
    """SmolLM2's chat without a system prompt; the image stands where the user's message begins."""
    before = tuple(tokenizer.encode("<|im_start|>user\n", add_special_tokens=False))
    return Layout(before, lambda q: f"{q}<|im_end|>\n<|im_start|>assistant\n", opens="", text=text)


def assemble(language: Any, tower: CLIPVisionModel, image_token: int) -> LlavaForConditionalGeneration:
    """A LLaVA of a tower and a language model, float32; its projector is untrained."""
    config = LlavaConfig(
        vision_config=tower_config(),
        text_config=language.config,
        image_token_index=image_token,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model.eval()


def shipped_tower() -> CLIPVisionModel:
    """The tower of the bundled testbed, in float32."""
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS / "testbed", dtype=torch.float32)
    return model.model.vision_tower.eval().requires_grad_(False)


def _word_embeddings(embed: nn.Embedding, tokenizer: Any, words: tuple[str, ...]) -> Float[Tensor, "word width"]:
    """Mean embedding of each word's tokens; row 0, for the ground, is zero."""
    rows = [torch.zeros(embed.embedding_dim)]
    for word in words:
        rows.append(embed.weight[tokenizer.encode(" " + word, add_special_tokens=False)].detach().mean(0))
    return torch.stack(rows)


def warm_start(model: Any, tokenizer: Any, pool: Pool, recipe: AdapterRecipe) -> float:
    """Fit the projector alone to each patch's category word plus half its colour word; returns the relative error."""
    embed = model.model.language_model.get_input_embeddings()
    names = _word_embeddings(embed, tokenizer, CATEGORIES)
    colours = _word_embeddings(embed, tokenizer, tuple(COLOURS))
    n = min(1000, pool.kinds[0][1])
    labels = torch.from_numpy(render(pool.kinds[0][0], "train", n, pool.seed, labelled=True)[1]).long()
    projector = model.model.multi_modal_projector
    optimiser = torch.optim.Adam(projector.parameters(), lr=recipe.warm_start_lr)
    error = float("nan")
    for step in tqdm(range(recipe.warm_start_steps), desc="projector", unit="step"):
        picks = torch.randint(n, (16,), generator=torch.Generator().manual_seed(pool.seed + step))
        target = names[labels[picks, 0]] + 0.5 * colours[labels[picks, 1]]
        got = projector(torch.from_numpy(pool.features[picks.numpy()]).float())
        loss = (got - target).square().sum() / target.square().sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        error = loss.item()
    return error


def add_adapters(model: Any, recipe: AdapterRecipe) -> None:
    """Freeze everything but the projector and put trainable low-rank adapters on all linear layers of the decoder."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  training only
    except ImportError as error:
        raise ValueError("training low-rank adapters needs peft: pip install peft") from error
    model.requires_grad_(False)
    config = LoraConfig(r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=list(LINEARS), lora_dropout=0.0)
    inject_adapter_in_model(config, model.model.language_model)
    model.model.multi_modal_projector.requires_grad_(True)


def prepare(out: Path, recipe: AdapterRecipe, run: Run, base: Path) -> tuple[Any, Sampler, LanguageTask, float]:
    """The model with its adapters, ready to be trained, its data, and the warm start's relative error."""
    torch.manual_seed(run.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tower = shipped_tower()
    model = assemble(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tower, tokenizer.convert_tokens_to_ids(IMAGE)
    )
    free = round(run.scenes * recipe.unbiased)
    kinds = (("train", run.scenes - free), ("unbiased", free))
    parts = [store_features(tower, out, kind, scenes=n, seed=run.seed, device=run.device) for kind, n in kinds]
    pool = Pool(np.concatenate(parts), kinds, run.seed)
    error = warm_start(model, tokenizer, pool, recipe)
    add_adapters(model, recipe)
    train_in_float32_attention(model, run.device)
    layout = smollm2_layout(tokenizer, recipe.text)
    return model, Sampler(tokenizer, pool, layout, recipe.batch, run.seed), LanguageTask(model, layout), error


def train_smollm2(out: Path, name: str, recipe: AdapterRecipe, run: Run, base: Path) -> Path:
    """Train projector and adapters on the SmolLM2 in the folder `base`; goes on where it stopped.

    Returns the folder `out/name` with `adapter.safetensors` (float32) and `training.json`.
    """
    out.mkdir(parents=True, exist_ok=True)
    _, sampler, task, _ = prepare(out, recipe, run, base)
    run_steps(task, sampler, recipe, out / f"{name}.pt", run)
    return out
