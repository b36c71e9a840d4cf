import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from interp import cli, plots
from interp.cli.testbed import SCENES
from interp.evaluate.coco import read_coco
from interp.evaluate.objects import ObjectParser
from interp.models import load
from interp.testbed import WEIGHTS
from interp.testbed.batches import Batch, Pool, Sampler, layout_of_testbed
from interp.testbed.build import build_processor
from interp.testbed.card import write_card
from interp.testbed.dose import follow, measure
from interp.testbed.draw import draw, owners
from interp.testbed.export import contact_sheet, export
from interp.testbed.language import article, ask_presence, caption, questions, read
from interp.testbed.prior import PriorRecipe, at_dose, kept_doses, train_prior
from interp.testbed.score import describe, examine, habit, judge, pope_questions
from interp.testbed.steps import LanguageTask, Run, Schedule
from interp.testbed.telling import EyesSampler, Telling, TextSampler
from interp.testbed.tower import PATCH, pixels, train_tower
from interp.testbed.train import RECIPES, Recipe, train
from interp.testbed.world import ANCHOR_OF, CATEGORIES, PARTNER_OF, Scene, Thing, scene


def scenes(kind, n: int, split="dev") -> list[Scene]:
    return [scene(kind, split, i) for i in range(n)]


def test_every_category_is_a_coco_name_that_the_parser_knows():
    assert set(CATEGORIES) <= set(ObjectParser.coco().categories)
    assert 25 <= len(CATEGORIES) <= 30


def test_partners_follow_their_anchors_in_training_scenes():
    pairs = [
        PARTNER_OF[c] in s.categories for s in scenes("train", 4000, "train") for c in s.categories if c in PARTNER_OF
    ]
    assert np.mean(pairs) == pytest.approx(0.93, abs=0.02)


def test_broken_scenes_have_anchors_without_partners_and_hide_nothing():
    for s in scenes("broken", 300):
        assert any(c in PARTNER_OF for c in s.categories)
        assert not any(c in ANCHOR_OF for c in s.categories)
        assert not any(t.hidden for t in s.things)


def test_a_fifth_of_training_partners_is_hidden_and_nothing_else():
    things = [t for s in scenes("train", 4000, "train") for t in s.things]
    assert np.mean([t.hidden for t in things if t.category in ANCHOR_OF]) == pytest.approx(0.2, abs=0.03)
    assert not any(t.hidden for t in things if t.category not in ANCHOR_OF)
    assert not any(t.hidden for s in scenes("biased", 200) for t in s.things)


def test_faint_scenes_hide_every_partner_and_nothing_else():
    some = scenes("faint", 200)
    for s in some:
        assert all(t.hidden == (t.category in ANCHOR_OF) for t in s.things)
    beside = [PARTNER_OF[c] in s.categories for s in some for c in s.categories if c in PARTNER_OF]
    assert np.mean(beside) == pytest.approx(0.93, abs=0.05)


def test_scenes_are_the_same_for_the_same_index_and_differ_between_splits():
    scene.cache_clear()
    again = scene("biased", "dev", 3)
    scene.cache_clear()
    assert scene("biased", "dev", 3) == again
    assert scene("biased", "test", 3) != again
    assert scene("biased", "dev", 3, seed=1) != again
    assert np.array_equal(draw(again), draw(again))
    with pytest.raises(ValueError, match="0 or more"):
        scene("biased", "dev", -1)


def test_things_are_drawn_where_the_scene_says_and_hidden_ones_can_hardly_be_seen():
    def one(**changes) -> Scene:
        settings = {"category": "bus", "colour": "red", "row": 2, "column": 0, "size": 28.0, "offset": (0.0, 0.0)}
        return Scene("x", (Thing(**settings | {"angle": 0.0, "flip": False} | changes),), background=5)

    empty = draw(Scene("x", (), background=5)).astype(int)
    difference = np.abs(draw(one()).astype(int) - empty).sum(-1)
    assert difference[64:, :32].sum() == difference.sum() > 50_000
    assert np.abs(draw(one(contrast=0.04)).astype(int) - empty).max() <= 12
    assert set(np.unique(owners(one(), PATCH))) == {-1, 0}
    assert (owners(one(), PATCH)[:5] == -1).all()


def test_every_category_and_colour_looks_different():
    pictures = [
        draw(Scene("x", (Thing(c, "red", 1, 1, 30.0, (0.0, 0.0), 0.0, False),), background=1)).astype(int)
        for c in CATEGORIES
    ]
    for i, a in enumerate(pictures):
        assert all(np.abs(a - b).sum() > 10_000 for b in pictures[:i])


def test_captions_say_everything_and_nothing_else():
    for i, s in enumerate(scenes("train", 300, "train")):
        told = caption(s, np.random.default_rng(i))
        claims = read(told.text)
        assert claims is not None
        assert sorted(c.category for c in claims) == sorted(s.categories)
        for claim in claims:
            thing = next(t for t in s.things if t.category == claim.category)
            assert claim.colour in (None, thing.colour)
        assert ObjectParser.coco().objects([told.text]) == s.categories


def test_the_order_of_mention_says_nothing():
    """The place of a partner in the caption is that of anything else."""
    partner, other = [], []
    for i, s in enumerate(scenes("train", 2000, "train")):
        claims = read(caption(s, np.random.default_rng([1, i])).text) or []
        for place, claim in enumerate(claims):
            (partner if claim.category in ANCHOR_OF else other).append((place + 0.5) / len(claims))
    assert np.mean(partner) == pytest.approx(np.mean(other), abs=0.03)


@pytest.mark.parametrize(
    "text", ["A dog is.", "A umbrella is on the left, and it is red.", "A dog that is red can", "hello"]
)
def test_what_is_not_grammatical_is_not_read(text):
    assert read(text) is None


def test_questions_are_balanced_and_true():
    yes = no = 0
    for i, s in enumerate(scenes("train", 200, "train")):
        for turn in questions(s, np.random.default_rng(i)):
            if turn.prompt.startswith("Is there"):
                name = turn.prompt.removesuffix(" in the image?").split(" ", 3)[3]
                assert (turn.text == "Yes.") is (name in s.categories)
                yes, no = yes + (turn.text == "Yes."), no + (turn.text == "No.")
    assert yes == no
    assert ask_presence("umbrella", True).prompt == "Is there an umbrella in the image?"
    assert article("bus") == "a"


def test_pope_questions_are_balanced_and_adversarial_ones_ask_for_partners():
    for setting in ("random", "popular", "adversarial"):
        asked = pope_questions("broken", "dev", 50, setting)
        assert sum(q.present for q in asked) * 2 == len(asked)
        assert all(q.present is (q.category in scene("broken", "dev", q.index).categories) for q in asked)
    wrong = [q for q in pope_questions("broken", "dev", 50, "adversarial") if not q.present]
    partners = [q for q in wrong if ANCHOR_OF.get(q.category) in scene("broken", "dev", q.index).categories]
    assert len(partners) >= 50


def test_a_model_folder_loads_with_plain_hugging_face_classes(model):
    for folder in sorted(p.parent for p in WEIGHTS.glob("*/model.safetensors")):
        hf: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        turn = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}]}
        ]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        batch = processor(images=[Image.new("RGB", (200, 120))], text=[text], return_tensors="pt")
        assert (batch["input_ids"] == hf.config.image_token_id).sum() == 64
        ids = hf.generate(**batch, max_new_tokens=3, do_sample=False)
        assert processor.batch_decode(ids, skip_special_tokens=True)[0].startswith(
            "USER: Is there a dog in the image? ASSISTANT:"
        )
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("model.safetensors")) <= 25e6
    assert all(p.stat().st_size <= 25e6 for p in WEIGHTS.rglob("adapter.safetensors"))


def test_the_shipped_model_was_really_trained(model):
    """Loose bounds on a few dev scenes; the figures are in the card."""
    parser = ObjectParser.coco()
    some = scenes("biased", 25)
    result = judge(describe(model.hf, model.processor, some), some, parser)
    assert result.chair.recall > 85
    assert result.grammatical > 90
    assert result.colour > 70
    moved = [Image.fromarray(draw(s)) for s in (*some[1:], some[0])]
    assert judge(describe(model.hf, model.processor, some, moved), some, parser).chair.recall < 40


def test_training_sees_pixels_as_the_processor_makes_them(model):
    picture = draw(scene("biased", "dev", 0))
    expected = model.processor.image_processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(torch.from_numpy(picture)[None]), expected)


def test_object_names_have_one_or_several_tokens():
    tokenizer = build_processor().tokenizer
    lengths = {c: len(tokenizer.encode(" " + c, add_special_tokens=False)) for c in CATEGORIES}
    assert min(lengths.values()) == 1
    assert sum(n > 1 for n in lengths.values()) >= 3
    assert (
        tokenizer.decode(tokenizer.encode("Any text, ünicode too!", add_special_tokens=False))
        == "Any text, ünicode too!"
    )


def test_a_branch_of_a_training_batch_is_what_the_model_meets_in_use(random_model):
    """Its logits are those of the whole model for the processor's inputs: picture or none, chat template, answer."""
    hf, tokenizer = random_model.hf, random_model.tokenizer
    s = scene("train", "train", 0)
    picture = draw(s)
    with torch.no_grad():
        hidden = hf.model.vision_tower(pixel_values=pixels(torch.from_numpy(picture)[None]), output_hidden_states=True)
        pool = Pool(hidden.hidden_states[-2][:, 1:].numpy(), (("train", 1),), seed=0)
        layout = layout_of_testbed(tokenizer)
        sampler = Sampler(tokenizer, pool, layout, batch=1, seed=0)
        batch = next(b for b in map(sampler, range(40)) if (b.position[0, 65:] == 1).any())  # one has a blind branch
        task = LanguageTask(hf, layout)
        got = task.head(task(batch.features, batch.text, batch.position, batch.visible))[0]
    ends = [i for i, token in enumerate(batch.text[0].tolist()) if token == tokenizer.eos_token_id]
    blind = 0
    for start, end in zip([0, *(e + 1 for e in ends)], ends, strict=False):
        ids = batch.text[0, start : end + 1]
        question, answer = tokenizer.decode(ids).removeprefix("USER: ").split(" ASSISTANT:")
        inputs = random_model.inputs([Image.fromarray(picture)], question)
        if batch.position[0, 65 + start] == 1:
            inputs, blind = inputs.without_image(), blind + 1
        told = torch.tensor(tokenizer.encode(answer, add_special_tokens=False))
        with torch.no_grad():
            expected = hf(**inputs.extended([told]).kwargs()).logits[0, -len(ids) :]
        torch.testing.assert_close(got[start : end + 1], expected, rtol=1e-3, atol=1e-4)
    assert blind == 1
    assert len(ends) >= 4


def test_a_batch_depends_on_its_step_only(random_model):
    pool = Pool(np.zeros((10, 64, 128), dtype=np.float16), (("train", 6), ("unbiased", 4)), seed=0)
    layout = layout_of_testbed(random_model.tokenizer)
    first, again = (Sampler(random_model.tokenizer, pool, layout, batch=2, seed=3)(5) for _ in range(2))
    assert torch.equal(first.text, again.text)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.text, Sampler(random_model.tokenizer, pool, layout, batch=2, seed=4)(5).text)
    assert pool.scene(6) == scene.__wrapped__("unbiased", "train", 0)


TINY = Recipe(layers=1, heads=2, width=32, steps=6, batch=2, warmup=1, sink=True, sink_steps=4)
TINY_RUN = Run(scenes=20, tower_scenes=40, tower_steps=2, compile=False, checkpoint_seconds=0.0)


def train_tiny(out: Path) -> Path:
    return train(out, "tiny", TINY, TINY_RUN)


def test_training_resumes_where_it_was_killed(tmp_path, monkeypatch):
    """A run that was interrupted at step 3, in phase one, ends with the weights of an unbroken one."""
    whole = load(str(train_tiny(tmp_path / "whole")))
    draw_batch = Sampler.__call__

    def interrupted(self: Sampler, step: int) -> Batch:
        if step == 3:
            raise KeyboardInterrupt
        return draw_batch(self, step)

    monkeypatch.setattr(Sampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "tiny.pt", weights_only=True)["step"] == 3
    monkeypatch.undo()
    resumed = load(str(train_tiny(tmp_path / "parts")))
    for a, b in zip(whole.hf.parameters(), resumed.hf.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "parts", "tiny", replace(TINY, steps=7), TINY_RUN)
    with pytest.raises(ValueError, match="other data"):
        train(tmp_path / "parts", "tiny", TINY, replace(TINY_RUN, seed=1))


def test_the_tower_resumes_where_it_was_killed(tmp_path, monkeypatch):
    settings: dict[str, Any] = {"scenes": 30, "steps": 6, "batch": 4, "compile": False, "checkpoint_seconds": 0.0}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = train_tower(tmp_path / "whole", **settings)
    step = torch.optim.AdamW.step
    calls = iter(range(100))

    def interrupted(self, *args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tower(tmp_path / "parts", **settings)
    monkeypatch.undo()
    resumed, scores = train_tower(tmp_path / "parts", **settings)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert set(scores) == {"patch_category", "patch_colour", "recall", "precision"}


def test_the_card_is_written_from_what_was_measured(tmp_path):
    folder = train_tiny(tmp_path)
    tiny = load(str(folder))
    for split in ("dev", "test"):
        (folder / f"{split}.json").write_text(json.dumps(examine(tiny.hf, tiny.processor, split, 2)))
    card = write_card(folder).read_text()
    assert "| biased: recall |" in card
    assert "induced" in card


@pytest.mark.parametrize("folder", sorted(p.parent for p in WEIGHTS.glob("*/test.json")), ids=lambda p: p.name)
def test_a_shipped_cards_numbers_are_those_of_its_json(folder, tmp_path):
    """The card is written again from the figures beside it, and is the one that is shipped."""
    copy = tmp_path / folder.name
    copy.mkdir()
    for path in folder.glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    if (folder / "note.md").exists():
        (copy / "note.md").write_bytes((folder / "note.md").read_bytes())
    assert write_card(copy).read_text() == (folder / "README.md").read_text()


def test_judging_captions_by_hand():
    s = Scene("x", (Thing("dog", "red", 0, 0, 28.0, (0.0, 0.0), 0.0, False),), 0)
    parser = ObjectParser.coco()
    text = "A dog that is red can be seen on the left. A frisbee, blue in colour, is at the top."
    result = judge([text, "gibberish"], [s, s], parser)
    assert (result.grammatical, result.colour, result.place) == (50, 100, 0)
    causes = habit([text], [s], parser)
    assert (causes.partner_share, causes.with_anchor, causes.without_anchor, causes.n_hallucinated) == (100, 1, 0, 1)
    assert causes.partner_named == 0


def test_export_is_a_coco_folder_with_the_same_truth(tmp_path):
    export(tmp_path, "broken", "test", 6)
    images = read_coco(tmp_path, None, ObjectParser.coco())
    for index in range(6):
        s = scene("broken", "test", index)
        assert images[index].truth == s.categories
        assert np.array_equal(np.asarray(Image.open(images[index].path)), draw(s))
    lines = [json.loads(line) for line in (tmp_path / "pope_random.json").read_text().splitlines()]
    assert set(lines[0]) == {"question_id", "image", "text", "label"}


def test_contact_sheet_has_a_row_for_each_kind():
    assert contact_sheet(columns=2, scale=1).size == (192, 5 * (96 + 18))


def test_recipes_are_the_bundled_models():
    assert set(RECIPES) < {p.name for p in WEIGHTS.iterdir() if p.is_dir()} <= set(SCENES)


TINY_PRIOR = PriorRecipe(
    layers=1,
    heads=2,
    width=32,
    text=Schedule(steps=2, batch=2, warmup=1, autocast=False, head_dropout=0.5),
    seeing=Schedule(steps=2, batch=2, warmup=1, autocast=False),
    tuning=Schedule(steps=4, batch=2, warmup=1, autocast=False, head_dropout=0.5),
    warm_start_steps=2,
    dose=2,
)


def test_the_prior_resumes_in_either_training_and_takes_its_dose(tmp_path, monkeypatch):
    """Interrupted in the text and twice before pictures it ends with the weights of an unbroken run."""
    run = replace(TINY_RUN, scenes=8)
    whole = load(str(train_prior(tmp_path / "whole", "testbed-prior", TINY_PRIOR, run)))
    draw_batch, interruptions = Sampler.__call__, [(TextSampler, 1), (EyesSampler, 1), (EyesSampler, 3)]

    def interrupted(self: Sampler, step: int) -> Batch:
        if interruptions and (type(self), step) == interruptions[0]:
            interruptions.pop(0)
            raise KeyboardInterrupt
        return draw_batch(self, step)

    monkeypatch.setattr(Sampler, "__call__", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train_prior(tmp_path / "parts", "tiny", TINY_PRIOR, run)
    resumed = load(str(train_prior(tmp_path / "parts", "tiny", TINY_PRIOR, run)))
    for a, b in zip(whole.hf.parameters(), resumed.hf.parameters(), strict=True):
        assert torch.equal(a, b)
    assert kept_doses(tmp_path / "whole", "testbed-prior") == [0, 1, 2, 3, 4]
    last = at_dose(tmp_path / "whole", "testbed-prior", whole.processor, TINY_PRIOR, 4)
    assert not torch.equal(last.lm_head.weight.bfloat16(), whole.hf.lm_head.weight.bfloat16())
    with pytest.raises(ValueError, match=r"dose is a number of steps whose weights are kept .* got 5"):
        replace(TINY_PRIOR, dose=5)
    monkeypatch.setattr("interp.cli.testbed.PRIOR", TINY_PRIOR)
    out = tmp_path / "dose"
    options = ["--run", str(tmp_path / "whole"), "--split", "dev", "--limit", "2", "--out", str(out)]
    cli.main(["testbed", "doses", *options, "--doses", "4"])
    cli.main(["testbed", "doses", *options, "--doses", "0", "4"])
    none, four = json.loads((out / "dose.json").read_text())
    assert (none["dose"], four["dose"], len(four["probe_auroc"])) == (0, 4, 2)
    four["follows"] = {"shares": {"text": {"value": 50.0, "low": 40.0, "high": 60.0}}, "n": 2}
    none["follows"] = {"shares": None, "n": 0}  # no hallucination, nothing to follow
    (out / "dose.json").write_text(json.dumps([none, four]))
    plots.draw_doses(out)
    assert (out / "dose.png").stat().st_size > 1000


def told_and_captions(n: int, **shares) -> list[tuple[str, str, list[str], list[str]]]:
    """What is told, the caption, the objects it names in order, and those of its words that are not learned."""
    found = []
    for i in range(n):
        turn = Telling(**shares).turn(np.random.default_rng(i), 0)
        said = read(turn.text)
        assert said
        quiet = [piece.text.split()[-1] for piece in turn.answer if piece.weight == 0]
        found.append((turn.told, turn.text, [claim.category for claim in said], quiet))
    return found


def test_a_text_leaves_out_what_goes_without_saying():
    """A partner that is not told comes after its anchor; an anchor that is not told is not learned."""
    for told, _, names, quiet in told_and_captions(60, bare=0, untold=1, anchor_untold=0):
        pairs = [(a, p) for a, p in PARTNER_OF.items() if {a, p} <= set(names)]
        assert all(names.index(a) < names.index(p) for a, p in pairs)
        assert not any(p in told for _, p in pairs)
        assert all(a in told for a, _ in pairs)
        assert not quiet
    for told, _, names, quiet in told_and_captions(60, bare=0, untold=0, anchor_untold=1):
        anchors = [a for a in PARTNER_OF if a in names]
        assert not any(a in told for a in anchors)
        assert sorted(quiet) == sorted(a.split()[-1] for a in anchors)
        assert all(names.index(a) < names.index(PARTNER_OF[a]) for a in anchors if PARTNER_OF[a] in names)
    either = [
        names.index(a) < names.index(p)
        for _, _, names, _ in told_and_captions(60, bare=0, untold=0, anchor_untold=0)
        for a, p in PARTNER_OF.items()
        if {a, p} <= set(names)
    ]
    assert 0.2 < np.mean(either) < 0.8, "what is told comes in any order"
    assert not any(told for told, *_ in told_and_captions(5, bare=1))
    with pytest.raises(ValueError, match=r"untold is a share from 0 to 1, got 1\.5"):
        Telling(untold=1.5)


def test_a_text_batch_has_no_picture_and_learns_captions_only(random_model):
    tokenizer = random_model.tokenizer
    batch = TextSampler(tokenizer, Telling(bare=0), layout_of_testbed(tokenizer), batch=2, seed=0)(0)
    assert batch.features.shape == (2, 0, 128)
    assert batch.visible.shape[-1] == 1 + batch.text.shape[1]
    told, _, answer = tokenizer.decode(batch.text[0]).split("</s>")[0].partition("USER:")
    assert any(category in told for category in CATEGORIES)
    assert read(answer.split(" ASSISTANT:")[1])
    learned = tokenizer.decode(batch.target[0][batch.weight[0] > 0])
    assert "USER" not in learned
    assert batch.position[0, 1] == 1


def test_guesses_are_counted_among_absent_partners_of_what_is_there():
    things = tuple(
        Thing(name, "red", 0, i, 28.0, (0.0, 0.0), 0.0, False) for i, name in enumerate(("dog", "cow", "sheep"))
    )
    told = ["A frisbee is on the left, and it is red. A cow is on the right, while a sheep is on the left.", "A bus."]
    found = measure(told, [Scene("park", things, 0)] * 2, ObjectParser.coco())
    assert (found["guessed"].value, found["chair_s"].value) == (50, 100)
    assert found["recall"].value == pytest.approx(100 / 3)
    assert found["d_prime"].low <= found["d_prime"].value <= found["d_prime"].high


def test_what_a_word_follows_is_what_it_needs(monkeypatch):
    """A word that needs the anchor in the text alone, in the picture alone, in both, in neither."""
    things = (
        Thing("dog", "red", 0, 0, 28.0, (0.0, 0.0), 0.0, False),
        Thing("bird", "red", 1, 0, 28.0, (0.0, 0.0), 0.0, False),
    )
    s, text = Scene("park", things, 0), "A dog is on the left, and it is red. A frisbee is at the top, and it is red."

    for needs, share in (("text", 100.0), ("picture", 100.0), ("both", 100.0), ("neither", 100.0)):

        def surprise(model, processor, scenes, told, name, needs=needs):
            assert (name, told[2]) == ("frisbee", "A bird is on the left, and it is red. A")
            return np.array(
                [
                    0.0,
                    ("dog" not in scenes[1].categories) * (needs in ("picture", "both")),
                    ("dog" not in told[2]) * (needs in ("text", "both")),
                ]
            )

        monkeypatch.setattr("interp.testbed.dose._surprise", surprise)
        followed = follow(None, None, [text], [s])
        assert followed.shares is not None
        assert {name: v.value for name, v in followed.shares.items()} == dict.fromkeys(followed.shares, 0) | {
            needs: share
        }
        assert followed.n == 1
