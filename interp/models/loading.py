"""One door: a bundled model, a folder, a hub id or a model object, loaded, checked and ready to be looked into."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from interp.models.doctor import diagnose
from interp.models.families import Family, UnsupportedModelError, family_of
from interp.models.lvlm import LVLM
from interp.models.smollm2 import ADAPTER, NAME, merged, smollm2
from interp.testbed import WEIGHTS

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "trust_remote_code")


def _known_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def _family_at(path: str, hub: dict[str, Any]) -> Family:
    """The family of what lies at a folder or hub id, from its configuration alone."""
    config = AutoConfig.from_pretrained(path, **hub)
    architectures = config.architectures or []
    if not architectures:
        raise UnsupportedModelError(f"the configuration at {path!r} names no architecture; interp needs one")
    return family_of(architectures[0])


def load(
    model: str | Path | PreTrainedModel,
    processor: Any = None,
    *,
    dtype: torch.dtype | str = "float32",
    device: str | None = None,
    check: bool = True,
    remote: bool = False,
    use_safetensors: bool = True,
    trust_remote_code: bool = False,
    **hub_options: Any,
) -> LVLM:
    """Load a model and prove that interp reads and edits it rightly.

    `model` is a bundled model (`testbed`, `testbed-sink`, `testbed-smollm2`), `smollm2`, a folder, a
    hub id, or a Hugging Face model with its `processor` (a tokenizer for a plain language model).  `device_map`,
    `quantization_config`, `attn_implementation`, `revision`, `token` and the like go to `from_pretrained`; the model
    goes to `device` if one is given.  `check=False` skips the doctor.  `remote=True` takes a hub id served by NDIF: the
    weights stay there, and only what is read comes back (nnsight's path; not tried out here).
    Raises ValueError if nothing can be loaded, UnsupportedModelError if interp does not know the architecture or the
    doctor finds that something does not fit.
    """
    if not isinstance(model, str | Path):
        if processor is None:
            raise ValueError(f"a {type(model).__name__} object comes with its processor: load(model, processor)")
        if hub_options or remote:
            named = ", ".join([*hub_options, *(["remote"] if remote else [])])
            raise ValueError(f"{named} belong to loading by name; this model is already loaded")
        hf: Any = model if device is None else model.to(_known_device(device))  # pyright: ignore[reportArgumentType]
        found = LVLM(hf, processor, _name_of(model))
    else:
        options = {"use_safetensors": use_safetensors, "dtype": dtype, "trust_remote_code": trust_remote_code}
        found = _load_by_name(str(model), processor, device, remote, options | hub_options)
    if check and not found.remote:
        diagnose(found).require()
    return found


def _name_of(hf: PreTrainedModel) -> str:
    return Path(hf.config.name_or_path or type(hf).__name__).name


def _place(name: str) -> str:
    """The folder or hub id of a name; a bundled adapter is merged with SmolLM2 first."""
    if name == NAME:
        return str(smollm2())
    folder = WEIGHTS / name
    path = folder if name.startswith("testbed") and folder.is_dir() else Path(name)
    if (path / ADAPTER).exists():
        return str(merged(path))
    return str(path) if path is folder else name


def _load_by_name(name: str, processor: Any, device: str | None, remote: bool, options: dict[str, Any]) -> LVLM:
    target = None if device is None else _known_device(device)
    path = _place(name)
    if remote and Path(path).is_dir():
        raise ValueError(f"remote=True runs hub models that NDIF serves; {name!r} is a local folder")
    hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        family = _family_at(path, hub)
        if processor is None or isinstance(processor, str | Path):
            auto: Any = AutoProcessor if family.has_vision else AutoTokenizer
            processor = auto.from_pretrained(processor or path, **hub)
        if remote:
            kept = {key: value for key, value in options.items() if key in ("revision", "dtype", "trust_remote_code")}
            return LVLM.on_ndif(path, processor, family, **kept)
        auto = AutoModelForImageTextToText if family.has_vision else AutoModelForCausalLM
        hf: Any = auto.from_pretrained(path, **options)
    except UnsupportedModelError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"loading {name!r} needs a package that is not installed: {reason}") from error
    except (OSError, ValueError) as error:
        bundled = ", ".join(sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()))
        raise ValueError(
            f"cannot load the model {name!r}: expected a bundled model ({bundled}), a folder or a hub id of a "
            f"vision-language or language model. {str(error).splitlines()[0]}"
        ) from error
    return LVLM(hf if target is None else hf.to(target), processor, Path(name).name if Path(name).is_dir() else name)
