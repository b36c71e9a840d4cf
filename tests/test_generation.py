"""One call of generate: its own settings, scores that are no numbers, the cache, threads, and what it records."""

import copy
import shutil
import threading
from typing import Any

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from interp.bench.sizes import small
from interp.experiments.combinations import named_methods
from interp.interventions import VHR, EditHeads, parse_method
from interp.models import LVLM, NonFiniteLogitsError, Pass, load


@pytest.fixture
def opinionated(model):
    """The testbed with a generation_config.json that asks for beams, penalties and sampling."""
    before = model.hf.generation_config
    wanted = {"num_beams": 3, "repetition_penalty": 5.0, "do_sample": True, "temperature": 2.0}
    ids = {"eos_token_id": before.eos_token_id, "pad_token_id": before.pad_token_id}
    model.hf.generation_config = GenerationConfig(**wanted, **ids)
    yield model
    model.hf.generation_config = before


def test_greedy_is_greedy_whatever_the_folder_asks_for(model, inputs, opinionated):
    settings = opinionated.generation_settings
    assert settings["decoding"] == "greedy"
    assert settings["set_aside"]["repetition_penalty"] == 5.0
    found = opinionated.generate(inputs, max_new_tokens=16)
    assert opinionated.hf.generation_config.num_beams == 3, "the model is left as it was"
    assert found.settings["num_beams"] == 1
    assert found.settings["eos_token_id"] == opinionated.hf.generation_config.eos_token_id
    ids, written = inputs, []
    for _ in range(16):  # by hand: the most probable token, again and again
        with torch.no_grad():
            written.append(opinionated.hf(**ids.kwargs(), use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1))
        ids = inputs.extended(list(torch.stack(written, 1)))
    by_hand = torch.stack(written, 1)
    for row, tokens in enumerate(found.tokens):
        assert torch.equal(by_hand[row, : len(tokens)], tokens)


def test_what_was_used_is_recorded(model, inputs):
    with VHR(alpha=1.5)(model), parse_method("beams:num_beams=2")(model):
        found = model.generate(inputs, max_new_tokens=3, min_new_tokens=2).settings
    assert found["num_beams"] == 2
    assert found["min_new_tokens"] == 2
    assert found["methods"][1] == "Beams(num_beams=2)"


def test_scores_that_are_no_numbers_stop_the_batch_and_name_the_method(model, inputs):
    edit = EditHeads(heads="L1H1+L2H2", factor=2.0)
    weight = model.out_proj(1).weight
    before = weight.data.clone()
    try:
        weight.data.fill_(torch.nan)
        for options in ({}, {"num_beams": 2}, {"do_sample": True}):
            with edit(model), pytest.raises(NonFiniteLogitsError, match=r"rows .* with EditHeads"):
                model.generate(inputs, max_new_tokens=4, **options)
        with pytest.raises(NonFiniteLogitsError, match="with no method open"):
            model.generate(inputs, max_new_tokens=4)
        with parse_method("opera:num_beams=1:candidates=1")(model), pytest.raises(NonFiniteLogitsError, match="OPERA"):
            model.generate(inputs, max_new_tokens=4)
    finally:
        weight.data.copy_(before)
    assert issubclass(NonFiniteLogitsError, ValueError)


def test_without_a_cache_the_text_is_the_same_and_methods_that_need_one_are_refused(model, inputs):
    expected = model.generate(inputs, max_new_tokens=6)
    found = model.generate(inputs, max_new_tokens=6, use_cache=False)
    assert found.texts == expected.texts
    assert expected.cache_bytes > found.cache_bytes == 0
    for text in ("vcd", "vhr"):
        with parse_method(text)(model):
            expected = model.generate(inputs, max_new_tokens=4).texts
            assert model.generate(inputs, max_new_tokens=4, use_cache=False).texts == expected
    for text in ("h2o", "spin", "vasparse", "vhr:reselect=true", "opera:num_beams=1"):
        with parse_method(text)(model), pytest.raises(ValueError, match="works on the KV cache"):
            model.generate(inputs, max_new_tokens=2, use_cache=False)


def test_processors_of_the_call_see_what_methods_have_made(model, inputs):
    seen: list[torch.Tensor] = []

    def spy(_: Any, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores)
        return scores

    with parse_method("vcd")(model):
        model.generate(inputs, max_new_tokens=1, logits_processor=[spy])
    assert (seen[0] == -torch.inf).any(), "VCD's plausibility has been applied"


def test_guessing_several_tokens_at_once_is_refused_beside_a_method(model, inputs):
    with VHR()(model), pytest.raises(ValueError, match="cannot be combined with prompt_lookup_num_tokens"):
        model.generate(inputs, max_new_tokens=4, prompt_lookup_num_tokens=2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_compiled_steps_write_the_same_text_and_see_hooks_and_weights(pictures):
    torch.manual_seed(0)
    model = small(layers=1, heads=2, width=32)
    inputs = model.inputs(pictures[:2], ["Please describe this image in detail.", "Describe."])

    def both(model: LVLM) -> tuple[list[list[int]], list[list[int]]]:
        found = []
        for model.compiled in (False, True):
            written = model.generate(inputs, max_new_tokens=12, min_new_tokens=12)
            found.append([t.tolist() for t in written.tokens])
        assert written.settings["cache_implementation"] == "static"
        return found[0], found[1]

    plain, compiled = both(model)
    assert compiled == plain
    handle = model.out_proj(0).register_forward_pre_hook(lambda _, args: (-args[0],))
    hooked, compiled = both(model)
    handle.remove()
    assert compiled == hooked != plain
    assert both(model) == (plain, plain)
    other = copy.deepcopy(model)
    other.out_proj(0).weight.data.neg_()
    changed, compiled = both(other)
    assert compiled == changed != plain


def test_compiled_steps_are_refused_beside_what_they_would_not_see(random_model, pictures):
    model = copy.deepcopy(random_model)
    inputs = model.inputs(pictures[:1], "Describe.")
    for option in ({"compile_config": CompileConfig()}, {"disable_compile": False}):
        with pytest.raises(ValueError, match=r"model\.compiled says whether .* expected generate without"):
            model.generate(inputs, max_new_tokens=2, **option)
    model.compiled = True
    with VHR()(model), pytest.raises(ValueError, match=r"compiled steps cannot be combined .* VHR.*compiled = False"):
        model.generate(inputs, max_new_tokens=2)
    for option in ({"use_cache": False}, {"cache_implementation": "dynamic"}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match=r"compiled steps need a static cache .* cannot be combined with"):
            model.generate(inputs, max_new_tokens=2, **option)


def test_a_static_cache_is_kept_to_or_refused(model, inputs):
    static = {"max_new_tokens": 8, "cache_implementation": "static"}
    own = ("vasparse", "pai", "spin", "opera", "top-k", "fastv", "streaming-llm", "h2o", "snapkv")
    for name, method in named_methods(model).items():
        with method(model):
            if name in own:
                with pytest.raises(ValueError, match=r"has a KV cache of its own; expected .* without cache_implement"):
                    model.generate(inputs, **static)
                continue
            found = model.generate(inputs, **static)
            assert found.settings["disable_compile"], "compiled steps would not see the method's hooks"
            assert found.texts == model.generate(inputs, max_new_tokens=8).texts, name


def test_another_thread_is_refused_while_a_method_is_open(model, inputs):
    found: list[Any] = []

    def beside() -> None:
        try:
            found.append(model.generate(inputs, max_new_tokens=2).texts)
        except ValueError as error:
            found.append(str(error))

    plain = model.generate(inputs, max_new_tokens=2).texts
    with EditHeads(heads="L1H1", op="zero")(model):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert "in use by another thread" in found[0]
    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert found[1] == plain, "once it is closed, another thread may have the model"


def test_a_model_object_can_be_copied():
    model = load("testbed")
    with copy.deepcopy(model).in_use(), model.in_use():
        pass


def test_passes_know_their_prompts():
    assert Pass().prompt_of(4, 2).tolist() == [0, 0, 1, 1]
    assert Pass(prompts=torch.tensor([1, 1, 0])).prompt_of(3, 2).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="expected 3 rows or copies of them, got a batch of 4"):
        Pass().prompt_of(4, 3)
    assert [Pass().goes_on(n) for n in (1, 5)] == [True, False]
    assert Pass(seen=True).goes_on(5)
