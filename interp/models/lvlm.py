"""The model object: a Hugging Face model, its processor and its nnsight wrapper, described by its family."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from operator import attrgetter
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interp.models import compat
from interp.models.encoding import Answer, answer, frame_of
from interp.models.families import Family, UnsupportedModelError, family_of
from interp.models.generation import Generation, arguments, cache_bytes, described, own_settings, settings_of, stepping
from interp.models.inputs import Inputs, counted, padded_right, position_limit, read_pictures, rendered
from interp.models.steering import Steerable


class _Traced(nnsight.NNsight):
    """The nnsight wrapper; it would send inputs to where the first parameter lies, the meta device if offloaded."""

    @property
    def device(self) -> torch.device:
        return compat.entry_device(compat.wrapped(self))


class LVLM(Steerable):
    """A model that can be looked into: a vision-language model, or a plain language model.

    `hf` is the Hugging Face model, `processor` its processor (a tokenizer for a plain language model), `traced` the
    nnsight wrapper of `hf`.  Padding is set to the left; a tokenizer without a padding token pads with its end token.
    """

    def __init__(self, hf: Any, processor: Any, name: str, traced: Any = None) -> None:
        super().__init__(name)
        self.family: Family = family_of(type(hf).__name__)
        self.hf, self.processor = hf.eval(), processor
        self.remote = traced is not None
        with warnings.catch_warnings():  # of modules called "output", which lie in Q-Formers
            warnings.filterwarnings("ignore", "Module .* has a submodule named", UserWarning)
            self.traced: Any = traced if self.remote else _Traced(hf)
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = hf.config.get_text_config()
        self.n_layers: int = config.num_hidden_layers
        self.n_heads: int = config.num_attention_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.max_positions: int | None = position_limit(config)
        self.image_token_id: int | None = None
        if self.family.image_token is not None:
            self.image_token_id = getattr(hf.config, self.family.image_token)
            self._placeholder()
        ids = self.tokenizer.convert_tokens_to_ids(list(self.family.frame_tokens))
        self._frame_ids = torch.tensor([i for i in ids if i is not None and i != self.tokenizer.unk_token_id])
        self.compiled = False
        """Whether `generate` runs its steps as compiled code (needs a C++ compiler); no method may be open then."""
        self.misfits: tuple[str, ...] | None = None
        """What the files lack, or hold beside the model, in words; None where no files were read."""

    @classmethod
    def on_ndif(cls, hub_id: str, processor: Any, family: Family, **options: Any) -> "LVLM":
        """A model whose weights stay on NDIF's machines; here it is a skeleton without values."""
        nnsight.register("interp")  # its functions travel with a request
        task = "image-text-to-text" if family.has_vision else "text-generation"
        traced: Any = nnsight.TransformersModel(hub_id, task=task, **options)
        return cls(compat.wrapped(traced), processor, hub_id, traced)

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers x {self.n_heads} heads x {self.d_head}"
        return f"LVLM({self.name!r}, {self.family.name}, {shape}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return compat.entry_device(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the activations."""
        return self.hf.dtype

    @property
    def fingerprint(self) -> str:
        """A short digest of the weights (of the first values of each), so that results know which model made them.

        Offloaded weights count with their names and shapes only.
        """
        digest = sha256()
        for name, p in self.hf.state_dict().items():
            values = [] if p.is_meta else p.flatten()[:64].tolist()
            digest.update(f"{name}{tuple(p.shape)}{values}".encode())
        return digest.hexdigest()[:16]

    @property
    def backend(self) -> str:
        """The attention backend of the decoder: `sdpa`, `eager`, ..."""
        return compat.backend_of(self.hf.config.get_text_config())

    @property
    def decoder_configs(self) -> list[Any]:
        """The configuration objects that name the decoder's attention backend; the vision tower has its own."""
        layers = attrgetter(self.family.layers)(self.hf)
        decoder = attrgetter(self.family.layers.rpartition(".")[0])(self.hf)
        found = [self.hf.config.get_text_config(), decoder.config]
        found += [m.config for layer in layers for m in layer.modules() if hasattr(m, "config")]
        return list({id(config): config for config in found}.values())

    @property
    def trace_options(self) -> dict[str, Any]:
        """What nnsight's `trace` needs to know about this model."""
        return {"remote": True} if self.remote else {}

    def save(self, value: Any) -> Any:
        """Inside a trace: mark a value that outlives it."""
        return nnsight.save(value)

    def embeddings(self, inputs: Inputs) -> Float[Tensor, "batch token d_model"]:
        """What goes into the first layer: text embeddings with the pictures merged in; no layer runs."""
        found: list[Tensor] = []
        with self.in_use(), compat.traceable(self.hf), torch.no_grad(), self.traced.trace(**inputs.kwargs()) as tracer:
            found.append(self.layer(0, self.traced).input)
            tracer.stop()
        return found[0]

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def layer(self, layer: int, root: Any = None) -> Any:
        """A layer of the decoder, in `hf` or in another `root` (`traced`)."""
        return attrgetter(self.family.layers)(self.hf if root is None else root)[layer]

    def part(self, layer: int, path: str, root: Any = None) -> Any:
        """A module inside a layer, by a path of the family's entry."""
        return attrgetter(path)(self.layer(layer, root))

    def out_proj(self, layer: int, root: Any = None) -> Any:
        """A layer's output projection; its input is the head outputs."""
        return self.part(layer, self.family.out_proj, root)

    def by_head(self, x: Tensor) -> Tensor:
        """View `[..., head * d_head]` as `[..., head, d_head]`."""
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def _placeholder(self) -> str:
        """The text that stands for one picture in a prompt."""
        found = getattr(self.processor, self.family.placeholder, None)
        if found is None or not hasattr(self.processor, "image_processor"):
            raise UnsupportedModelError(
                f"the processor of a {self.family.name} model has an image processor and an attribute "
                f"{self.family.placeholder!r} (the text that stands for a picture); {type(self.processor).__name__} "
                "lacks one. Pass the model's own processor (AutoProcessor.from_pretrained), not its tokenizer alone"
            )
        return str(found)

    def prompt(self, text: str, n_images: int = 1) -> str:
        """One user turn: the chat template's rendering, or the family's where the processor has no template.

        Pictures come before the text, unless the text already says where with the model's own placeholders.
        """
        placeholder = self._placeholder() if self.family.has_vision else None
        written = text.count(placeholder) if placeholder else 0
        if written and written != n_images:
            raise ValueError(f"expected as many {placeholder} in the prompt as pictures, got {written} and {n_images}")
        if n_images and placeholder is None:
            raise ValueError(f"{self.name} is a plain language model and takes no pictures, got {n_images}")
        shown = 0 if written else n_images
        if getattr(self.processor, "chat_template", None):
            words: Any = [{"type": "image"}] * shown + [{"type": "text", "text": text}]
            turn = [{"role": "user", "content": words if self.family.has_vision else text}]
            return rendered(self.processor, turn)
        form = self.family.prompt or "{images}{text}"
        if "{images}" not in form and n_images > 1:
            raise ValueError(f"a {self.family.name} model takes one picture a prompt, got {n_images}")
        return form.format(images=(placeholder or "") * shown, text=text)

    def inputs(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]] | None,
        prompts: str | Sequence[str],
        chat: bool = True,
    ) -> Inputs:
        """A batch of one prompt and its pictures a row; a single prompt serves all rows.

        `images` holds a picture, or a sequence of pictures, for each row; None: no pictures.  With `chat=False` the
        prompts are taken as they are, placeholders included.
        Raises ValueError if numbers of rows, prompts and placeholders do not fit, or a picture cannot be read.
        """
        n_rows = len(images) if images is not None else 1 if isinstance(prompts, str) else len(prompts)
        prompts = [prompts] * n_rows if isinstance(prompts, str) else list(prompts)
        if not prompts or n_rows != len(prompts):
            raise ValueError(
                f"expected at least one row, and a prompt for each: got {n_rows} rows of images, {len(prompts)} prompts"
            )
        if images is None and self.family.needs_pixels:
            raise ValueError(f"a {self.family.name} model takes no prompt without a picture")
        rows = [() if images is None else read_pictures(images[i], i) for i in range(n_rows)]
        texts = [self.prompt(p, len(row)) if chat else p for p, row in zip(prompts, rows, strict=True)]
        return self.processed(rows, texts)

    def answer(self, text: str, prompt: str | None = None) -> Answer:
        """The tokens of a text as this model's answer, the way its chat template goes on, and what that leaves open.

        `prompt` is a rendered prompt (`Inputs.texts`), any turn of a user if None.  A prompt that was not rendered by
        the template is gone on with after a space.
        """
        end = self.family.prompt_end
        frame = frame_of(self.processor, self.family.has_vision, self.family.prompt, end)
        prompt = f"x{frame.tail}" if prompt is None else prompt + end
        return answer(self.tokenizer, prompt, frame.lead if prompt.endswith(frame.tail) else " ", text)

    def encode(self, caption: str, prompt: str | None = None) -> Int[Tensor, " token"]:
        """The token ids of a caption, as this model goes on after a prompt (`answer`)."""
        return self.answer(caption, prompt).ids

    def tokens(self, ids: Int[Tensor, "batch token"]) -> Inputs:
        """A batch of token ids as they are, without padding and without pictures."""
        if self.family.needs_pixels:
            raise ValueError(f"a {self.family.name} model takes no prompt without a picture")
        ids = ids.to(self.device)
        mask, nothing = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        positions = self._positions(ids, mask, {}, {})
        pad = self.tokenizer.pad_token_id
        return Inputs(ids, mask, positions, nothing, nothing, pad, max_positions=self.max_positions)

    def processed(self, rows: Sequence[tuple[Image.Image, ...]], texts: Sequence[str]) -> Inputs:
        """What the processor makes of rendered prompts and their pictures."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if any(rows):
            options["images"] = [list(row) for row in rows]
        batch = self.processor(text=list(texts), **options).to(self.device)
        ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
        batch.pop("labels", None)  # what a trainer would want
        types = {k: v for k, v in batch.items() if k.endswith("token_type_ids")}
        pixels = {
            k: v.to(self.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in batch.items()
            if k not in types
        }
        if "qformer_input_ids" in pixels:
            pixels |= padded_right(pixels["qformer_input_ids"], pixels["qformer_attention_mask"])
        image_mask = (ids == self.image_token_id) & mask.bool() if any(rows) else torch.zeros_like(mask).bool()
        inputs = Inputs(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self._positions(ids, mask, types, pixels),
            image_mask=image_mask,
            frame_mask=torch.isin(ids, self._frame_ids.to(ids.device)) & mask.bool(),
            pad_token_id=self.tokenizer.pad_token_id,
            token_types=types,
            pixels=pixels,
            suffix_type=self.family.suffix_type,
            texts=tuple(texts),
            pictures=tuple(rows),
            max_positions=self.max_positions,
        )
        for row, pictures in enumerate(rows):
            if pictures and not inputs.image_mask[row].any():
                raise ValueError(
                    f"the prompt of row {row} has no image token (id {self.image_token_id}) after processing, "
                    f"so the model would not see its picture: {texts[row]!r}"
                )
        return inputs

    def _positions(self, ids: Tensor, mask: Tensor, types: dict[str, Tensor], pixels: dict[str, Any]) -> Tensor:
        if self.family.rope_index is None:
            return counted(mask)
        if "image_grid_thw" not in pixels:
            return counted(mask).expand(3, -1, -1)
        rope_index = attrgetter(self.family.rope_index)(self.hf)
        return rope_index(ids, attention_mask=mask, image_grid_thw=pixels["image_grid_thw"], **types)[0]

    @property
    def generation_settings(self) -> dict[str, Any]:
        """How `generate` decodes unless told otherwise, and what it sets aside of generation_config.json."""
        return settings_of(self.hf)

    @torch.no_grad()
    def generate(self, inputs: Inputs, max_new_tokens: int = 128, **options: Any) -> Generation:
        """Generate, steered by the methods that are open.

        Greedy, unless `options` (passed to Hugging Face's `generate`) or open methods say otherwise; of the model's
        generation_config.json only special tokens are used.  A `logits_processor` among the options sees the scores
        as the methods have left them.  Raises NonFiniteLogitsError where no token can be taken from the scores.
        """
        if self.remote:
            raise ValueError(
                "a remote model can be looked into but does not generate here; load it without remote=True"
            )
        inputs.require_room(max_new_tokens)
        with self.in_use(), ExitStack() as stack:
            compiled = stack.enter_context(compat.compiling(self.hf)) if self.compiled else None
            steps = stepping([type(method).__name__ for method in self.methods], options, compiled)
            parts = []
            for steered in self._open:
                part = stack.enter_context(steered.method.steer(self, inputs))
                if part.heads is not None:
                    steered.heads.append(part.heads)
                parts.append((type(steered.method).__name__, part))
            wanted = arguments(parts, options, compat.cache_keyword(self.hf))
            defaults = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": inputs.pad_token_id}
            settings = {**defaults, "num_beams": 1, **wanted, **steps, "return_dict_in_generate": True}
            stack.enter_context(own_settings(self.hf))
            stack.enter_context(compat.untraced(self.hf))
            out = self.hf.generate(**inputs.kwargs(), **settings)
        used = self.generation_settings | described(settings) | {"methods": [repr(m) for m in self.methods]}
        return self._written(inputs, out, settings, used)

    def _written(self, inputs: Inputs, out: Any, settings: dict[str, Any], used: dict[str, Any]) -> Generation:
        """The new tokens of each row up to the end of sequence, and their texts."""
        eos = settings.get("eos_token_id", self.hf.generation_config.eos_token_id)
        ends = torch.tensor([eos] if isinstance(eos, int) else eos or [], device=out.sequences.device)
        tokens = []
        for row in out.sequences[:, inputs.input_ids.shape[1] :]:
            stop = torch.isin(row, ends).nonzero()
            tokens.append(row[: int(stop[0])] if len(stop) else row)
        texts = [self.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]
        return Generation(tokens, texts, cache_bytes(out), used)
