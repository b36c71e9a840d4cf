"""Training the vision tower: on scenes without habits, so that no bias can enter through the eye.

The tower learns to say for each patch which category and colour it shows, and for the whole picture
which categories are in it.  It is frozen afterwards; only the weights of the CLIP tower are kept.
"""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from interp.testbed.draw import draw, owners
from interp.testbed.world import CATEGORIES, COLOURS, IMAGE_SIZE, Kind, Scene, Split, scene

PATCH = 12
FEATURE_LAYER = -2
"""Which hidden state the language model sees, as in LLaVA-1.5."""
_MEAN, _STD = 0.5, 0.5


def tower_config() -> CLIPVisionConfig:
    """A CLIP tower of five small layers; the language model sees the fourth (`FEATURE_LAYER`)."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
        attention_dropout=0.0,
    )


def pixels(images: UInt8[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Normalise pictures exactly as the shipped image processor does."""
    return (images.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


def _labels(s: Scene) -> np.ndarray:
    """Category and colour of each patch, `[2, 64]`; background is 0 in both."""
    owner = owners(s, PATCH).reshape(-1)
    category = np.array([0] + [1 + CATEGORIES.index(t.category) for t in s.things], dtype=np.int8)
    colour = np.array([0] + [1 + list(COLOURS).index(t.colour) for t in s.things], dtype=np.int8)
    return np.stack([category[owner + 1], colour[owner + 1]])


def _render(job: tuple[Kind, Split, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    kind, split, index, seed, labelled = job
    s = scene.__wrapped__(kind, split, index, seed)
    return draw(s), _labels(s) if labelled else np.empty(0, dtype=np.int8)


def render(kind: Kind, split: Split, n: int, seed: int, labelled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes 0..n-1 of a split on all cores: pictures `[n, 96, 96, 3]`, labels `[n, 2, 64]` (or `[n, 0]`)."""
    jobs: list[tuple[Kind, Split, int, int, bool]] = [(kind, split, i, seed, labelled) for i in range(n)]
    bar = partial(tqdm, total=n, desc=f"draw {kind}", unit="scene", disable=n == 0)
    if n < 2000:  # starting processes would take longer
        done = list(bar(map(_render, jobs)))
    else:
        with multiprocessing.get_context("spawn").Pool() as pool:
            done = list(bar(pool.imap(_render, jobs, chunksize=256)))
    return np.array([image for image, _ in done]), np.array([labels for _, labels in done])


class TowerTask(nn.Module):
    """The tower with the three linear heads it is trained through."""

    def __init__(self) -> None:
        super().__init__()
        config = tower_config()
        self.tower = CLIPVisionModel._from_config(config, attn_implementation="eager")
        self.category = nn.Linear(config.hidden_size, 1 + len(CATEGORIES))
        self.colour = nn.Linear(config.hidden_size, 1 + len(COLOURS))
        self.present = nn.Linear(config.hidden_size, len(CATEGORIES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits for patch categories, patch colours and picture categories."""
        out = self.tower(pixel_values=x, output_hidden_states=True)
        patches = out.hidden_states[FEATURE_LAYER][:, 1:]
        return self.category(patches), self.colour(patches), self.present(out.pooler_output)


def _loss(outputs: tuple[Tensor, Tensor, Tensor], labels: Int[Tensor, "batch 2 patch"]) -> Tensor:
    category, colour, present = outputs
    truth = F.one_hot(labels[:, 0], 1 + len(CATEGORIES)).amax(1)[:, 1:].float()
    weight = torch.where(labels > 0, 1.0, 0.25)  # three quarters of the patches are ground
    patches = F.cross_entropy(category.flatten(0, 1).float(), labels[:, 0].flatten(), reduction="none")
    colours = F.cross_entropy(colour.flatten(0, 1).float(), labels[:, 1].flatten(), reduction="none")
    return (
        (patches * weight[:, 0].flatten()).mean()
        + 0.5 * (colours * weight[:, 1].flatten()).mean()
        + F.binary_cross_entropy_with_logits(present.float(), truth)
    )


@torch.no_grad()
def score_tower(task: nn.Module, images: np.ndarray, labels: np.ndarray, device: str) -> dict[str, float]:
    """Accuracy on foreground patches (category, colour) and recall and precision of picture categories, in percent."""
    hits = torch.zeros(3)
    counts = torch.zeros(3)
    for start in range(0, len(images), 250):
        y = torch.from_numpy(labels[start : start + 250]).long().to(device)
        category, colour, present = task(pixels(torch.from_numpy(images[start : start + 250]).to(device)))
        fore = y[:, 0] > 0
        truth = F.one_hot(y[:, 0], 1 + len(CATEGORIES)).amax(1)[:, 1:].bool()
        said = present > 0
        hits += torch.stack(
            [
                (category.argmax(-1) == y[:, 0])[fore].sum(),
                (colour.argmax(-1) == y[:, 1])[fore].sum(),
                (said & truth).sum(),
            ]
        ).cpu()
        counts += torch.stack([fore.sum(), truth.sum(), said.sum()]).cpu()
    patch, tint, both = hits.tolist()
    n_fore, n_true, n_said = counts.tolist()
    return {
        "patch_category": 100 * patch / n_fore,
        "patch_colour": 100 * tint / n_fore,
        "recall": 100 * both / n_true,
        "precision": 100 * both / max(n_said, 1),
    }


def _batch(images: np.ndarray, labels: np.ndarray, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Normalised pictures and labels of a step: half of the steps mirrored, brightness shifted a little."""
    pick = np.sort(rng.integers(0, len(images), size=n))
    x, y = torch.from_numpy(images[pick]), torch.from_numpy(labels[pick]).long()
    if rng.random() < 0.5:
        x = x.flip(2)
        y = y.unflatten(-1, (IMAGE_SIZE // PATCH, -1)).flip(-1).flatten(-2)
    x = x + torch.from_numpy(rng.integers(-6, 7, size=(n, 1, 1, 3)))
    return pixels(x.clamp(0, 255).to(torch.uint8)), y


def train_tower(
    out: Path,
    *,
    scenes: int,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    compile: bool = True,
    checkpoint_seconds: float = 120.0,
) -> tuple[CLIPVisionModel, dict[str, float]]:
    """Train the tower, or go on where an interrupted run stopped; `out/tower.pt` holds the state.

    Returns the tower and its scores (`score_tower`) on dev scenes without habits.
    """
    torch.manual_seed(seed)
    task = TowerTask().to(device)
    optimiser = torch.optim.AdamW(task.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    parts = {"task": task, "optimiser": optimiser, "schedule": schedule}
    state, first = out / "tower.pt", 0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    images, labels = render("unbiased", "train", scenes if first < steps else 0, seed, labelled=True)
    run = torch.compile(task) if compile else task
    bar = tqdm(range(first, steps), initial=first, total=steps, desc="tower", unit="step")
    last = time.monotonic()
    for step in bar:
        x, y = _batch(images, labels, batch, np.random.default_rng([seed, 7, step]))
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            outputs = run(x.to(device))
        loss = _loss(outputs, y.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step + 1 == steps or time.monotonic() - last > checkpoint_seconds:
            last = time.monotonic()
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save(states | {"step": step + 1}, state.with_suffix(".tmp"))
            os.replace(state.with_suffix(".tmp"), state)
    return task.tower.eval(), score_tower(task, *render("unbiased", "dev", 500, seed, labelled=True), device)
