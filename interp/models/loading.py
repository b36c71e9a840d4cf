"""One door: a bundled model, a folder, a hub id or a model object, loaded, checked and ready to be looked into."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Not float64: with padding, the doctor sees NaN from transformers 5.24's eager attention there."""


def known_device(name: str) -> torch.device:
    """The device of a name; ValueError if this machine cannot use it, or it holds no values."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise ValueError("the device 'meta' holds no values, so there is nothing to look into; expected cpu, cuda, ...")
    return device


def _known_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    if dtype == "auto" or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {', '.join(DTYPES)} or auto (as the weights were saved), got {str(dtype)!r}")
    return DTYPES[str(dtype)]


def load(
    model: str | Path | PreTrainedModel,
    processor: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    check: bool = True,
    remote: bool = False,
    use_safetensors: bool = True,
    trust_remote_code: bool = False,
    **hub_options: Any,
) -> LVLM:
    """Load a model and prove that interp reads and edits it rightly.

    `model` is a bundled model (`testbed`, `testbed-sink`, `testbed-prior`, `testbed-smollm2`), `smollm2`, a folder, a
    hub id, or a Hugging Face model with its `processor` (a tokenizer for a plain language model).  `device_map`,
    `quantization_config`, `attn_implementation`, `revision`, `token` and the like go to `from_pretrained`; the model
    goes to `device` if one is given.  `dtype` is float32 if None; a model object is left as it is, or converted in
    place if a dtype is given.  `check=False` skips the doctor.  `remote=True` takes a hub id served by NDIF: the
    weights stay there, and only what is read comes back (nnsight's path; not tried out here).
    Raises ValueError if nothing can be loaded, UnsupportedModelError if interp does not know the architecture or the
    doctor finds that something does not fit: weights that the files lack, above all.
    """
    known = None if dtype is None else _known_dtype(dtype)
    target = None if device is None else known_device(device)
    if not isinstance(model, str | Path):
        found = _taken(model, processor, known, target, [*hub_options, *(["remote"] if remote else [])])
    else:
        dtype = torch.float32 if known is None else known
        options = {"use_safetensors": use_safetensors, "dtype": dtype, "trust_remote_code": trust_remote_code}
        found = _load_by_name(str(model), processor, target, remote, options | hub_options)
    if check and not found.remote:
        diagnose(found).require()
    return found


def _taken(
    hf: Any, processor: Any, dtype: torch.dtype | str | None, device: torch.device | None, idle: Collection[str]
) -> LVLM:
    """A model object with its processor; `idle` are options that only loading by name knows."""
    if not isinstance(hf, PreTrainedModel):
        raise ValueError(f"expected a name, a folder or a Hugging Face model (PreTrainedModel), got {hf!r:.80}")
    if processor is None:
        raise ValueError(f"a {type(hf).__name__} object comes with its processor: load(model, processor)")
    if idle:
        raise ValueError(f"{', '.join(idle)} belong to loading by name; this model is already loaded")
    _require_tokenizer(processor)
    moved: Any = hf
    if isinstance(dtype, torch.dtype) and dtype != hf.dtype:
        if getattr(hf, "is_quantized", False):
            raise ValueError(f"a quantised model keeps its types: leave dtype out, got {dtype}")
        moved = moved.to(dtype)
    return LVLM(moved if device is None else moved.to(device), processor, _name_of(hf))


def _require_tokenizer(processor: Any) -> None:
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ValueError(f"expected a Hugging Face processor or tokenizer, got a {type(processor).__name__}")
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if template == "":
        raise ValueError("the processor's chat template is empty; restore it, or remove it to do without one")


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


def _load_by_name(
    name: str, processor: Any, target: torch.device | None, remote: bool, options: dict[str, Any]
) -> LVLM:
    path = _place(name)
    local = Path(path).is_dir()
    _require_acting(name, local, target, remote, options)
    hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    family = _opened(name, "configuration (config.json)", lambda: _family_at(path, hub))
    if processor is None or isinstance(processor, str | Path):
        auto: Any = AutoProcessor if family.has_vision else AutoTokenizer
        place = processor or path
        kind = "processor (processor_config.json, tokenizer.json, ...)" if family.has_vision else "tokenizer"
        processor = _opened(name, kind, lambda: auto.from_pretrained(place, **hub))
    _require_tokenizer(processor)
    if remote:
        kept = {key: value for key, value in options.items() if key in ("revision", "dtype", "trust_remote_code")}
        return LVLM.on_ndif(path, processor, family, **kept)
    hf, misfits = _opened(name, "weights", lambda: _weights_at(path, family, options))
    shown = Path(name).name if Path(name).is_dir() else name
    found = _opened(
        name, "configuration (config.json)", lambda: LVLM(hf if target is None else hf.to(target), processor, shown)
    )
    found.misfits = misfits
    return found


def _require_acting(name: str, local: bool, target: torch.device | None, remote: bool, options: dict[str, Any]) -> None:
    """ValueError for options that cannot act together, or on what is loaded."""
    if remote and local:
        raise ValueError(f"remote=True runs hub models that NDIF serves; {name!r} is a local folder")
    if local and options.get("revision") is not None:
        raise ValueError(f"a revision is one of a hub model; {name!r} is a local folder")
    places = options.get("device_map")
    if target is not None and places is not None:
        raise ValueError(f"device {target} and device_map {places!r} both say where the model goes; keep one of them")
    if places == "meta" or (isinstance(places, dict) and "meta" in {str(place) for place in places.values()}):
        raise ValueError("the device 'meta' in device_map holds no values; expected cpu, cuda, disk, ...")


def _family_at(path: str, hub: dict[str, Any]) -> Family:
    """The family of what lies at a folder or hub id, from its configuration alone."""
    config = AutoConfig.from_pretrained(path, **hub)
    architectures = config.architectures or []
    if not architectures:
        raise UnsupportedModelError(f"the configuration at {path!r} names no architecture; interp needs one")
    return family_of(architectures[0])


def _weights_at(path: str, family: Family, options: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """A model, and in words which of its weights the files do not hold as they should.

    transformers fills what is missing or misshapen with random numbers and goes on.  Tied weights and the buffers
    that older releases saved are no misfits; it leaves them out of its report itself.
    """
    auto: Any = AutoModelForImageTextToText if family.has_vision else AutoModelForCausalLM
    hf, report = auto.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    misshapen = sorted(f"{key} (file {tuple(there)}, model {tuple(here)})" for key, there, here in
                       report["mismatched_keys"])  # fmt: skip
    named = {
        "missing from the files": sorted(report["missing_keys"]),
        "of another shape": misshapen,
        "in the files but not in the model": sorted(report["unexpected_keys"]),
        "saved as whole numbers": [] if hasattr(hf.config, "quantization_config") else _integers(Path(path)),
        "told by transformers": sorted(report["error_msgs"]),
    }
    return hf, tuple(f"{len(keys)} {what}: {_some(keys)}" for what, keys in named.items() if keys)


def _integers(folder: Path) -> list[str]:
    """Weights that the files of a folder hold as integers, which transformers takes for numbers without a word."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            weights = (key for key in opened.keys() if key.endswith((".weight", ".bias")))  # noqa: SIM118 (no dict)
            found += [key for key in weights if opened.get_slice(key).get_dtype()[0] in "IU"]
    return found


def _some(keys: Collection[str], n: int = 3) -> str:
    first = list(keys)[:n]
    return ", ".join(first) + (f" and {len(keys) - n} more" if len(keys) > n else "")


def _opened(name: str, part: str, read: Callable[[], Any]) -> Any:
    """Read a part of a model, or ValueError that names model, part and remedy."""
    try:
        return read()
    except UnsupportedModelError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        extra = " (pip install 'lvlm-interp[vision]')" if "torchvision" in reason.lower() else ""
        raise ValueError(f"loading {name!r} needs a package that is not installed{extra}: {reason}") from error
    except Exception as error:  # files of any origin, read by several libraries: what they raise has no common type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
            reason = "A file of it is no JSON in UTF-8"
        elif isinstance(error, AttributeError | TypeError | LookupError):  # their words are of a library's code
            reason = "It is not of the form that its reader expects."
        elif not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"cannot load the model {name!r}: {_expected(name, part)} {reason}") from error


def _expected(name: str, part: str) -> str:
    """What a user can do where a part of a model cannot be read."""
    folder = Path(name) if Path(name).is_dir() else WEIGHTS / name
    if not (folder / "config.json").is_file():
        bundled = ", ".join(sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()))
        return f"expected a bundled model ({bundled}), a folder or a hub id of a vision-language or language model."
    if part == "weights":
        torn = [file.name for file in sorted(folder.glob("*.safetensors")) if _is_torn(file)]
        if not torn:
            return f"the weights in {folder} cannot be used with these options, or files of them are missing:"
        part += f" ({', '.join(torn)} cut short or overwritten)"
    return f"the {part} in {folder} cannot be used; save or fetch the model again."


def _is_torn(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return False
    except Exception:  # whatever its reader says of it
        return True
