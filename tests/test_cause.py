"""What words follow: swaps by hand, readings against slow ones, and the command on a few scenes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from configured import configured
from PIL import Image

from interp.attribution.probe import Reading, log_p_of_words
from interp.data import Data, Sample, open_data
from interp.evaluate.objects import ObjectParser
from interp.experiments.cause import CauseConfig, Swaps, cause
from interp.experiments.cause_report import FOLLOWS, cause_of, write_report
from interp.experiments.records import CauseRecord, SwapRecord, read_records, to_json
from interp.experiments.setup import Setup
from interp.testbed.world import PARTNER_OF

PROMPT = "Please describe this image in detail."


def word(picture: float | None, text: float | None, both: float | None, hallucinated: bool = True) -> SwapRecord:
    """A word that loses so many nats by each swap."""
    swapped = {"picture_swapped": picture, "text_swapped": text, "both_swapped": both}
    values = {name: None if nats is None else -1.0 - nats for name, nats in swapped.items()}
    return SwapRecord("fork", hallucinated, 3, -1.0, "image 5", None if text is None else ("cup", "bird"), **values)


@pytest.mark.parametrize(
    ("lost", "follows"),
    [
        ((2.0, 0.1, 2.0), "picture"),
        ((0.0, 3.0, 3.0), "text"),
        ((1.0, 1.0, 1.0), "both"),
        ((0.5, 0.5, 1.0), "either"),
        ((0.6, 0.6, 0.6), "neither"),
        ((-4.0, -1.0, 0.0), "neither"),
        ((FOLLOWS + 1e-6, FOLLOWS - 1e-6, 0.0), "picture"),
        ((2.0, None, None), None),
        ((None, 2.0, None), None),
    ],
)
def test_what_a_word_follows(lost, follows):
    assert cause_of(word(*lost)) == follows


def test_shares_and_losses_by_hand(tmp_path):
    maps = {"vhd": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], "vhd_at_words": [[2.0, 3.0, 4.0], [3.0, 2.0, 1.0]]}
    first = (word(2, 0, 2), word(0, 2, 2), word(3, None, None), word(9, 0, 9, hallucinated=False))
    second = (word(0, 4, 4), word(None, None, None))
    records = [CauseRecord(1, "greedy", "x", first, **maps), CauseRecord(2, "greedy", "y", second, maps["vhd"])]
    report = write_report(records, tmp_path)
    found = report.followed["hallucinated"]
    assert {c: v.value for c, v in found.shares.items()} == pytest.approx(
        {"picture": 100 / 3, "text": 200 / 3, "both": 0, "either": 0, "neither": 0}
    )
    assert found.lost["text_swapped"].value == pytest.approx(2)
    assert (found.n, found.n_alone, found.n_left_out) == (3, 1, 1)
    assert found.alone is not None
    assert found.alone.value == 100
    assert report.followed["correct"].shares["picture"].value == 100
    values = {name: None if v is None else v.value for name, v in report.vhd_predicts.items()}
    assert values["layer 0"] == pytest.approx(1)
    assert values["layer 1"] == pytest.approx(-1)
    stored = json.loads((tmp_path / "cause.json").read_text())
    assert stored["follows"]["hallucinated"]["n"] == 3
    assert (tmp_path / "swaps.png").exists()
    assert "66.7" in str(report)


def test_irrelevant_swaps_are_reported_beside_the_others(tmp_path):
    some = (
        replace(word(2, 0, 2), picture_control=-1.1, text_control=-1.0 - 2 * FOLLOWS),
        replace(word(2, 0, 2), picture_control=-3.0),
        word(0, 2, 2),
    )
    report = write_report([CauseRecord(1, "greedy", "x", some, [[1.0]])], tmp_path)
    found = report.followed["hallucinated"]
    assert {c: v.value for c, v in found.controls.items()} == {"picture_control": 50, "text_control": 100}
    assert found.n_controls == {"picture_control": 2, "text_control": 1}
    assert report.followed["correct"].controls == {}
    assert "control, another thing erased: matters for 50.0" in str(report)


def test_a_control_touches_no_object_of_the_swaps():
    grey = Image.new("RGB", (8, 8))
    data = Data(
        "made", (1,), load=lambda i: Sample(i, grey, frozenset()), tied={"fork": "cup"}, erased=lambda i, names: grey
    )
    swaps = Swaps(data, {1: frozenset({"fork", "cup", "dog", "bird"})})
    assert swaps.irrelevant(1, "fork", ["cup", "dog"], ("cup", "bird")) == ("dog", ("dog", "bird"))
    assert swaps.irrelevant(1, "fork", ["cup"], ("cup", "bird")) == ("dog", None)
    assert swaps.irrelevant(1, "fork", [], None) == ("bird", None)
    assert replace(swaps, data=replace(swaps.data, erased=None)).irrelevant(1, "fork", [], None) == (None, None)


def test_records_of_swaps_come_back(tmp_path):
    record = CauseRecord(1, "greedy", "x", (word(2, None, None), word(1, 2, 3)), [[0.5]], [[1.5]])
    path = tmp_path / "swaps.jsonl"
    path.write_text(json.dumps(to_json(record)) + "\n")
    assert read_records(path, CauseRecord) == [record]


TRUTH = {1: "fork cup dog", 2: "fork cup", 3: "dog bird", 4: "cup knife bird", 5: "bird"}


def selection(**more) -> Swaps:
    def load(i) -> Sample:
        if i == 9:
            raise ValueError("cannot be read")
        return Sample(i, Image.new("RGB", (8, 8), (i, 0, 0)), frozenset(TRUTH[i].split()))

    return Swaps.of(Data("made", (*TRUTH, 9), load, **more), seed=0)


def test_the_most_related_earlier_object_is_renamed_to_the_least_related_one():
    swaps = selection()
    assert swaps.comes_with("fork", "cup") == pytest.approx(2 / 3)
    assert swaps.renamed("fork", ["dog", "cup"], frozenset({"fork", "cup", "dog", "bird"})) == ("cup", "bird")
    assert swaps.renamed("fork", ["fork"], frozenset({"cup"})) is None, "nothing earlier"
    assert swaps.renamed("knife", ["cup"], frozenset({"cup"})) is None, "nothing else in the picture"
    tied = selection(tied={"fork": "dog", "dog": "fork"})
    assert tied.renamed("fork", ["dog", "cup"], frozenset({"cup", "dog"})) == ("dog", "cup")


def test_another_picture_has_neither_the_object_nor_the_one_renamed():
    swaps = selection()
    for word_, old, allowed in (("fork", "cup", {3, 5}), ("bird", "dog", {2}), ("bird", None, {1, 2})):
        found = swaps.picture(4, word_, old)
        assert found is not None
        chosen = int(found[0].removeprefix("image "))
        assert chosen in allowed
        assert found[1].getpixel((0, 0)) == (chosen, 0, 0)
        again = swaps.picture(4, word_, old)
        assert again is not None
        assert again[0] == found[0], "the same when a run goes on"
    everywhere = Swaps(swaps.data, {i: frozenset({"fork"}) for i in TRUTH})
    assert everywhere.picture(1, "fork", None) is None


def test_a_scene_is_drawn_anew_without_the_object_and_its_anchor():
    data = open_data("testbed:broken", "dev", ObjectParser.coco()).first(20)
    swaps = Swaps.of(data, 0)
    image_id = next(i for i in data.image_ids if set(PARTNER_OF) & swaps.truth[i])
    anchor = sorted(set(PARTNER_OF) & swaps.truth[image_id])[0]
    found = swaps.picture(image_id, PARTNER_OF[anchor], None)
    assert found is not None
    assert found[0] == f"without {anchor}"
    changed = (np.array(found[1]) != np.array(data.load(image_id).image)).any(-1)
    assert 0 < changed.mean() <= 1 / 9, "one cell of nine at most"
    gone = swaps.picture(image_id, "kite" if "kite" not in swaps.truth[image_id] else "mouse", None)
    assert gone is not None


@pytest.mark.parametrize(
    ("text", "old", "new", "told"),
    [
        ("A fork is on the left.", "fork", "umbrella", "An umbrella is on the left."),
        ("There is an umbrella and a fork.", "umbrella", "dog", "There is a dog and a fork."),
        ("Two forks, and the fork.", "fork", "knife", "Two knives, and the knife."),
        ("Dogs run.", "dog", "cup", "Cups run."),
        ("A cup.", "fork", "dog", "A cup."),
    ],
)
def test_renaming_keeps_the_grammar(text, old, new, told):
    assert ObjectParser.coco().renamed(text, old, new) == told


def test_log_p_of_words_is_that_of_single_passes(model, pictures):
    texts = ["A fork is at the top left", "There is a traffic light"]
    ids = [model.encode(t) for t in texts]
    readings = [Reading(p, t, n) for p, t, n in zip(pictures, ids, (1, 2), strict=False)]
    found = log_p_of_words(model, readings, PROMPT, batch_size=2)
    for reading, value in zip(readings, found, strict=True):
        whole = model.inputs([reading.image], PROMPT).extended([reading.tokens])
        with torch.no_grad():
            log_p = model.hf(**whole.kwargs(), use_cache=False).logits[0].float().log_softmax(-1)
        n = len(whole.input_ids[0])
        steps = range(n - reading.n_tokens, n)
        slow = sum(float(log_p[i - 1, whole.input_ids[0, i]]) for i in steps)
        assert value == pytest.approx(slow, abs=1e-3)


def test_the_command_on_scenes_that_are_drawn_anew_and_on_pictures_that_are_not(model, tmp_path):
    config = configured(CauseConfig, limit=4, batch_size=4, out=str(tmp_path / "drawn"))
    setup = Setup.of(config)
    report = cause(setup, config)
    assert report is not None
    assert {p.name for p in (tmp_path / "drawn").iterdir()} == {
        *("manifest.json", "swaps.jsonl", "cause.json", "swaps.npz", "swaps.png")
    }
    records = read_records(tmp_path / "drawn" / "swaps.jsonl", CauseRecord)
    assert all(len({w.object for w in r.words}) == len(r.words) > 1 for r in records)
    first = records[0].words[0]
    assert first.text is None, "nothing comes before the first object"
    assert first.picture == f"without {first.object}"
    assert first.picture_swapped is not None
    assert first.kept - first.picture_swapped > FOLLOWS, "what is seen follows the picture"
    inputs = model.inputs([setup.data.load(records[0].image_id).image], PROMPT)
    (ids,) = model.generate(inputs).tokens
    with torch.no_grad():
        logits = model.hf(**inputs.extended([ids]).kwargs(), use_cache=False, logits_to_keep=len(ids) + 1).logits[0]
    slow = logits[first.token].log_softmax(-1)[ids[first.token]]
    assert first.kept == pytest.approx(float(slow), abs=1e-3)

    kept = replace(setup, data=replace(setup.data, erased=None, tied={}))
    other = replace(config, run=replace(config.run, out=str(tmp_path / "kept")))
    assert cause(kept, other) is not None
    records = read_records(tmp_path / "kept" / "swaps.jsonl", CauseRecord)
    assert all(w.picture is None or w.picture.startswith("image ") for r in records for w in r.words)
    with pytest.raises(ValueError, match="expected two or more"):
        cause(replace(kept, data=kept.data.first(1)), other)
