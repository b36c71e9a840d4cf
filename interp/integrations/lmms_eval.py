"""A model with a method for lmms-eval: `python -m lmms_eval --model interp --model_args pretrained=...,method=vhr`.

lmms-eval finds it by the entry point `lmms_eval.models`; nothing of interp imports this module.  What that project
calls a log-likelihood is a loss, of which its tasks take the smallest: the mean negative log-probability of a
continuation's tokens (`lmms_eval/models/simple/llava_hf.py`, `loglikelihood`).  It is that of the steered model:
`generate` is made to write the continuation, so that every method counts as it does in generation.  A video is refused,
a text without pictures goes to models that take one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor

from interp.experiments.engine import Shard
from interp.interventions import parse_method
from interp.models import load


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="interp", simple_class_path=f"{__name__}.InterpLMM")


class _Forced(LogitsProcessor):
    """Makes `generate` write given tokens, and notes how likely they were."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.log_p, self.greedy = tokens.tolist(), 0.0, True
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        target = self.tokens[min(self.step, len(self.tokens) - 1)]
        if self.step < len(self.tokens):
            self.log_p += float(scores[0].float().log_softmax(-1)[target])
            self.greedy &= int(scores[0].argmax()) == target
        self.step += 1
        forced = torch.full_like(scores, -torch.inf)
        forced[:, target] = 0.0
        return forced


def _batch_size(text: int | str) -> int:
    """How many requests go together; `auto` and `auto:N` are one, for no trial says how much memory a picture takes."""
    if str(text).partition(":")[0] == "auto":
        return 1
    if not str(text).isdigit() or int(text) < 1:
        raise ValueError(f"batch_size is a number of at least 1, or auto, got {text!r}")
    return int(text)


class InterpLMM(lmms):
    """Any model that interp loads, with any of its methods; `method` is written as for `interp study`.

    Between the method's parameters stands a colon: `method=vhr:alpha=1.5`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "testbed",
        method: str = "greedy",
        device: str | None = None,
        dtype: str = "auto",
        device_map: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = 512,
    ) -> None:
        super().__init__()
        shard = Shard.current(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._rank, self._world_size = shard.rank, shard.world
        options: dict[str, Any] = {"device_map": device_map} if device_map else {}
        if attn_implementation:
            options["attn_implementation"] = attn_implementation
        if device is not None and not device_map:
            options["device"] = shard.device(device)
        self.model = load(str(pretrained), dtype=dtype, **options)
        self.method, self.batch_size = parse_method(method), _batch_size(batch_size)
        self.method.check(self.model)
        self.max_new_tokens = int(max_new_tokens)

    def _pictures(self, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> list[Image.Image]:
        found = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        wrong = [type(picture).__name__ for picture in found if not isinstance(picture, Image.Image)]
        if wrong:
            raise ValueError(f"interp reads pictures, got {', '.join(sorted(set(wrong)))} from task {task}")
        return list(found)

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`generate`'s options from a task's."""
        options: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens", self.max_new_tokens))}
        if settings.get("do_sample", True) and float(settings.get("temperature") or 0) > 0:
            options |= {"do_sample": True, "temperature": float(settings["temperature"])}
            if settings.get("top_p") is not None:
                options["top_p"] = float(settings["top_p"])
        if int(settings.get("num_beams") or 1) > 1:
            options["num_beams"] = int(settings["num_beams"])
        return options

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request; requests of equal settings and equally many pictures go together."""
        groups: dict[tuple[str, int], list[int]] = {}
        pictures = []
        for index, request in enumerate(requests):
            _, settings, doc_to_visual, doc_id, task, split = request.args
            pictures.append(self._pictures(doc_to_visual, doc_id, task, split))
            groups.setdefault((repr(sorted(settings.items(), key=str)), len(pictures[-1])), []).append(index)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank > 0, desc="interp") as bar:
            for indices in groups.values():
                settings = requests[indices[0]].args[1]
                until = settings.get("until") or []
                stops = [until] if isinstance(until, str) else list(until)
                for start in range(0, len(indices), self.batch_size):
                    part = indices[start : start + self.batch_size]
                    images = [pictures[i] for i in part] if pictures[part[0]] else None
                    inputs = self.model.inputs(images, [requests[i].args[0] for i in part])
                    with self.method(self.model):
                        texts = self.model.generate(inputs, **self._options(settings)).texts
                    for i, text in zip(part, texts, strict=True):
                        for stop in stops:
                            text = text.split(stop)[0] if stop else text
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args[:2], text)
                    bar.update(len(part))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The mean loss of a token of each continuation under the method, and whether greedy decoding writes it."""
        found = []
        for request in requests:
            context, target, doc_to_visual, doc_id, task, split = request.args
            continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
            pictures = self._pictures(doc_to_visual, doc_id, task, split)
            inputs = self.model.inputs([pictures] if pictures else None, context)
            ids = self.model.tokenizer(continuation, add_special_tokens=False, return_tensors="pt").input_ids[0]
            if not len(ids):
                raise ValueError(f"expected a continuation with at least one token, got {continuation!r}")
            forced = _Forced(ids)
            with self.method(self.model):
                options: Any = {"max_new_tokens": len(ids), "min_new_tokens": len(ids)}
                self.model.generate(inputs, **options, logits_processor=[forced])
            found.append((-forced.log_p / len(ids), forced.greedy))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("interp answers single questions; tasks of several rounds are not supported")
