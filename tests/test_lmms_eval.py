"""The plug-in for lmms-eval, against its own registry and request classes; nothing is downloaded."""

from typing import Any

import pytest
import torch

pytest.importorskip(
    "lmms_eval.api.model",
    reason="lmms-eval is not installed (pip install --no-deps lmms-eval loguru pytz is enough for this test)",
)

from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelRegistryV2  # pyright: ignore[reportMissingImports]

from interp.integrations.lmms_eval import InterpLMM
from interp.interventions import parse_method

QUESTIONS = ["Is there a fork in the image?", "Please describe this image in detail.", "Is there a dog in the image?"]


def lmm(pictures, **options: Any) -> InterpLMM:
    """The plug-in, resolved as lmms-eval does, with a task of three documents."""
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    found = registry.get_model_class("interp").create_from_arg_string(
        ",".join(f"{k}={v}" for k, v in options.items()), {"batch_size": 2, "device": "cpu"}
    )
    found.task_dict = {"task": {"test": [{"image": p} for p in pictures[:3]]}}
    return found


def requests(kind: str, second: list[Any]) -> list[Instance]:
    def visual(doc: dict[str, Any]) -> list[Any]:
        return [doc["image"]]

    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return [
        Instance(kind, (text, second[i], visual, i, "task", "test"), i, metadata)  # pyright: ignore[reportArgumentType]
        for i, text in enumerate(QUESTIONS)
    ]


@pytest.mark.parametrize("method", ["greedy", "vhr:alpha=1.5", "m3id:gamma=0.2"])
def test_answers_are_those_of_the_steered_model(method, model, pictures):
    found = lmm(pictures, pretrained="testbed", dtype="float32", method=method)
    settings = [{"max_new_tokens": 8, "until": ["\n"]}, {"max_new_tokens": 24}, {"max_new_tokens": 8, "until": ["\n"]}]
    answers = found.generate_until(requests("generate_until", settings))
    for i, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        inputs = model.inputs([pictures[i]], question)
        with parse_method(method)(model):
            assert model.generate(inputs, max_new_tokens=settings[i]["max_new_tokens"]).texts == [answer]


def test_losses_of_the_steered_model(model, pictures):
    found = lmm(pictures, pretrained="testbed", dtype="float32")
    pairs = found.loglikelihood(requests("loglikelihood", ["Yes.", "A fork", "No."]))
    for i, continuation in enumerate(["Yes.", "A fork", "No."]):
        inputs = model.inputs([pictures[i]], QUESTIONS[i])
        ids = model.tokenizer(continuation, add_special_tokens=False, return_tensors="pt").input_ids[0]
        whole = inputs.extended([ids])
        with torch.no_grad():
            logits = model.hf(**whole.kwargs()).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        loss, greedy = pairs[i]
        assert loss == pytest.approx(-float(logits.gather(-1, ids[:, None]).mean()), abs=1e-3)
        assert greedy is bool((logits.argmax(-1) == ids).all())
    steered = lmm(pictures, pretrained="testbed", dtype="float32", method="vcd")
    assert steered.loglikelihood(requests("loglikelihood", ["Yes.", "A fork", "No."])) != pairs


def test_what_it_cannot_do_is_told(pictures):
    found = lmm(pictures, pretrained="testbed", dtype="float32")
    found.task_dict = {"task": {"test": [{"image": "video.mp4"}] * 3}}
    with pytest.raises(ValueError, match="interp reads pictures, got str"):
        found.generate_until(requests("generate_until", [{}, {}, {}]))
    with pytest.raises(NotImplementedError, match="several rounds"):
        found.generate_until_multi_round([])
