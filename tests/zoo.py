"""Small models of every family, with random weights, built from the official classes; one tokenizer serves all."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

hf: Any = transformers  # its configurations take keywords that their signatures do not show
LAYERS, HEADS, KV_HEADS, WIDTH, D_HEAD, VOCABULARY = 3, 4, 2, 32, 8, 640
BASIC = ("<pad>", "<s>", "</s>", "<unk>")


def tokenizer(**named: str) -> Any:
    """A token for each byte, and the family's special tokens under their names."""
    alphabet = [*BASIC, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    pad, bos, eos, unk = BASIC
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        extra_special_tokens=named,
    )


def template(picture: str) -> str:
    """A chat template that puts a picture's placeholder where it stands in the turn."""
    return (
        "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else ' ASSISTANT: ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + picture + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


def shake(model: Any) -> Any:
    """Weights large enough that heads and pictures matter."""
    for p in model.parameters():
        if p.ndim >= 2:
            torch.nn.init.normal_(p, std=1.5 * (p.numel() / p.shape[0]) ** -0.5)
    for module in model.modules():
        if hasattr(module, "embed_scale"):  # a Gemma; else its tied head repeats the last token, whatever heads do
            module.weight.data *= 0.1
    return model


def text(**more: Any) -> dict[str, Any]:
    """A decoder's configuration."""
    small = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return small | more


def tower(**more: Any) -> dict[str, Any]:
    """A vision tower's configuration."""
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return small | more


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
PIXELS: dict[str, Any] = {"size": {"height": 32, "width": 32}}
Built = tuple[Any, Any]


def llava() -> Built:
    words = tokenizer(image_token="<image>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template("<image>\n"),
        num_additional_image_tokens=1,
    )
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **tower()},
        text_config={"model_type": "llama", **text()},
        image_token_index=words.image_token_id,
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


GRID = [[32, 64], [64, 32], [64, 64]]


def llava_next() -> Built:
    words = tokenizer(image_token="<image>")
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=GRID
    )
    processor = hf.LlavaNextProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template("<image>\n"),
        num_additional_image_tokens=1,
    )
    config = hf.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **tower()},
        text_config={"model_type": "mistral", **text(sliding_window=None)},
        image_token_index=words.image_token_id,
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Built:
    words = tokenizer(image_token="<image>", video_token="<video>")
    images = LlavaOnevisionImageProcessorPil(**PIXELS, image_grid_pinpoints=GRID)
    processor = hf.LlavaOnevisionProcessor(
        images,
        words,
        None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **tower(vision_use_head=False)},
        text_config={"model_type": "qwen2", **text()},
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=GRID,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


QUERIES = 5
QFORMER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_hidden_size": 16,
}


def blip_2() -> Built:
    words = tokenizer()
    processor = hf.Blip2Processor(BlipImageProcessorPil(**PIXELS), words, num_query_tokens=QUERIES)
    opt = text(ffn_dim=48, word_embed_proj_dim=WIDTH)
    config = hf.Blip2Config(
        vision_config=tower(),
        qformer_config=QFORMER,
        text_config={"model_type": "opt", **opt},
        num_query_tokens=QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return hf.Blip2ForConditionalGeneration(config), processor


def instructblip() -> Built:
    words = tokenizer()
    processor = hf.InstructBlipProcessor(BlipImageProcessorPil(**PIXELS), words, tokenizer(), num_query_tokens=QUERIES)
    config = hf.InstructBlipConfig(
        vision_config=tower(),
        qformer_config=QFORMER,
        text_config={"model_type": "llama", **text()},
        num_query_tokens=QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return hf.InstructBlipForConditionalGeneration(config), processor


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def qwen(model: Any, config: Any, processor: Any, decoder: dict[str, Any], vision: dict[str, Any]) -> Built:
    """A Qwen vision-language model: pictures of any size, positions of three axes."""
    words = tokenizer(**QWEN)
    pixels: dict[str, Any] = {"min_pixels": 256, "max_pixels": 4096}
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, **pixels)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    ids = {f"{name}_id": getattr(words, f"{name}_id") for name in QWEN}
    basic = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    built = config(text_config=text(rope_parameters=MROPE, **decoder), vision_config=basic | vision, **ids)
    return model(built), processor(images, words, None, chat_template=template(picture))


def qwen2_vl() -> Built:
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    return qwen(hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, hf.Qwen2VLProcessor, {}, vision)


def qwen2_5_vl() -> Built:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH}
    vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    return qwen(hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, {}, vision)


def qwen3_vl() -> Built:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    decoder = {"head_dim": D_HEAD}
    return qwen(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, hf.Qwen3VLProcessor, decoder, vision)


def internvl() -> Built:
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = GotOcr2ImageProcessorPil(**PIXELS, crop_to_patches=True, min_patches=1, max_patches=4)
    picture = "<IMG_CONTEXT>\n"
    processor = hf.InternVLProcessor(images, words, None, image_seq_length=4, chat_template=template(picture))
    config = hf.InternVLConfig(
        vision_config=tower(image_size=[32, 32], patch_size=[8, 8]),
        text_config={"model_type": "qwen2", **text()},
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config), processor


TILES = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
IDEFICS: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def idefics3() -> Built:
    words = tokenizer(image_token="<image>", global_image_token="<global-img>")
    words.add_tokens(TILES, special_tokens=True)
    images = Idefics3ImageProcessorPil(**IDEFICS)
    processor = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=template("<image>"))
    config = hf.Idefics3Config(
        vision_config=tower(),
        text_config={"model_type": "llama", **text()},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> Built:
    words = tokenizer(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    words.add_tokens(TILES, special_tokens=True)
    images = SmolVLMImageProcessorPil(**IDEFICS)
    videos = SimpleNamespace(num_frames=1, fps=1)  # asked for by the chat template, also where there is no video
    processor = hf.SmolVLMProcessor(images, words, videos, image_seq_len=4, chat_template=template("<image>"))
    config = hf.SmolVLMConfig(
        vision_config=tower(),
        text_config={"model_type": "llama", **text()},
        image_token_id=words.image_token_id,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def paligemma() -> Built:
    words = tokenizer(image_token="<image>")
    images: Any = SiglipImageProcessorPil(**PIXELS)
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, words)
    config = hf.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **tower(vision_use_head=False, projection_dim=WIDTH)},
        text_config={"model_type": "gemma", **text(vocab_size=VOCABULARY * 3, head_dim=16)},
        image_token_index=words.image_token_id,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> Built:
    words = tokenizer(boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>")
    images = Gemma3ImageProcessorPil(**PIXELS, image_seq_length=4)
    processor = hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=template("<start_of_image>"))
    config = hf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **tower(vision_use_head=False)},
        text_config={"model_type": "gemma3_text", **text(**GEMMA)},
        mm_tokens_per_image=4,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def pixtral_processor() -> Any:
    """The processor's class; its file takes one function, which pictures never reach, from a torchvision file."""
    folder = "transformers.models.pixtral"
    stub = {f"{folder}.image_processing_pixtral": SimpleNamespace(get_resize_output_image_size=None)}
    with patch.dict(sys.modules, {} if hf.utils.is_torchvision_available() else stub):
        return import_module(f"{folder}.processing_pixtral").PixtralProcessor


def mistral3() -> Built:
    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    images = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = pixtral_processor()(images, words, patch_size=8, spatial_merge_size=2, chat_template=template("[IMG]"))
    config = hf.Mistral3Config(
        vision_config={"model_type": "pixtral", **tower(image_size=64)},
        text_config={"model_type": "mistral", **text(sliding_window=None, head_dim=16)},
        image_token_index=words.image_token_id,
        spatial_merge_size=2,
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


VISION: dict[str, Callable[[], Built]] = {
    "llava": llava,
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "instructblip": instructblip,
    "blip-2": blip_2,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "mistral3": mistral3,
}


def plain(model: Any, config: Any, **more: Any) -> Callable[[], Built]:
    """A builder of a text model."""
    return lambda: (model(config(**text(**more))), tokenizer())


OLD = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TEXT: dict[str, Callable[[], Built]] = {
    "llama": plain(hf.LlamaForCausalLM, hf.LlamaConfig),
    "mistral": plain(hf.MistralForCausalLM, hf.MistralConfig, sliding_window=8),
    "qwen2": plain(hf.Qwen2ForCausalLM, hf.Qwen2Config),
    "qwen3": plain(hf.Qwen3ForCausalLM, hf.Qwen3Config, head_dim=16),
    "gemma": plain(hf.GemmaForCausalLM, hf.GemmaConfig, head_dim=16),
    "gemma2-text": plain(hf.Gemma2ForCausalLM, hf.Gemma2Config, **GEMMA),
    "gemma3-text": plain(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, **GEMMA),
    "gpt2": lambda: (hf.GPT2LMHeadModel(hf.GPT2Config(**OLD)), tokenizer()),
    "gpt-neox": plain(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig),
    "opt": plain(hf.OPTForCausalLM, hf.OPTConfig, ffn_dim=48, word_embed_proj_dim=WIDTH),
}


def build(name: str) -> Built:
    """A model with its processor, the same at every call.

    Processors of families that know videos insist on torchvision for them; pictures do not need it.
    """
    torch.manual_seed(0)
    with patch.object(hf.ProcessorMixin, "check_argument_for_proper_class", lambda *_: None):
        model, processor = {**VISION, **TEXT}[name]()
    return shake(model).eval(), processor
