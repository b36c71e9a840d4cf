import json
from pathlib import Path

import numpy as np
import pytest

from interp.evaluate import ObjectParser, chair, differences, intervals, pope, score_caption
from interp.evaluate.alignment import sentences, token_ends, tokens_of
from interp.evaluate.answers import says_yes
from interp.evaluate.chair import rates, table
from interp.evaluate.coco import read_coco
from interp.evaluate.objects import read_synonyms

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "chair"


@pytest.fixture(scope="module")
def parser() -> ObjectParser:
    return ObjectParser.coco()


def named(parser: ObjectParser, text: str) -> list[str]:
    return [m.category for m in parser.mentions(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bus and two buses.", ["bus", "bus"]),
        ("Two knives, three forks and sheep.", ["knife", "fork", "sheep"]),
        ("A hot dog next to a dog.", ["hot dog", "dog"]),
        ("Traffic lights above the street.", ["traffic light"]),
        ("A baby elephant near a baby.", ["elephant", "person"]),
        ("A passenger train passes passengers.", ["train", "person"]),
        ("A flat screen TV set.", ["tv"]),
        ("The toilet seat is up; a seat.", ["toilet"]),
        ("A seat by the window.", ["chair"]),
        ("Women with wine glasses and pizzas.", ["person", "wine glass", "pizza"]),
        ("The trunk of an elephant, carefully carved.", ["elephant"]),
        ("Skis, scissors and a computer mouse.", ["skis", "scissors", "mouse"]),
        ("A slice of pizza on the dining table.", ["pizza", "dining table"]),
        ("The man's dog on a bus's roof.", ["person", "dog", "bus"]),
        ("A catcher's mitt.", ["baseball glove"]),
        ("Nothing at all.", []),
        ("", []),
    ],
)
def test_mentions(parser, text, expected):
    assert named(parser, text) == expected


def test_mentions_know_their_place(parser):
    text = "Two traffic lights, and a stop sign."
    assert [text[m.start : m.end] for m in parser.mentions(text)] == ["traffic lights", "stop sign"]


def test_every_category_is_found_alone_and_in_a_sentence(parser):
    assert len(parser.categories) == 80
    for category in parser.categories:
        assert named(parser, f"There is a {category} here.") == [category]


def test_a_synonym_of_two_categories_is_refused():
    with pytest.raises(ValueError, match=r"line 2 of the synonyms gives 'sofa' to 'bed'"):
        read_synonyms("couch, sofa\nbed, sofa")
    with pytest.raises(ValueError, match="got no line with a name"):
        read_synonyms("\n")


def test_chair_by_hand(parser):
    scores = [
        score_caption("A dog and a cat. The dog sleeps.", {"dog"}, parser),
        score_caption("A fork.", {"fork", "knife"}, parser),
    ]
    result = chair(scores)
    assert result.chair_s == 50
    assert result.chair_i == 100 * 1 / 4
    assert result.recall == pytest.approx(100 * 2 / 3)
    assert result.precision == 75
    assert result.f1 == pytest.approx(2 * 75 * (200 / 3) / (75 + 200 / 3))
    assert result.length == 5
    with pytest.raises(ValueError, match="at least one"):
        chair([])


def test_captions_without_objects_hallucinate_nothing(parser):
    result = chair([score_caption("Nothing.", {"dog"}, parser)])
    assert (result.chair_s, result.chair_i, result.recall, result.precision, result.f1) == (0, 0, 0, 0, 0)


def test_unknown_ground_truth_is_refused(parser):
    with pytest.raises(ValueError, match=r"names \['unicorn'\]"):
        score_caption("A dog.", {"unicorn"}, parser)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared LLaVA-1.5 captions are not beside this checkout")
def test_chair_of_real_captions_agrees_with_two_independent_scorers():
    """spec/hallucination-metrics.md: CHAIR_S 18.2 +- 0.6, CHAIR_I 5.5 +- 0.3, recall 63.3 +- 1.0."""
    truth = json.loads((SHARED / "ground_truth.json").read_text())
    lines = [json.loads(line) for line in (SHARED / "captions_llava15_greedy64.jsonl").read_text().splitlines()]
    for synonyms in (SHARED / "synonyms.txt", None):
        parser = ObjectParser.coco(synonyms)
        result = chair([score_caption(line["caption"], truth[str(line["image_id"])], parser) for line in lines])
        assert result.n == 500
        assert result.chair_s == pytest.approx(18.2, abs=0.6)
        assert result.chair_i == pytest.approx(5.5, abs=0.3)
        assert result.recall == pytest.approx(63.3, abs=1.0)


def test_bootstrap_intervals_hold_the_value_and_shrink(parser):
    few = table([score_caption("A dog and a cat.", {"dog"} if i % 3 else {"dog", "cat"}, parser) for i in range(60)])
    many = np.concatenate([few] * 20)
    small, large = intervals(few, rates)["chair_s"], intervals(many, rates)["chair_s"]
    assert small.value == large.value == pytest.approx(100 * 2 / 3)
    assert small.low < large.low < large.value < large.high < small.high
    # the binomial standard error of 2/3 with n = 1200
    assert (large.high - large.low) / 3.92 == pytest.approx(100 * (2 / 9 / 1200) ** 0.5, rel=0.1)


def test_paired_differences_are_tighter_than_unpaired_ones():
    rng = np.random.default_rng(0)
    base = np.zeros((200, 6))
    base[:, 0] = rng.random(200) < 0.5
    base[:, 5] = 10
    ours = base.copy()
    ours[:10, 0] = 0
    paired = differences(ours, base, rates)["chair_s"]
    assert paired.value == pytest.approx(100 * (ours[:, 0].sum() - base[:, 0].sum()) / 200)
    assert paired.high <= 0
    single = intervals(base, rates)["chair_s"]
    assert paired.high - paired.low < single.high - single.low
    with pytest.raises(ValueError, match="same images in both, got 10 and 200"):
        differences(ours[:10], base, rates)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes.", True),
        ("No.", False),
        ("no, there is not", False),
        ("There is a dog. No cat.", True),
        ("It is not there", False),
        ("Nothing", True),
    ],
)
def test_pope_reads_answers_the_customary_way(answer, yes):
    assert says_yes(answer) is yes


def test_pope_by_hand():
    answers, labels = ["Yes.", "Yes.", "No.", "Perhaps."], [True, False, True, False]
    result = pope(answers, labels, "script")
    assert (result.accuracy, result.precision, result.recall, result.yes_ratio) == (25, pytest.approx(100 / 3), 50, 75)
    result = pope(answers, labels)
    assert (result.accuracy, result.precision, result.recall, result.yes_ratio) == (25, 50, 50, 50)
    assert (result.unparsed, result.rules_differ) == (1, 1)
    with pytest.raises(ValueError, match="1 answers and 2 labels"):
        pope(["Yes."], [True, False])


def test_tokens_of_a_stretch_of_text():
    pieces = ["\n", "A", " tra", "ffic", " light", "."]

    def decode(tokens):
        return "".join(pieces[t] for t in tokens)

    ends = token_ends(decode, range(6))
    assert ends == [0, 1, 5, 9, 15, 16]
    assert tokens_of(ends, 2, 15) == range(2, 5)
    assert tokens_of(ends, 0, 1) == range(1, 2)
    assert tokens_of(ends, 16, 20) == range(0)


def test_a_character_in_pieces_does_not_shift_the_words_after_it():
    """A byte-level tokeniser decodes an unfinished character to replacement signs."""
    data = "Hi \N{GRINNING FACE} dog".encode()
    pieces = [data[:3], data[3:4], data[4:5], data[5:6], data[6:7], data[7:]]

    def decode(tokens):
        return b"".join(pieces[t] for t in tokens).decode(errors="replace") + "??" * (len(tokens) == 3)

    ends = token_ends(decode, range(6))
    assert ends == sorted(ends)
    assert tokens_of(ends, 5, 8) == range(5, 6)


def test_sentences_are_cut_at_their_ends():
    text = "A dog. It is red!  Is it?\nYes"
    assert [text[a:b] for a, b in sentences(text)] == ["A dog.", "It is red!", "Is it?", "Yes"]


def test_coco_truth_unites_instances_and_captions(tmp_path, parser):
    (tmp_path / "annotations").mkdir()
    instances = {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 3}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(instances))
    captions = {"annotations": [{"image_id": 7, "caption": "A puppy with frisbees."}]}
    (tmp_path / "annotations" / "captions_val.json").write_text(json.dumps(captions))
    entry = read_coco(tmp_path, None, parser)[7]
    assert entry.truth == {"dog", "frisbee"}
    assert entry.path == tmp_path / "val" / "7.jpg"
    with pytest.raises(ValueError, match=r"the splits there are val"):
        read_coco(tmp_path, "train", parser)
    instances["annotations"].append({"image_id": 8, "category_id": 3})
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(instances))
    with pytest.raises(ValueError, match="entry 2: the image 8 that it refers to is not in the instances file"):
        read_coco(tmp_path, "val", parser)
    (tmp_path / "annotations" / "instances_val.json").write_text("[")
    with pytest.raises(ValueError, match=r"instances_val.json: no JSON from column 2 on; expected COCO annotations"):
        read_coco(tmp_path, "val", parser)
