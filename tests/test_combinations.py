"""Methods side by side: every pair acts or is refused, passes keep their owners, and pairs of papers are as defined."""

import re
from typing import Any

import pytest
import torch
from test_vasparse import ReferencePattern
from torch import Tensor

from interp.experiments.combinations import alike, markdown, named_methods, pairs, scores_with
from interp.interventions import METHODS, DoLa, EditHeads, VASparse, parse_method
from interp.interventions.methods.vcd import VCD
from interp.interventions.methods.vhr import VHR
from interp.metrics.contrast import contrast_logits
from interp.models import PASSES, Inputs, image_free, load, run_with_edits

PROMPT = "Please describe this image in detail."


@pytest.fixture
def two(model, pictures) -> Inputs:
    return model.inputs(pictures[:2], PROMPT)


def test_every_pair_acts_or_is_refused_in_one_line(model, two):
    found = pairs(model, two)
    n = len(named_methods(model))
    assert len(found) == n * (n - 1) // 2
    assert not [pair for pair in found if pair.silent]
    refused = [pair for pair in found if pair.refused]
    told = re.compile("cannot be combined|cannot follow|expected")
    assert all("\n" not in pair.refused and told.search(pair.refused) for pair in refused)
    acting = {(pair.first, pair.second) for pair in found if not pair.refused}
    assert {("vhr", "vcd"), ("vhr", "vasparse"), ("beams", "edit"), ("vhr", "opera"), ("vcd", "dola")} <= acting
    assert ("spin", "opera") not in acting
    assert markdown(found).count("\n") > n


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("greedy", "stop-bias")])
def test_a_pass_of_another_is_left_alone_unless_it_is_named(name, model, two):
    method = named_methods(model)[name]

    @torch.no_grad()
    def logits(purpose: str) -> Tensor:
        with model.passing(purpose):
            return model.hf(**two.kwargs(), use_cache=False, logits_to_keep=1).logits

    plain = logits("main")
    with method.steer(model, two):
        logits("main")  # in which VHR may choose
        for purpose in set(PASSES) - {"main"}:
            assert torch.equal(logits(purpose), plain) == (purpose not in method.passes), purpose
    assert set(method.passes) <= set(PASSES)
    assert all(len(reason) > 20 for reason in method.passes.values())


@pytest.mark.parametrize("weak", ["vcd:alpha=1e-9", "m3id:gamma=1e-9", "pai:alpha=0:gamma=1.000000001"])
def test_a_contrast_of_no_strength_leaves_dola_as_it_is(weak, model, inputs):
    with DoLa()(model):
        expected = model.generate(inputs, max_new_tokens=24).texts
    assert expected != model.generate(inputs, max_new_tokens=24).texts
    for methods in ([parse_method(weak), DoLa()], [DoLa(), parse_method(weak)]):
        with methods[0](model), methods[1](model):
            assert model.generate(inputs, max_new_tokens=24).texts == expected


def test_choosing_anew_goes_on_under_a_contrast(model, two):
    weak, anew = parse_method("vcd:alpha=1e-9:plausibility=0"), VHR(reselect=True)
    with anew(model):
        expected = model.generate(two, max_new_tokens=8).texts
    for methods in ([weak, anew], [anew, weak]):
        with methods[0](model), methods[1](model):
            assert model.generate(two, max_new_tokens=8).texts == expected


def test_vhr_with_vcd_equals_two_edited_passes_a_step(model, two):
    vhr, vcd = VHR(alpha=4.0), VCD(alpha=0.7, plausibility=0.1, image_free="blank")
    with vhr(model), vcd(model):
        found = torch.stack(model.generate(two, max_new_tokens=8, min_new_tokens=8).tokens)
    scale = torch.where(vhr.select(model, two).heads, 4.0, 1.0)

    def edit(layer: int, z: Tensor) -> Tensor:
        return z * scale[:, layer, None, :, None]

    written = two.input_ids[:, :0]
    blank = image_free(model, two, "blank")
    eos = model.hf.generation_config.eos_token_id
    for _ in range(8):
        streams = [x if not written.shape[1] else x.extended(list(written)) for x in (two, blank)]
        theta, phi = (run_with_edits(model, x, {"z": edit})[:, -1].clone() for x in streams)
        theta[:, eos] = -torch.inf
        written = torch.cat([written, contrast_logits(theta, phi, 0.7, 0.1).argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, written)
    with vcd(model):
        assert not torch.equal(torch.stack(model.generate(two, max_new_tokens=8, min_new_tokens=8).tokens), found)


def test_vasparse_with_vhr_equals_one_edited_pass(pictures):
    model = load("testbed", check=False)
    model.hf.double()  # so that a key at the edge of the kept ones is no accident
    two = model.inputs(pictures[:2], PROMPT)
    vasparse, vhr = VASparse(alpha=0, keep=0.6, scope="all", dropped="discard"), VHR()
    native = []
    with vhr(model), vasparse(model):
        keep: Any = [lambda _, scores: native.append(scores.clone()) or scores]
        written = model.generate(two, max_new_tokens=8, min_new_tokens=8, logits_processor=keep).tokens
    scale = torch.where(vhr.select(model, two).heads, 2.0, 1.0)
    edits: Any = {
        "attention": (patterns := ReferencePattern(two, vasparse)).see,
        "pattern": patterns.give,
        "z": lambda layer, z: z * scale[:, layer, None, :, None],
    }
    logits = run_with_edits(model, two.extended(written), edits, keep=9)[:, :-1]
    found = torch.stack(native, 1)
    finite = found.isfinite()
    torch.testing.assert_close(found[finite], logits[finite].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", ["beams:num_beams=3", "opera:num_beams=2:candidates=2"])
def test_an_edit_with_a_search_equals_edited_weights(search, model, inputs):
    edit = EditHeads(heads="L1H1+L4H2", op="scale", factor=3.0)
    with edit(model), parse_method(search)(model):
        found = model.generate(inputs, max_new_tokens=16).texts
    with parse_method(search)(model):
        plain = model.generate(inputs, max_new_tokens=16).texts
        before = {}
        try:
            for head in edit.chosen(model):
                weight = model.out_proj(head.layer).weight
                before[head] = weight.data.clone()
                weight.data[:, head.head * model.d_head : (head.head + 1) * model.d_head] *= 3.0
            assert model.generate(inputs, max_new_tokens=16).texts == found != plain
        finally:
            for head, weight in before.items():
                model.out_proj(head.layer).weight.data.copy_(weight)


def test_vhr_with_opera_reinforces_each_prompt_by_its_own_heads(model, inputs):
    with VHR()(model), parse_method("opera:num_beams=2:candidates=2")(model):
        together = model.generate(inputs, max_new_tokens=8).texts
        for row in (0, 3):
            one = model.inputs([inputs.pictures[row]], inputs.texts[row], chat=False)
            assert model.generate(one, max_new_tokens=8).texts == [together[row]]


def test_the_measure_of_acting_can_tell(model, two):
    plain = scores_with(model, two, [])
    assert alike(plain, scores_with(model, two, [parse_method("greedy")]))
    assert not alike(plain, scores_with(model, two, [parse_method("spin:suppress=0.5")]))
