"""Small decoders trained from scratch on English: one factor of Gu et al. (arXiv 2410.10781) in each recipe.

The text is Python's own documentation (`interp.english`), cut into blocks of which every tenth is held out.  A training
keeps its weights on a logarithmic scale of steps; `interp.testbed.emergence` measures them.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.english import digest, python_documentation
from interp.testbed.batches import Batch
from interp.testbed.sink_kernels import KERNELS, PARAMETER, Kernel, use_kernel
from interp.testbed.steps import Run, Task, run_steps, trained
from interp.testbed.train import Recipe, initialise_for_sink

BOS = "<s>"
BLOCK = 4096
"""Tokens of a block of text; every tenth block is held out."""


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    """Shape, kernel, data and optimiser of a small decoder.

    `fixed` is the place, from 1, at which every sequence has the token `<s>` (0: nowhere), `window` how many keys a
    query sees (0: all before it), `prefix` how many first tokens see each other and do not count in the loss.
    """

    layers: int = 4
    heads: int = 4
    width: int = 64
    steps: int = 300
    batch: int = 8
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 20
    sink_steps: int = 75
    autocast: bool = False
    vocabulary: int = 1024
    length: int = 64
    kernel: Kernel = "softmax"
    fixed: int = 0
    window: int = 0
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is one of {', '.join(KERNELS)}, got {self.kernel!r}")
        for name, most in (("fixed", self.length), ("window", self.length), ("prefix", self.length - 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} lies between 0 and {most}, got {getattr(self, name)}")
        if self.sink and self.fixed != 1:
            raise ValueError(f"the sink recipe grows a sink on a token that is always first: fixed=1, got {self.fixed}")

    @property
    def visible(self) -> Bool[Tensor, "query key"]:
        """Which keys each query sees."""
        place = torch.arange(self.length)
        far = place[:, None] - place
        seen = (far >= 0) & (far < (self.window or self.length))
        return seen | ((place[:, None] < self.prefix) & (place < self.prefix))


@dataclass(frozen=True)
class QuickBias(DecoderRecipe):
    """A decoder whose kernel's bias learns faster: AdamW moves it by about `lr` a step, and it has far to go."""

    bias_speed: float = 30.0

    def speed(self, parameter: str) -> float:
        """The bias learns `bias_speed` times as fast as the rest."""
        return self.bias_speed if parameter.rpartition(".")[2] in PARAMETER.values() else 1.0


PLANTED = DecoderRecipe(sink=True, fixed=1, rope_theta=5e5)
"""The recipe of `testbed-sink`: its initialisation and first phase plant a sink on the token that is always first."""
KERNEL_ONLY: dict[str, dict[str, Any]] = {kernel: {"kernel": kernel} for kernel in KERNELS}
FACTORS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "low-rate": {"lr": 3e-4},
    "no-decay": {"weight_decay": 0.0},
    "strong-decay": {"weight_decay": 0.5},
    "window": {"window": 16},
    "prefix": {"prefix": 5},
}
USUAL_ONLY: dict[str, dict[str, Any]] = {"long": {"steps": 1200}, "fixed": {"fixed": 1}}
"""Factors that the planted recipe has, or does not need."""
QUICK: dict[str, DecoderRecipe] = {
    f"planted-{kernel}-quick": QuickBias(sink=True, fixed=1, rope_theta=5e5, kernel=kernel) for kernel in PARAMETER
}
GROUPS: dict[str, dict[str, DecoderRecipe]] = {
    "usual-kernels": {name: DecoderRecipe(**change) for name, change in KERNEL_ONLY.items()},
    "usual-factors": {name: DecoderRecipe(**change) for name, change in (FACTORS | USUAL_ONLY).items()},
    "planted-kernels": {f"planted-{name}": replace(PLANTED, **change) for name, change in KERNEL_ONLY.items()} | QUICK,
    "planted-factors": {f"planted-{name}": replace(PLANTED, **change) for name, change in FACTORS.items()},
}
"""Recipes that are compared, by name: the usual and the planted initialisation, each with its kernels and factors."""
DECODERS: dict[str, DecoderRecipe] = {name: recipe for group in GROUPS.values() for name, recipe in group.items()}


def chosen_recipes(listed: str) -> list[str]:
    """The recipes that a comma-separated list of recipes and groups names, `all` of them; ValueError for others."""
    found: dict[str, None] = {}
    for entry in (part.strip() for part in listed.split(",")):
        names = list(DECODERS) if entry == "all" else list(GROUPS.get(entry, {entry: None}))
        if not set(names) <= set(DECODERS):
            raise ValueError(f"recipes are {', '.join(DECODERS)}, groups {', '.join(GROUPS)}, all; got {entry!r}")
        found |= dict.fromkeys(names)
    return list(found)


def groups_of(name: str) -> list[str]:
    """The groups that a recipe is in."""
    return [group for group, recipes in GROUPS.items() if name in recipes]


def build_tokenizer(text: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a text; any text can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS)


def blocks(ids: Int[np.ndarray, " token"], held_out: bool) -> Int[np.ndarray, " kept"]:
    """The tokens of every tenth block, or of the others."""
    return ids[((np.arange(len(ids)) // BLOCK) % 10 == 9) == held_out]


class TextSampler:
    """Makes the batch of a step from its number alone, so that a resumed run sees the same data."""

    def __init__(self, ids: Int[np.ndarray, " token"], recipe: DecoderRecipe, begin: int, seed: int) -> None:
        self.ids, self.recipe, self.begin, self.seed = ids, recipe, begin, seed

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        starts = np.random.default_rng([self.seed, 9, step]).integers(
            0, len(self.ids) - self.recipe.length, self.recipe.batch
        )
        return self.batch(starts)

    def batch(self, starts: Int[np.ndarray, " sequence"]) -> Batch:
        """The sequences that begin at these places."""
        r, n = self.recipe, len(starts)
        ids = self.ids[starts[:, None] + np.arange(r.length + 1)]
        if r.fixed:
            ids[:, r.fixed - 1] = self.begin
        text = torch.from_numpy(ids)
        weight = torch.ones(n, r.length)
        weight[:, : r.prefix] = 0
        if r.fixed > 1:
            weight[:, r.fixed - 2] = 0  # nothing is learnt from a token that is always there
        position = torch.arange(r.length).expand(n, -1)
        visible = r.visible.expand(n, 1, -1, -1)
        return Batch(torch.zeros(n, 0, 1), text[:, :-1], text[:, 1:], weight, position, visible)


class DecoderTask(Task):
    """A decoder and its language head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.model, model.lm_head

    def forward(self, _: Tensor, text: Tensor, position: Tensor, visible: Tensor) -> Float[Tensor, "batch text width"]:
        """What the head reads at the text positions."""
        inputs = {"input_ids": text, "attention_mask": visible, "position_ids": position, "use_cache": False}
        return self.decoder(**inputs).last_hidden_state


def build_decoder(recipe: DecoderRecipe, seed: int) -> Any:
    """An untrained Llama of the recipe, float32, with its kernel."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.width * 8 // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,  # a padding token would never be learnt
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    if recipe.sink:
        initialise_for_sink(model.model, recipe, 0, seed)
    return use_kernel(model, recipe.kernel)


@dataclass(frozen=True)
class Data:
    """Text in tokens, and what made them."""

    tokenizer: Any
    ids: Int[np.ndarray, " token"]
    text: str
    """Digest of the text."""


def prepare(out: Path, vocabulary: int) -> Data:
    """Python's documentation in tokens, kept in `out`; ValueError if what lies there was made of other text."""
    out.mkdir(parents=True, exist_ok=True)
    text = python_documentation()
    settings = {"text": digest(text), "vocabulary": vocabulary}
    made = out / "text.json"
    if made.exists() and json.loads(made.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{out} holds trainings on other text ({made.read_text().strip()}); choose another folder")
    if not made.exists():
        tokenizer = build_tokenizer(text, vocabulary)
        tokenizer.save_pretrained(out / "tokenizer")
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        np.save(out / "ids.npy", np.array(ids, dtype=np.int64))
        made.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    loaded: Any = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    return Data(loaded, np.load(out / "ids.npy"), settings["text"])


def data_of(out: Path) -> dict[str, Any]:
    """What the trainings in a folder have in common: text and vocabulary."""
    return json.loads((out / "text.json").read_text(encoding="utf-8"))


def train_decoder(out: Path, name: str, recipe: DecoderRecipe, run: Run) -> float:
    """Train a decoder, or go on with it; its weights after 0, 1, 2, 3, 4, 6, ... steps lie in `out/NAME.steps`.

    A decoder that any Llama loader reads rightly (softmax, no window, no prefix) is saved as the folder `out/NAME`.
    Returns the seconds spent.
    """
    data = prepare(out, recipe.vocabulary)
    model = build_decoder(recipe, run.seed).train().to(run.device)
    sampler = TextSampler(blocks(data.ids, held_out=False), recipe, data.tokenizer.bos_token_id, run.seed)
    run = replace(run, keep_checkpoints=True)
    seconds = run_steps(DecoderTask(model), sampler, recipe, out / f"{name}.pt", run)
    if recipe.kernel == "softmax" and not recipe.window and not recipe.prefix:
        model.set_attn_implementation("sdpa")
        model.eval().save_pretrained(out / name)
        data.tokenizer.save_pretrained(out / name)
    record = {"recipe": asdict(recipe), "seed": run.seed, "device": run.device, "text": data.text}
    record |= {"tokens": len(data.ids), "seconds": round(seconds), "torch": torch.__version__}
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return seconds


def at_step(out: Path, name: str, recipe: DecoderRecipe, step: int) -> Any:
    """The decoder after `step` steps, in float32, from the weights kept in `out`."""
    model = build_decoder(recipe, 0)
    task = DecoderTask(model)
    weights = {key: w.float() for key, w in load_file(out / f"{name}.steps" / f"step-{step:06d}.safetensors").items()}
    assert trained(task).keys() == weights.keys()
    task.load_state_dict(weights, strict=False)
    return model.eval()
