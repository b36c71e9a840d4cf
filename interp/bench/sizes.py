"""The models that are measured: a bundled one, or a shape with random weights, which serve for speed and memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig

from interp.data import Sample, open_data
from interp.evaluate.objects import ObjectParser
from interp.models import LVLM, Inputs, load
from interp.testbed import WEIGHTS
from interp.testbed.build import build_config, build_model
from interp.testbed.draw import draw
from interp.testbed.world import scene

PROMPT = "Please describe this image in detail."


@dataclass(frozen=True)
class Size:
    """A model to measure: how it is made, how many tokens a caption has, and batch sizes."""

    name: str
    make: Callable[[torch.device], LVLM]
    tokens: int
    batches: tuple[int, ...]
    about: str


def inputs_of(model: LVLM, batch: int) -> Inputs:
    """Scenes with one prompt, the same for all rows."""
    pictures = [Image.fromarray(draw(scene("broken", "test", i))) for i in range(batch)]
    return model.inputs(pictures, PROMPT)


def testbed_samples(n: int) -> list[Sample]:
    """Scenes with their truth."""
    data = open_data("testbed:broken", "test", ObjectParser.coco())
    return [data.load(i) for i in list(data.image_ids)[:n]]


def _testbed(device: torch.device) -> LVLM:
    return load("testbed", device=str(device), check=False)


def _smollm2(device: torch.device) -> LVLM:
    """SmolLM2's shape with the testbed's tower, random weights."""
    folder = WEIGHTS / "testbed-smollm2"
    config: Any = AutoConfig.from_pretrained(folder)
    return _random(config, AutoProcessor.from_pretrained(folder), device, torch.float32, "smollm2-shape")


def _testbed_smollm2(device: torch.device) -> LVLM:
    return load("testbed-smollm2", device=str(device), check=False)


def shape_7b(processor: Any, **smaller: int) -> LlavaConfig:
    """LLaVA-1.5-7B's shape: Vicuna's decoder, CLIP ViT-L/14 at 336 pixels, 576 image tokens; `smaller` for tests."""
    tokenizer = processor.tokenizer
    sizes = {"layers": 32, "heads": 32, "width": 4096, "mlp": 11008, "vocabulary": 32064, "tower": 24} | smaller
    text = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["heads"],
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=sizes.get("tower_width", 1024),
        intermediate_size=4 * sizes.get("tower_width", 1024),
        num_hidden_layers=sizes["tower"],
        num_attention_heads=16,
        image_size=sizes.get("image", 336),
        patch_size=14,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(sizes.get("image", 336) // 14) ** 2,
        tie_word_embeddings=False,
    )


def processor_7b(image: int = 336) -> Any:
    """The testbed's tokenizer with pictures of LLaVA's size."""
    processor: Any = AutoProcessor.from_pretrained(WEIGHTS / "testbed")
    processor.image_processor.size = {"shortest_edge": image}
    processor.image_processor.crop_size = {"height": image, "width": image}
    processor.patch_size = 14
    return processor


def _7b(device: torch.device) -> LVLM:
    processor = processor_7b()
    return _random(shape_7b(processor), processor, device, torch.bfloat16, "llava-7b-shape")


def _tiny_7b(device: torch.device) -> LVLM:
    """The 7B row's way of building at a size for tests."""
    processor = processor_7b(56)
    small = {
        "layers": 2,
        "heads": 4,
        "width": 64,
        "mlp": 128,
        "vocabulary": 512,
        "tower": 3,
        "tower_width": 64,
        "image": 56,
    }
    return _random(shape_7b(processor, **small), processor, device, torch.bfloat16, "tiny-7b-shape")


def _random(config: Any, processor: Any, device: torch.device, dtype: torch.dtype, name: str) -> LVLM:
    """A LLaVA with random weights, made on its device in its type: 7B in float32 on a CPU would take 28 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            hf: Any = build_model(config)
    finally:
        torch.set_default_dtype(before)
    hf.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return LVLM(hf.to(device), processor, name)


def small(layers: int = 2, heads: int = 4, width: int = 64, positions: int = 1024) -> LVLM:
    """A testbed of another shape, random weights."""
    processor: Any = AutoProcessor.from_pretrained(WEIGHTS / "testbed")
    hf: Any = build_model(build_config(processor, layers=layers, heads=heads, width=width))
    hf.config.get_text_config().max_position_embeddings = max(positions, 512)
    return LVLM(hf, processor, f"{layers}x{heads}x{width}")


SIZES = {
    size.name: size
    for size in (
        Size("tiny", lambda _: small(), 12, (1, 2), "2 layers, 4 heads, width 64; for tests"),
        Size("tiny-7b", _tiny_7b, 8, (1, 2), "the 7B row at a size for tests, bfloat16"),
        Size("testbed", _testbed, 128, (1, 8), "bundled: 8 layers, 8 heads, width 192, 64 image tokens, float32"),
        Size("testbed-smollm2", _testbed_smollm2, 128, (1, 8), "bundled LLaVA on SmolLM2-135M, trained, float32"),
        Size("smollm2", _smollm2, 128, (1, 8), "SmolLM2-135M's shape on the testbed's tower, random weights, float32"),
        Size("7b", _7b, 128, (1, 8), "LLaVA-1.5-7B's shape, random weights, bfloat16; for a GPU"),
    )
}
