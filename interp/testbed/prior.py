"""Training `testbed-prior`: a language model with a habit first, eyes afterwards, as LLaVAs are made.

The decoder learns the habitual world from text alone, without a picture: to say what it is told of a scene in words,
and what goes without saying (`telling`).  Then the projector learns to say pictures in words the decoder, which stays
as it is, understands; and for a short while both are tuned.  The pictures are of scenes without habit, truthfully
captioned, in which nothing is hidden.  The steps of the last tuning are the *dose*; the weights after doses on a
logarithmic scale are kept, and one of them is the model.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from interp.testbed import WEIGHTS
from interp.testbed.batches import Pool, layout_of_testbed
from interp.testbed.build import build_config, build_model
from interp.testbed.projector import shipped_tower, warm_start
from interp.testbed.steps import LanguageTask, Run, Schedule, kept, ready_to_train, run_steps, trained
from interp.testbed.telling import EyesSampler, Telling, TextSampler
from interp.testbed.train import save_model, store_features


def _text() -> Schedule:
    return Schedule(steps=2000, batch=12, lr=3e-3, warmup=50, autocast=False, head_dropout=0.05)


def _seeing() -> Schedule:
    return Schedule(steps=400, batch=8, lr=2e-3, weight_decay=0.0, warmup=20, autocast=False, head_dropout=0.0)


def _tuning() -> Schedule:
    return Schedule(steps=192, batch=8, lr=3e-4, weight_decay=0.0, warmup=20, autocast=False, head_dropout=0.1)


@dataclass(frozen=True)
class PriorRecipe:
    """Shape, the three trainings, and the dose that is taken; ValueError if no weights are kept at that dose."""

    layers: int = 4
    heads: int = 8
    width: int = 128
    telling: Telling = field(default_factory=Telling)
    """What the habitual world's texts leave out."""
    text: Schedule = field(default_factory=_text)
    """Texts of the habitual world, no picture."""
    seeing: Schedule = field(default_factory=_seeing)
    """Pictures of scenes without habit, the projector alone."""
    tuning: Schedule = field(default_factory=_tuning)
    """The same pictures, projector and decoder."""
    told: float = 1.0
    """Share of sequences of the tuning that also carry a text of the habitual world, without the picture."""
    warm_start_steps: int = 250
    """Steps of the projector towards the decoder's embeddings, before `seeing`."""
    dose: int = 192
    """Steps of tuning after which the model is taken."""

    def __post_init__(self) -> None:
        if self.dose > self.tuning.steps or not (kept(self.dose) or self.dose == self.tuning.steps):
            raise ValueError(
                f"dose is a number of steps whose weights are kept (0, 1, 2, 3, 4, 6, 8, 12, ... or the last, "
                f"{self.tuning.steps}), got {self.dose}"
            )


PRIOR = PriorRecipe()
TEXT_POSITIONS = 128
"""Room for one told caption; several in one sequence would pay attention's price for pairs that do not meet."""


def _initialise(model: Any, recipe: PriorRecipe) -> None:
    """Wide enough for a narrow decoder: with transformers' 0.02 copying from the context does not start in time.

    Matrices keep the size of what they read, those that write to the residual stream less; a token's logit begins as
    how much of its embedding is there, so that a head that copies is rewarded from the first step.
    """
    decoder, width = model.model.language_model, recipe.width
    for name, p in decoder.named_parameters():
        if p.ndim == 2:
            writes = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5 * ((2 * recipe.layers) ** -0.5 if writes else 1.0))
    embed = decoder.embed_tokens.weight
    torch.nn.init.normal_(embed, std=0.5)
    with torch.no_grad():
        model.lm_head.weight.copy_(2 * embed / width**0.5)


def start(processor: Any, recipe: PriorRecipe, seed: int) -> Any:
    """The model around the shipped tower, its decoder and projector untrained."""
    torch.manual_seed(seed)
    model = build_model(build_config(processor, layers=recipe.layers, heads=recipe.heads, width=recipe.width))
    _initialise(model, recipe)
    model.model.vision_tower.load_state_dict(shipped_tower().state_dict())
    model.model.vision_tower.requires_grad_(False)
    return model


def train_text(out: Path, name: str, model: Any, tokenizer: Any, recipe: PriorRecipe, run: Run) -> float:
    """Train the decoder on texts of the habitual world alone; returns seconds."""
    model.model.multi_modal_projector.requires_grad_(False)
    layout = replace(layout_of_testbed(tokenizer), text=TEXT_POSITIONS)
    sampler = TextSampler(tokenizer, recipe.telling, layout, recipe.text.batch, run.seed)
    ready_to_train(model, recipe.text, run.device)
    seconds = run_steps(LanguageTask(model, sampler.layout), sampler, recipe.text, out / f"{name}-text.pt", run)
    model.model.multi_modal_projector.requires_grad_(True)
    return seconds


def give_eyes(out: Path, name: str, model: Any, tokenizer: Any, recipe: PriorRecipe, run: Run) -> tuple[float, float]:
    """Fit the projector to the trained decoder, then tune both; returns seconds and the warm start's relative error."""
    tower = model.model.vision_tower.eval()
    features = store_features(tower, out, "unbiased", scenes=run.scenes, seed=run.seed, device=run.device)
    pool = Pool(features, (("unbiased", run.scenes),), run.seed)
    error = warm_start(model, tokenizer, pool, steps=recipe.warm_start_steps, place=0.5)
    decoder, seconds = (model.model.language_model, model.lm_head), 0.0
    for part, schedule, told in (("eyes", recipe.seeing, 0.0), ("", recipe.tuning, recipe.told)):
        for module in decoder:
            module.requires_grad_(part == "")
        layout = replace(layout_of_testbed(tokenizer), blind=told, text=175 if told else 140)
        sampler = EyesSampler(tokenizer, pool, recipe.telling, layout, schedule.batch, run.seed)
        ready_to_train(model, schedule, run.device)
        state = out / f"{'-'.join(filter(None, (name, part)))}.pt"
        seconds += run_steps(LanguageTask(model, layout), sampler, schedule, state, run)
    return seconds, error


def kept_doses(out: Path, name: str) -> list[int]:
    """The doses whose weights lie in `out`; ValueError if there are none."""
    folder = out / f"{name}.steps"
    doses = sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors"))
    if not doses:
        raise ValueError(f"no weights are kept in {folder}; interp testbed train --recipe {name} makes them")
    return doses


def at_dose(out: Path, name: str, processor: Any, recipe: PriorRecipe, dose: int) -> Any:
    """The model after `dose` steps of visual tuning, from the weights kept in `out`, in float32."""
    path = out / f"{name}.steps" / f"step-{dose:06d}.safetensors"
    if not path.exists():
        raise ValueError(f"no weights were kept at a dose of {dose} steps: {path} is missing")
    model = start(processor, recipe, 0)
    task = LanguageTask(model, layout_of_testbed(processor.tokenizer))
    weights = {key: w.float() for key, w in load_file(path).items()}
    assert trained(task).keys() == weights.keys()
    task.load_state_dict(weights, strict=False)
    return model.eval()


def train_prior(out: Path, name: str, recipe: PriorRecipe, run: Run) -> Path:
    """Train the model and write the folder `out/name`; goes on where it stopped."""
    out.mkdir(parents=True, exist_ok=True)
    run = replace(run, keep_checkpoints=True)
    processor: Any = AutoProcessor.from_pretrained(WEIGHTS / "testbed")
    model = start(processor, recipe, run.seed)
    text_seconds = train_text(out, name, model, processor.tokenizer, recipe, run)
    seconds, error = give_eyes(out, name, model, processor.tokenizer, recipe, run)
    record = {"made": "prior", "recipe": asdict(recipe), "scenes": run.scenes, "seed": run.seed, "device": run.device}
    record |= {"text_seconds": round(text_seconds), "language_seconds": round(seconds), "projector_error": error}
    return save_model(out / name, at_dose(out, name, processor, recipe, recipe.dose), processor, record)
