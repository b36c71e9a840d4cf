"""The model families interp knows: one declarative entry each, no guessing.

Paths start at the Hugging Face model (`layers`) or at one of its layers (the others).
"""

from dataclasses import dataclass
from typing import Any


class UnsupportedModelError(ValueError):
    """A model that interp cannot look into, with what would be needed."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps the parts that interp reads and edits."""

    name: str
    architectures: tuple[str, ...]
    """Class names of the Hugging Face models."""
    layers: str
    """The text decoder's list of layers."""
    attention: str = "self_attn"
    """The attention of a layer."""
    out_proj: str = "self_attn.o_proj"
    """Its output projection; the input of that is the heads' outputs side by side."""
    attention_out: str = "self_attn"
    """The module whose output is what attention adds to the residual stream."""
    mlp_out: str = "mlp"
    """The module whose output is what the MLP adds to it."""
    mlp_down: str = "mlp.down_proj"
    """The MLP's last projection; its input is the MLP's neurons."""
    mlp_norm: str = "post_attention_layernorm"
    """The norm through which the MLP reads the residual stream."""
    norm: str = "norm"
    """The decoder's last norm, beside its layers."""
    image_token: str | None = "image_token_id"
    """The attribute of the configuration with the id of the token that stands for image features; None: text only."""
    placeholder: str = "image_token"
    """The attribute of the processor with the text that stands for one picture in a prompt."""
    frame_tokens: tuple[str, ...] = ()
    """Tokens that only frame a picture or its parts; the image-free prompt loses them with the picture."""
    prompt: str | None = None
    """How a turn is written where the processor has no chat template; `{images}` becomes the placeholders."""
    prompt_end: str = ""
    """What the processor writes after a prompt by itself."""
    rope_index: str | None = None
    """The method that gives position ids in several axes (M-RoPE); None: positions are counted."""
    suffix_type: int = 0
    """Token type of what follows the prompt, where the processor types tokens."""
    layout: str | None = None
    """How image tokens lie on the picture (a name in `interp.models.layout.LAYOUTS`); None: they do not."""
    needs_pixels: bool = False
    """Whether the model insists on pictures even where no token stands for them; it generates in its decoder alone."""

    @property
    def final_norm(self) -> str:
        """The path of the decoder's last norm."""
        return f"{self.layers.rpartition('.')[0]}.{self.norm}"

    @property
    def has_vision(self) -> bool:
        """Whether the family takes pictures."""
        return self.image_token is not None


_VICUNA = "USER: {images}\n{text} ASSISTANT:"
_LLM = "model.language_model.layers"
_SANDWICH: dict[str, Any] = {
    "attention_out": "post_attention_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
}
_QWEN_VL: dict[str, Any] = {
    "rope_index": "model.get_rope_index",
    "layout": "grid",
    "frame_tokens": ("<|vision_start|>", "<|vision_end|>"),
}
_IDEFICS: dict[str, Any] = {
    "layers": "model.text_model.layers",
    "layout": "named tiles",
    "frame_tokens": (
        *("<fake_token_around_image>", "<global-img>", "<image_newline>"),
        *(f"<row_{row}_col_{column}>" for row in range(1, 11) for column in range(1, 11)),
    ),
}
_OPT: dict[str, Any] = {
    "out_proj": "self_attn.out_proj",
    "mlp_out": "fc2",
    "mlp_down": "fc2",
    "mlp_norm": "final_layer_norm",
    "norm": "final_layer_norm",
}

VISION: tuple[Family, ...] = (
    Family("llava", ("LlavaForConditionalGeneration",), _LLM, prompt=_VICUNA, layout="square"),
    Family("llava-next", ("LlavaNextForConditionalGeneration",), _LLM, prompt=_VICUNA, layout="anyres"),
    Family("llava-onevision", ("LlavaOnevisionForConditionalGeneration",), _LLM, layout="anyres"),
    Family(
        "instructblip",
        ("InstructBlipForConditionalGeneration",),
        "language_model.model.layers",
        prompt="{text}",
        needs_pixels=True,
    ),
    Family(
        "blip-2",
        ("Blip2ForConditionalGeneration",),
        "language_model.model.decoder.layers",
        prompt="Question: {text} Answer:",
        needs_pixels=True,
        **_OPT,
    ),
    Family("qwen2-vl", ("Qwen2VLForConditionalGeneration",), _LLM, **_QWEN_VL),
    Family("qwen2.5-vl", ("Qwen2_5_VLForConditionalGeneration",), _LLM, **_QWEN_VL),
    Family("qwen3-vl", ("Qwen3VLForConditionalGeneration",), _LLM, **_QWEN_VL),
    Family("internvl", ("InternVLForConditionalGeneration",), _LLM, frame_tokens=("<img>", "</img>"), layout="canvas"),
    Family("idefics3", ("Idefics3ForConditionalGeneration",), **_IDEFICS),
    Family("smolvlm", ("SmolVLMForConditionalGeneration",), **_IDEFICS),
    Family(
        "paligemma",
        ("PaliGemmaForConditionalGeneration",),
        _LLM,
        prompt="{images}{text}",
        prompt_end="\n",
        suffix_type=1,
        layout="square",
    ),
    Family(
        "gemma3",
        ("Gemma3ForConditionalGeneration",),
        _LLM,
        placeholder="boi_token",
        layout="square",
        frame_tokens=("<start_of_image>", "<end_of_image>"),
        **_SANDWICH,
    ),
    Family(
        "mistral3",
        ("Mistral3ForConditionalGeneration",),
        _LLM,
        frame_tokens=("[IMG_BREAK]", "[IMG_END]"),
        layout="lines",
    ),
)

TEXT: tuple[Family, ...] = (
    *(
        Family(name.lower(), (f"{name}ForCausalLM",), "model.layers", image_token=None)
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")
    ),
    *(
        Family(f"{name.lower()}-text", (f"{name}ForCausalLM",), "model.layers", image_token=None, **_SANDWICH)
        for name in ("Gemma2", "Gemma3")
    ),
    Family(
        "gpt2",
        ("GPT2LMHeadModel",),
        "transformer.h",
        attention="attn",
        out_proj="attn.c_proj",
        attention_out="attn",
        mlp_down="mlp.c_proj",
        mlp_norm="ln_2",
        norm="ln_f",
        image_token=None,
    ),
    Family(
        "gpt-neox",
        ("GPTNeoXForCausalLM",),
        "gpt_neox.layers",
        attention="attention",
        out_proj="attention.dense",
        attention_out="attention",
        mlp_down="mlp.dense_4h_to_h",
        norm="final_layer_norm",
        image_token=None,
    ),
    Family("opt", ("OPTForCausalLM",), "model.decoder.layers", image_token=None, **_OPT),
)

FAMILIES = VISION + TEXT


def family_of(architecture: str) -> Family:
    """The entry of an architecture (the class name of the Hugging Face model)."""
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    known = ", ".join(a for family in FAMILIES for a in family.architectures)
    raise UnsupportedModelError(
        f"interp does not know the architecture {architecture}; it knows {known}. "
        "To add it, write one entry in interp/models/families.py (CONTRIBUTING.md shows how)"
    )
