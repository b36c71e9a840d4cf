"""The training loop of a language model: batches in, weights out, resumable at every checkpoint."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from interp.testbed.batches import Batch, Layout


@dataclass(frozen=True)
class Schedule:
    """Optimiser and length of a training; `slow_steps` is the length of the sink recipe's first phase, else 0."""

    steps: int = 6000
    batch: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 200
    autocast: bool = True
    """bfloat16 where torch thinks it right; it pays where the processor has matrix units for it."""
    head_dropout: float = 0.0
    """Share of heads that say nothing in a sequence, drawn anew in each layer and step."""

    @property
    def slow_steps(self) -> int:
        """Steps in which queries and keys learn faster and values and outputs hardly."""
        return 0

    def speed(self, parameter: str) -> float:
        """A factor of the learning rate of a parameter, by its name, in every phase."""
        return 1.0


class Task(nn.Module):
    """What is trained: called with a batch's features, text, positions and visibility, it gives what `head` reads."""

    decoder: Any
    head: Any


class LanguageTask(Task):
    """Projector, decoder and language head of a LLaVA model, fed with stored image features."""

    projector: Any
    before: Tensor

    def __init__(self, model: Any, layout: Layout) -> None:
        super().__init__()
        self.projector, self.decoder, self.head = (
            model.model.multi_modal_projector,
            model.model.language_model,
            model.lm_head,
        )
        self.prefix = layout.prefix
        self.register_buffer("before", torch.tensor(layout.before), persistent=False)

    before: Tensor

    def forward(
        self, features: Tensor, text: Tensor, position: Tensor, visible: Tensor
    ) -> Float[Tensor, "batch text width"]:
        """What the head reads at the text positions."""
        embed = self.decoder.get_input_embeddings()
        before = embed(self.before.expand(len(text), -1))
        x = torch.cat([before, self.projector(features).to(before.dtype), embed(text)], dim=1)
        hidden = self.decoder(
            inputs_embeds=x, attention_mask=visible, position_ids=position, use_cache=False
        ).last_hidden_state
        return hidden[:, self.prefix :]


def _attention_in_float32(head_dropout: float) -> Callable[..., tuple[Tensor, None]]:
    """SDPA in float32 (its bfloat16 backward pass is pathologically slow on CPUs), with whole heads dropped."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=attention_mask, scale=scaling
        )
        if head_dropout:
            speaks = torch.rand(out.shape[:2], device=out.device)[:, :, None, None] >= head_dropout
            out = out * speaks / (1 - head_dropout)
        return out.transpose(1, 2).to(query.dtype).contiguous(), None

    return attend


def trained(task: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training moves, by name."""
    return {name: p for name, p in task.named_parameters() if p.requires_grad}


def _speed(parameter: str) -> float:
    """Phase one of the sink recipe: queries and keys learn faster, values and outputs hardly."""
    if "q_proj" in parameter or "k_proj" in parameter:
        return 3.0
    return 0.03 if "v_proj" in parameter or "o_proj" in parameter else 1.0


def ready_to_train(model: Any, recipe: Schedule, device: str) -> None:
    """Put a LLaVA model on the device in training mode, its decoder's attention in float32."""
    name = f"sdpa_float32_{recipe.head_dropout}"
    AttentionInterface.register(name, _attention_in_float32(recipe.head_dropout))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.train().to(device).set_attn_implementation({"text_config": name})


def _optimiser(task: nn.Module, recipe: Schedule, phase_one: bool) -> torch.optim.AdamW:
    """AdamW without decay of vectors; each group knows its `speed`, a factor of the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trained(task).items():
        decay = recipe.weight_decay if p.ndim > 1 else 0.0
        speed = recipe.speed(name) * (_speed(name) if phase_one else 1.0)
        groups.setdefault((speed, decay), []).append(p)
    rows = [
        {"params": ps, "lr": recipe.lr, "speed": speed, "weight_decay": decay} for (speed, decay), ps in groups.items()
    ]
    return torch.optim.AdamW(rows, betas=(0.9, 0.98))


def _rate(recipe: Schedule, step: int) -> float:
    """Learning rate at a step: warm-up, then constant in phase one of the sink recipe, cosine to 2 % after."""
    if step < recipe.slow_steps:
        return recipe.lr * min(1.0, (step + 1) / recipe.warmup)
    start = recipe.slow_steps
    done = (step - start) / max(1, recipe.steps - start)
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
    return recipe.lr * min(1.0, (step - start + 1) / recipe.warmup) * cosine


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
    keep_checkpoints: bool = False
    """Whether to keep the weights, bfloat16, after 0, 1, 2, 3, 4, 6, 8, 12, 16, ... steps and at the end."""


def _loss(run: Callable[..., Tensor], head: nn.Module, batch: Batch, device: str, autocast: bool) -> Float[Tensor, ""]:
    """Weighted cross-entropy of the answers of a batch."""
    weight = batch.weight.to(device).flatten()
    asked = weight > 0  # the head is the dearest layer of a large vocabulary
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
        inputs = (batch.features, batch.text, batch.position, batch.visible)
        hidden = run(*(x.to(device) for x in inputs))
        logits = head(hidden.flatten(0, 1)[asked])
    each = F.cross_entropy(logits.float(), batch.target.to(device).flatten()[asked], reduction="none")
    return (each * weight[asked]).sum() / weight.sum()


def kept(step: int) -> bool:
    """Whether the weights after a number of steps are kept: 0, 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    top = 1 << max(step.bit_length() - 1, 0)
    return step in (0, top, top + top // 2)


def _keep(task: nn.Module, folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in trained(task).items()}
    save_file(weights, folder / f"step-{step:06d}.safetensors")


def run_steps(task: Task, sampler: Callable[[int], Batch], recipe: Schedule, state: Path, run: Run) -> float:
    """Train to the end of the recipe from the last checkpoint; returns the seconds spent, earlier runs included.

    `state` is the checkpoint; with `run.keep_checkpoints` the weights on a logarithmic scale of steps lie beside it.
    Raises ValueError if the checkpoint is one of another recipe.
    """
    first, spent = 0, 0.0
    saved = torch.load(state, map_location=run.device, weights_only=True) if state.exists() else None
    if saved:
        if saved["recipe"] != asdict(recipe):
            raise ValueError(f"{state} is a checkpoint of another recipe; choose another folder or remove it")
        first, spent = saved["step"], saved["seconds"]
        left = task.load_state_dict(saved["task"], strict=False)
        assert not left.unexpected_keys
        assert trained(task).keys().isdisjoint(left.missing_keys)
    phase_one = first < recipe.slow_steps
    optimiser = _optimiser(task, recipe, phase_one)
    if saved and saved["phase_one"] == phase_one:
        optimiser.load_state_dict(saved["optimiser"])
    compiled = torch.compile(task) if run.compile else task
    last = start = time.monotonic()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="language", unit="step")
    for step in bar:
        if run.keep_checkpoints and kept(step):
            _keep(task, state.with_suffix(".steps"), step)
        if phase_one and step >= recipe.slow_steps:
            phase_one, optimiser = False, _optimiser(task, recipe, False)
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step) * group["speed"]
        torch.manual_seed(run.seed * 1_000_003 + step)  # heads that are dropped
        loss = _loss(compiled, task.head, sampler(step), run.device, recipe.autocast)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(trained(task).values()), 1.0)
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
                "task": {name: p.detach() for name, p in trained(task).items()},
                "optimiser": optimiser.state_dict(),
            }
            torch.save(progress, state.with_suffix(".tmp"))
            os.replace(state.with_suffix(".tmp"), state)
    if run.keep_checkpoints:
        _keep(task, state.with_suffix(".steps"), recipe.steps)
    return spent + time.monotonic() - start
