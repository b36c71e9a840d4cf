"""Building the testbed's model and processor from Hugging Face's own classes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from interp.testbed.language import CAPTION_PROMPTS, Turn, caption, questions
from interp.testbed.tower import FEATURE_LAYER, PATCH, tower_config
from interp.testbed.world import IMAGE_SIZE, scene

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
VOCABULARY = 468
"""Small enough that many object names are several tokens."""

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if m['content'] is string %}USER: {{ m['content'] }}"
    "{% else %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "USER:{% for c in m['content'] if c['type'] == 'text' %} {{ c['text'] }}{% endfor %}{% endif %}"
    "{% else %} ASSISTANT: {{ m['content'] if m['content'] is string else m['content'][0]['text'] }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The image stands right after `<s>`: words between the two would share an attention sink (spec, Sinks)."""


def prompt_text(question: str) -> str:
    """What follows the image in a prompt, as the chat template writes it."""
    return f"USER: {question} ASSISTANT:"


def _texts(seed: int, n: int) -> Iterable[str]:
    for i in range(n):
        s, rng = scene("train", "train", i, seed), np.random.default_rng([seed, 1, i])
        turns: list[Turn] = [caption(s, rng), *questions(s, rng)]
        for turn in turns:
            yield prompt_text(turn.prompt) + " " + turn.text
        yield from CAPTION_PROMPTS


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on training captions; any text can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed, 2000), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """An image processor for 96-pixel pictures; larger ones are resized and cropped to the centre."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def build_processor(seed: int = 0) -> LlavaProcessor:
    """A LLaVA processor with the testbed's tokenizer and chat template."""
    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=build_tokenizer(seed),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(
    processor: LlavaProcessor, *, layers: int = 8, heads: int = 8, width: int = 192, rope_theta: float = 1e4
) -> LlavaConfig:
    """The LLaVA configuration: small CLIP tower, two-layer projector, Llama decoder."""
    tokenizer: Any = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=tower_config(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )


def build_model(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A randomly initialised model of the configuration, in float32."""
    return LlavaForConditionalGeneration(config)
