"""The model object: a Hugging Face vision-language model, its processor and its nnsight wrapper."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from nnsight import NNsight
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from interp.models.families import Family, UnsupportedModelError, family_of
from interp.models.inputs import Embedded, Inputs
from interp.testbed import WEIGHTS

Steering = Callable[["LVLM", Inputs], AbstractContextManager[Any]]
"""Something that changes the model while one batch is generated; see `LVLM.steered`."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote for a batch.

    `tokens[i]` are the new token ids of row i up to and without the end of sequence, `texts[i]` the same as text.
    """

    tokens: list[Int[Tensor, " _"]]
    texts: list[str]


class LVLM:
    """A vision-language model that can be looked into.

    `hf` is the Hugging Face model, `processor` its processor, `traced` the nnsight wrapper of `hf`.
    """

    def __init__(self, hf: Any, processor: Any, name: str) -> None:
        self.family: Family = family_of(type(hf).__name__)
        self.hf, self.processor, self.name = hf.eval(), processor, name
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.traced: Any = NNsight(hf)
        config = hf.config.get_text_config()
        self.n_layers: int = config.num_hidden_layers
        self.n_heads: int = config.num_attention_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = self.out_proj(0).in_features // self.n_heads
        self.image_token_id: int = getattr(hf.config, self.family.image_token)
        self._steering: list[Steering] = []

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers x {self.n_heads} heads x {self.d_head}"
        return f"LVLM({self.name!r}, {self.family.name}, {shape}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.hf.dtype

    @property
    def fingerprint(self) -> str:
        """A short digest of the weights (of the first values of each), so that results know which model made them."""
        digest = sha256()
        for name, p in self.hf.state_dict().items():
            digest.update(f"{name}{tuple(p.shape)}{p.flatten()[:64].tolist()}".encode())
        return digest.hexdigest()[:16]

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def out_proj(self, layer: int, root: Any = None) -> Any:
        """A layer's output projection in `root` (`hf` by default, or `traced`); its input is the head outputs."""
        layers = attrgetter(self.family.layers)(self.hf if root is None else root)
        return attrgetter(self.family.out_proj)(layers[layer])

    def by_head(self, x: Tensor) -> Tensor:
        """View `[..., head * d_head]` as `[..., head, d_head]`."""
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def prompt(self, text: str, image: bool = True) -> str:
        """The chat template's rendering of one user turn, with or without an image."""
        content = [{"type": "image"}] if image else []
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        return self.processor.apply_chat_template(turn, add_generation_prompt=True)

    def inputs(self, images: Sequence[Image], prompts: str | Sequence[str]) -> Inputs:
        """A batch of one image and one prompt a row; a single prompt serves all images."""
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if not images or len(images) != len(prompts):
            raise ValueError(
                f"expected at least one image, and a prompt for each: got {len(images)} images, {len(prompts)} prompts"
            )
        batch = self.processor(
            images=[image.convert("RGB") for image in images],
            text=[self.prompt(p) for p in prompts],
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        pixels = {
            k: v.to(self.dtype) if v.is_floating_point() else v
            for k, v in batch.items()
            if k not in ("input_ids", "attention_mask")
        }
        return Inputs(
            batch["input_ids"], batch["attention_mask"], self.image_token_id, self.tokenizer.pad_token_id, pixels
        )

    def embed(self, inputs: Inputs) -> Embedded:
        """What the decoder receives for a batch: text embeddings with the image features merged in."""
        received: list[Tensor] = []
        decoder = attrgetter(self.family.decoder)(self.traced)
        with torch.no_grad(), self.traced.trace(**inputs.forward_kwargs()) as tracer:
            received.append(decoder.inputs[1]["inputs_embeds"])
            tracer.stop()
        return Embedded(received[0], inputs.attention_mask, inputs.position_ids)

    @contextmanager
    def steered(self, steering: Steering) -> Iterator[None]:
        """While open, `generate` enters `steering(model, inputs)` around each batch."""
        self._steering.append(steering)
        try:
            yield
        finally:
            self._steering.remove(steering)

    @torch.no_grad()
    def generate(self, inputs: Inputs, max_new_tokens: int = 128, **options: Any) -> Generation:
        """Generate, steered by the interventions that are open.

        Greedy, unless `options` (passed to Hugging Face's `generate`) say otherwise.
        """
        with ExitStack() as stack:
            for steering in self._steering:
                stack.enter_context(steering(self, inputs))
            ids = self.hf.generate(
                **inputs.kwargs(), **{"max_new_tokens": max_new_tokens, "do_sample": False, **options}
            )
        eos = options.get("eos_token_id", self.hf.generation_config.eos_token_id)
        ends = torch.tensor([eos] if isinstance(eos, int) else eos or [], device=ids.device)
        tokens = []
        for row in ids[:, inputs.input_ids.shape[1] :]:
            stop = torch.isin(row, ends).nonzero()
            tokens.append(row[: int(stop[0])] if len(stop) else row)
        return Generation(tokens, [self.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens])


def _known_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def load(
    name_or_path: str, *, dtype: torch.dtype | str = "float32", device: str | None = None, **hub_options: Any
) -> LVLM:
    """Load a bundled model (`testbed`, `testbed-sink`), a folder, or a hub id.

    The model goes to `device` if one is given; `hub_options` (`device_map`, `revision`, ...) go to
    `AutoModelForImageTextToText.from_pretrained`; weights are read from safetensors only.
    Raises ValueError if nothing can be loaded, UnsupportedModelError if interp does not know the architecture.
    """
    target = None if device is None else _known_device(device)
    folder = WEIGHTS / name_or_path
    path = str(folder) if name_or_path.startswith("testbed") and folder.is_dir() else name_or_path
    try:
        for architecture in AutoConfig.from_pretrained(path).architectures or []:
            family_of(architecture)  # before the weights are fetched
        processor = AutoProcessor.from_pretrained(path)
        hf: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True, **hub_options)
    except UnsupportedModelError:
        raise
    except (OSError, ValueError) as error:
        bundled = ", ".join(sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()))
        raise ValueError(
            f"cannot load the model {name_or_path!r}: expected a bundled model ({bundled}), a folder or a hub id of a "
            f"vision-language model. {str(error).splitlines()[0]}"
        ) from error
    return LVLM(
        hf if target is None else hf.to(target),
        processor,
        Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path,
    )
