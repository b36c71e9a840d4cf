"""Everything of transformers, accelerate and nnsight that is private or has changed its name, in one place.

`TOUCHED` says what is touched, why, and with which version it was last seen to work; `tests/test_compat.py` fails first
when a release changes one of these.  A name that is gone is told where it is used, not where it is imported, so that
the rest of interp goes on working.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, CompileConfig, GenerationMixin


@dataclass(frozen=True)
class Touched:
    """A private name: where it lies, what interp needs it for, and the version it was seen in."""

    name: str
    where: str
    why: str
    seen: str


TOUCHED = (
    Touched(
        "ALL_ATTENTION_FUNCTIONS",
        "transformers.modeling_utils",
        "a watched kernel runs the model's own kernel, which is looked up by the name of the backend",
        "transformers 5.24.0",
    ),
    Touched(
        "ALL_MASK_ATTENTION_FUNCTIONS",
        "transformers.masking_utils",
        "a watched kernel needs the mask of the backend it stands for; without one the prefill is not causal",
        "transformers 5.24.0",
    ),
    Touched(
        "get_optimal_tiled_canvas",
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2",
        "into which tiles InternVL's processor cuts a picture is not told by its output",
        "transformers 5.24.0",
    ),
    Touched(
        "get_anyres_image_grid_shape",
        "transformers.models.llava_next.modeling_llava_next",
        "into which tiles LLaVA-NeXT's processor cuts a picture is not told by its output",
        "transformers 5.24.0",
    ),
    Touched(
        "unpad_image",
        "transformers.models.llava_next.modeling_llava_next",
        "which image features LLaVA-NeXT throws away is decided inside the model",
        "transformers 5.24.0",
    ),
)
"""Names that are imported.  Attributes are touched by the functions below, each with its reason."""


class _Missing:
    """Stands for a name that is gone; says so when it is used."""

    def __init__(self, touched: Touched, error: Exception) -> None:
        self.touched, self.error = touched, error

    def _tell(self, *_: Any, **__: Any) -> Any:
        t = self.touched
        raise ImportError(
            f"{t.where}.{t.name} is gone from the installed release ({self.error}). interp needs it because {t.why}; "
            f"it was last seen in {t.seen}. Install that version, or correct interp/models/compat.py"
        ) from self.error

    __call__ = __getitem__ = __contains__ = _tell


def imported(touched: Touched) -> Any:
    """A private name, or a stand-in that raises ImportError when it is used."""
    try:
        return getattr(import_module(touched.where), touched.name)
    except (ImportError, AttributeError) as error:
        return _Missing(touched, error)


@cache
def _private(name: str) -> Any:
    """A name of `TOUCHED`, imported when it is first used."""
    return imported(next(t for t in TOUCHED if t.name == name))


def optimal_tiled_canvas(*args: Any, **kwargs: Any) -> Any:
    """InternVL's (GOT-OCR2's) choice of tiles for a picture."""
    return _private("get_optimal_tiled_canvas")(*args, **kwargs)


def anyres_grid_shape(*args: Any, **kwargs: Any) -> Any:
    """LLaVA-NeXT's choice of tiles for a picture."""
    return _private("get_anyres_image_grid_shape")(*args, **kwargs)


def unpadded(*args: Any, **kwargs: Any) -> Any:
    """LLaVA-NeXT's image features without those of the padding."""
    return _private("unpad_image")(*args, **kwargs)


def kernel(name: str, module: Any) -> Callable[..., Any]:
    """The attention kernel of a backend; `eager` is the one in the source file of the model."""
    if name == "eager":
        return sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
    return _private("ALL_ATTENTION_FUNCTIONS")[name]


def register_kernel(name: str, function: Callable[..., Any], backend: str) -> None:
    """Make an attention kernel known by a name, with the masks of a backend; once is enough."""
    if name not in _private("ALL_ATTENTION_FUNCTIONS"):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _private("ALL_MASK_ATTENTION_FUNCTIONS")[backend])


def backend_of(config: Any) -> str:
    """The attention backend that a configuration names; `_attn_implementation` has no public reader (5.24.0)."""
    return config._attn_implementation or "eager"


@contextmanager
def attention_backend(configs: list[Any], name: str) -> Iterator[None]:
    """While open, configurations name another attention backend.

    The public `set_attn_implementation` checks names against those it can load, and changes the vision tower as well
    (5.24.0); hence the attribute behind it.
    """
    before = [config._attn_implementation_internal for config in configs]
    for config in configs:
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for config, old in zip(configs, before, strict=True):
            config._attn_implementation_internal = old


def offers_sdpa(hf: Any) -> bool:
    """Whether a model class runs with sdpa; `_supports_sdpa` is the only place that says so (5.24.0)."""
    return bool(getattr(hf, "_supports_sdpa", False))


def entry_device(hf: Any) -> torch.device:
    """Where a model takes its inputs, also when some of its weights are offloaded.

    The weights of an offloaded module lie on the meta device; accelerate keeps where it runs in `_hf_hook` (1.15.0).
    """
    embedding = hf.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


def offloaded(module: Any) -> bool:
    """Whether accelerate (1.15.0) brings a module's weights when it is called: until then they are not there."""
    return "_hf_hook" in module.__dict__


def wrapped(traced: Any) -> Any:
    """The module inside an nnsight wrapper; `_module` has no public reader (0.8.1)."""
    return traced._module


_FRONT = "_interp_front"
"""Where a module keeps nnsight's `forward` while its own one runs."""


@contextmanager
def untraced(hf: Any) -> Iterator[None]:
    """While open, modules run their own `forward`, not the one that nnsight has put before it (0.8.1).

    That one asks at every call of every module whether a trace runs, which is a twentieth of the time of a small model.
    Modules whose `forward` is not that of their class (accelerate's, say) are left as they are.
    """
    taken = []
    for module in hf.modules():
        front = module.__dict__.get("forward")
        body = getattr(getattr(front, "state", None), "body", None)
        if body is type(module).forward and not offloaded(module):
            module.__dict__[_FRONT] = module.__dict__.pop("forward")
            taken.append(module)
    try:
        yield
    finally:
        for module in taken:
            module.__dict__["forward"] = module.__dict__.pop(_FRONT)


@contextmanager
def traceable(hf: Any) -> Iterator[None]:
    """While open, what `untraced` has taken away is back, for a trace inside of it."""
    taken = [module for module in hf.modules() if _FRONT in module.__dict__]
    for module in taken:
        module.__dict__["forward"] = module.__dict__.pop(_FRONT)
    try:
        yield
    finally:
        for module in taken:
            module.__dict__[_FRONT] = module.__dict__.pop("forward")


@contextmanager
def compiling(hf: Any) -> Iterator[dict[str, Any]]:
    """While open, the steps of a `generate` that is given what this yields run as compiled code.

    transformers compiles on a CPU only if `_compile_all_devices` is set (5.24.0).  Compiled code looks for hooks again
    only if torch is told so (2.13).  The compiled call is dropped at the end: a copy of the model would run it, with
    the weights of the original.
    """
    config: Any = CompileConfig()
    config._compile_all_devices = True
    try:
        with import_module("torch._dynamo.config").patch(skip_nnmodule_hook_guards=False):
            yield {"cache_implementation": "static", "compile_config": config}
    finally:
        hf.__dict__.pop("_compiled_call", None)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden state that a decoder layer is called with: its first argument, which some models name."""
    return args[0] if args else kwargs["hidden_states"]


def adds_between_layers(decoder: Any) -> bool:
    """Whether a decoder adds features to image tokens after early layers; nothing else says so (5.24.0)."""
    return hasattr(decoder, "_deepstack_process")


def cache_keyword(hf: Any) -> str:
    """The argument that takes the KV cache: `cache` from transformers 5.24 on, `past_key_values` before.

    A model whose `forward` names neither hands both on to a language model of the library.
    """
    named = inspect.signature(hf.forward).parameters
    library = inspect.signature(getattr(GenerationMixin, "prepare_inputs_for_generation")).parameters  # noqa: B009
    where = named if "cache" in named or "past_key_values" in named else library
    return "cache" if "cache" in where else "past_key_values"


def cache_of(output: Any) -> Any:
    """The KV cache in what `generate` gives back, None if it kept none; renamed as in `cache_keyword`."""
    return output.cache if hasattr(output, "cache") else output.past_key_values
