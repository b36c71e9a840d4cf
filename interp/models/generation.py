"""One call of `generate`: what methods give it, how it is set up, and what it gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from interp.models import compat

SPECIAL = ("eos_token_id", "bos_token_id", "pad_token_id")
"""What is kept of a model's generation_config.json."""
GUESSING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Options by which `generate` reads several guessed tokens at once."""
COMPILED = ("compile_config", "disable_compile")
"""Options that say whether steps are compiled, which a model object says."""
CACHED = ("cache_implementation", "cache_config", "use_cache", "cache", "past_key_values", "custom_generate")
"""Options that give compiled steps another cache than the static one they need, or another loop."""


@dataclass(frozen=True)
class HeadSelection:
    """The heads that a method chose for a batch, and the VHD it saw when it chose."""

    heads: Bool[Tensor, "batch layer head"]
    vhd: Float[Tensor, "batch layer head"]


@dataclass(frozen=True)
class Sampled:
    """Tokens are drawn from the distribution, sharpened by `temperature`, from its largest `top_p`."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Searched:
    """What a search of its own found: `sequences` with the prompts before them, and the layers of the caches."""

    sequences: Int[Tensor, "batch token"]
    layers: list[Any]


Search = Callable[[LogitsProcessorList, GenerationConfig], Searched]
"""Runs in place of generate's loop, with the processors and settings that were prepared for it."""


@dataclass(frozen=True)
class GenerateOptions:
    """What an open method wants of `generate`; None leaves a thing as it is, and two methods cannot set the same one.

    `observers` see the model's scores before any processor; `processors` follow in the order in which methods were
    opened.  `in_step`: they follow generate's own steps and beams, so that no other loop may call them.
    `needs_cache`: the method counts on the KV cache.  `heads` is what it chose, for the caller to see;
    it may be filled while the prompt is read.
    """

    observers: tuple[LogitsProcessor, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    in_step: bool = False
    cache: Any = None
    needs_cache: bool = False
    num_beams: int | None = None
    sampling: Sampled | None = None
    search: Search | None = None
    heads: HeadSelection | None = None


class NonFiniteLogitsError(ValueError):
    """The scores of a step hold NaN, or nothing but infinities: no token can be taken from them."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote for a batch.

    `tokens[i]` are the new token ids of row i up to and without the end of sequence, `texts[i]` the same as text;
    `cache_bytes` is what the keys and values of the whole batch took at the end (0 without a cache).  `settings` is
    all that decided how it was written.
    """

    tokens: list[Int[Tensor, " _"]]
    texts: list[str]
    cache_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


class _Finite(LogitsProcessor):
    """Stops where scores are no numbers.  The largest score of a row tells: NaN carries over, -inf only if all are."""

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = methods

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.amax(-1).isfinite()
        if not best.all():
            rows = (~best).nonzero()[:, 0].tolist()
            under = f" with {', '.join(self.methods)}" if self.methods else ", with no method open"
            raise NonFiniteLogitsError(
                f"the logits of the next token are not finite in rows {rows}{under}; expected numbers. "
                "Use weaker settings, or a wider dtype"
            )
        return scores


def arguments(
    parts: Sequence[tuple[str, GenerateOptions]], given: Mapping[str, Any], cache_keyword: str
) -> dict[str, Any]:
    """The arguments of Hugging Face's `generate`, from what open methods want and what the call gives.

    Raises ValueError if a thing is set twice, or a method cannot work with what another one sets.
    """
    _check(parts, given)
    setters = dict.fromkeys(given, "the call of generate")
    found = {name: value for name, value in given.items() if name != "logits_processor"}
    for method, part in parts:
        wanted: dict[str, Any] = {cache_keyword: part.cache, "num_beams": part.num_beams}
        if part.sampling is not None:
            s = part.sampling
            wanted |= {"do_sample": True, "temperature": s.temperature, "top_p": s.top_p, "top_k": 0}
        if part.search is not None:
            wanted["custom_generate"] = _called(part.search)
        for name in (n for n, value in wanted.items() if value is not None):
            if name in setters:
                both = f"{setters[name]} and {method}"
                raise ValueError(f"{both} both set {name} of generate; they cannot be combined")
            setters[name], found[name] = method, wanted[name]
    processors = [p for _, part in parts for p in part.observers] + [p for _, part in parts for p in part.processors]
    processors.append(_Finite([method for method, _ in parts]))
    if given.get("logits_processor"):
        processors += [*given["logits_processor"], _Finite(["the logits_processor of the call"])]
    return found | {"logits_processor": LogitsProcessorList(processors)}


def _check(parts: Sequence[tuple[str, GenerateOptions]], given: Mapping[str, Any]) -> None:
    """ValueError if a method cannot work with what another one, or the call, sets."""
    searching = next((method for method, part in parts if part.search is not None), None)
    for method, part in parts:
        if searching is not None and method != searching and (part.in_step or part.cache is not None):
            what = "a KV cache of its own" if part.cache is not None else "a reader that follows generate's steps"
            raise ValueError(f"{searching} searches by itself and cannot be combined with {method}, which needs {what}")
        cached = part.cache is not None or part.needs_cache or part.search is not None
        if cached and given.get("use_cache") is False:
            raise ValueError(f"{method} works on the KV cache; expected generate without use_cache=False")
        if (part.cache is not None or part.search is not None) and given.get("cache_implementation"):
            raise ValueError(f"{method} has a KV cache of its own; expected generate without cache_implementation")
        guessing = [name for name in GUESSING if given.get(name)]
        if guessing:
            raise ValueError(f"{method} follows the text token by token and cannot be combined with {guessing[0]}")


def stepping(methods: Sequence[str], given: Mapping[str, Any], compiled: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What makes the steps of a call compiled code (`compiled`; None: they are not), which sees nothing of methods.

    Beside a static cache transformers compiles by itself on some devices; here it never does.
    Raises ValueError where compiled steps would not do what methods or the call ask for.
    """
    told = [name for name in COMPILED if name in given]
    if told:
        raise ValueError(f"model.compiled says whether steps are compiled; expected generate without {told[0]}")
    if compiled is None:
        return {"disable_compile": True} if given.get("cache_implementation") else {}
    if methods:
        raise ValueError(
            f"compiled steps cannot be combined with methods, which they do not see; got {', '.join(methods)}. "
            "Set model.compiled = False"
        )
    taken = [name for name in (*CACHED, *GUESSING) if given.get(name) is not None]
    if taken:
        raise ValueError(f"compiled steps need a static cache of their own and cannot be combined with {taken[0]}")
    return compiled


def _called(search: Search) -> Callable[..., Searched]:
    """A search as `generate` calls a loop of one's own."""
    return lambda *_, **options: search(options["logits_processor"], options["generation_config"])


def cache_bytes(output: Any) -> int:
    """What keys and values take at the end."""
    cache = None if isinstance(output, Searched) else compat.cache_of(output)
    layers = output.layers if isinstance(output, Searched) else [] if cache is None else cache.layers
    return sum(x.nbytes for layer in layers for x in (layer.keys, layer.values) if x is not None)


def settings_of(hf: Any) -> dict[str, Any]:
    """How interp's `generate` decodes unless told otherwise: greedy, with the model's special tokens.

    `set_aside` is what the model's own generation_config.json asks for beside these, which `generate` does not obey.
    """
    config = hf.generation_config
    kept = {name: getattr(config, name, None) for name in SPECIAL}
    wanted = {} if config is None else config.to_diff_dict()
    aside = {k: v for k, v in wanted.items() if k not in (*SPECIAL, "transformers_version", "_from_model_config")}
    return {"decoding": "greedy", **kept, "set_aside": aside}


@contextmanager
def own_settings(hf: Any) -> Iterator[None]:
    """While open, nothing but special tokens is taken from generation_config.json, of the model and of models in it."""
    owners = [m for m in hf.modules() if isinstance(m.__dict__.get("generation_config"), GenerationConfig)]
    before = [m.generation_config for m in owners]
    for m in owners:
        m.generation_config = GenerationConfig(**{name: getattr(m.generation_config, name) for name in SPECIAL})
    try:
        yield
    finally:
        for m, old in zip(owners, before, strict=True):
            m.generation_config = old


def described(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` as they are recorded: plain values as they are, anything else by the name of its type."""
    plain = (bool, int, float, str, list, tuple, type(None))
    return {name: v if isinstance(v, plain) else type(v).__name__ for name, v in given.items()}
