"""Scoring files: real captions, every mistake in a file told with its line, POPE, OPOPE, AMBER, paired tests."""

import contextlib
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import cli
from interp.evaluate import ObjectParser, pope
from interp.evaluate.amber import AmberImage, amber, amber_parser, counts, pooled_counts, pooled_rates
from interp.evaluate.answers import understood
from interp.evaluate.bootstrap import clustered_mcnemar, mcnemar
from interp.evaluate.coco import read_coco
from interp.evaluate.files import Question, asked_object, read_captions, read_questions, read_truth
from interp.evaluate.objects import read_synonyms
from interp.evaluate.scoring import score_amber, score_chair, score_opope, score_pope
from interp.testbed.export import export

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared captions and questions are not there")
PARSER = ObjectParser.coco()


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@needs_shared
def test_chair_of_real_captions_by_command(capsys):
    data = SHARED / "chair"
    told = [str(data / "captions_llava15_greedy64.jsonl"), "--truth", str(data / "ground_truth.json")]
    cli.main(["chair", *told, "--synonyms", str(data / "synonyms.txt"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"chair_s", "chair_i", "recall", "precision", "f1", "length", "n"} <= set(found)
    assert found["n"] == 500
    assert found["chair_s"] == pytest.approx(18.2, abs=0.6)
    assert found["chair_i"] == pytest.approx(5.5, abs=0.3)
    assert found["recall"] == pytest.approx(63.3, abs=1.0)
    low, high = found["interval"]["chair_s"]
    assert low < found["chair_s"] < high


@needs_shared
def test_opope_of_real_captions(tmp_path):
    """The questions are about other images than the captions; those of both are few, or none: the error says so."""
    captions = SHARED / "chair" / "captions_llava15_greedy64.jsonl"
    questions = read_questions(SHARED / "pope" / "coco_pope_adversarial.json")
    told = read_captions(captions)
    assert all(asked_object(q, PARSER) in PARSER.categories for q in questions)
    both = [q for q in questions if q.image_id in told]
    with pytest.raises(ValueError, match="no caption for"):
        score_opope(captions, SHARED / "pope" / "coco_pope_adversarial.json")
    if both:
        rows = [{"question_id": q.question_id, "image": q.image, "text": q.text, "label": "yes" if q.label else "no"}
                for q in both]  # fmt: skip
        scores = score_opope(captions, write(tmp_path / "q.json", *rows))
        assert scores.values["n"] == len(both)


def test_chair_of_a_coco_folder_is_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(tmp_path / "coco", "broken", "dev", 3)
    told = write(tmp_path / "told.jsonl", {"image_id": 0, "caption": "A zebra."}, {"image_id": 2, "caption": "A fork."})
    args = ["chair", str(told), "--coco", str(tmp_path / "coco"), "--details", str(tmp_path / "details.jsonl")]
    cli.main(args)
    first = capsys.readouterr().out
    (cached,) = (tmp_path / "cache" / "interp").iterdir()
    assert cached.suffix == ".json"
    cli.main(args)
    assert capsys.readouterr().out == first
    content = json.loads(cached.read_text())
    content["0"] = ["zebra"]  # what is read is the cache
    cached.write_text(json.dumps(content))
    scores = score_chair(told, coco=tmp_path / "coco")
    assert scores.details[0]["hallucinated"] == []
    rows = [json.loads(line) for line in (tmp_path / "details.jsonl").read_text().splitlines()]
    assert rows[0]["hallucinated"] == ["zebra"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image_id": 1, "caption": "a"}', '{"image_id": 1'], "line 2: no JSON"),
        (['{"image_id": 1, "caption": "a"}'] * 2, "line 2: image 1 stood on line 1 already"),
        (['{"image_id": "1", "caption": "a"}'], "line 1: expected an object with 'image_id' \\(int\\)"),
        (['{"image_id": true, "caption": "a"}'], "line 1: expected an object with 'image_id'"),
        (['{"image_id": 1}'], "line 1: expected an object with 'caption'"),
        (["[1]"], "line 1: expected an object with"),
        (['{"image_id": 1, "caption": "  "}'], "line 1: an empty caption"),
        ([], "is empty; expected one JSON object a line"),
        (['{"image_id": 7, "caption": "a dog"}'], "1 of 1 captions are of images without ground truth \\(7\\)"),
    ],
)
def test_mistakes_in_captions_are_told(lines, message, tmp_path):
    told = write(tmp_path / "told.jsonl", *lines)
    truth = write(tmp_path / "truth.json", {"1": ["dog"]})
    with pytest.raises(ValueError, match=message):
        score_chair(told, truth=truth)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truth.json: no JSON from line 2, column 1 on; expected one JSON object"),
        ("[]", "expected one JSON object"),
        ('{"a": ["dog"]}', "expected an image id"),
        ('{"1": "dog"}', "expected an image id and a list"),
        ('{"1": ["dragon"]}', r"image 1 has \['dragon'\]"),
    ],
)
def test_mistakes_in_the_truth_are_told(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_truth(write(tmp_path / "truth.json", content), PARSER)


def question(number: int, label: str, thing: str = "dog", image: int = 1) -> dict[str, object]:
    text = f"Is there a {thing} in the image?"
    return {"question_id": number, "image": f"COCO_val2014_{image:012d}.jpg", "text": text, "label": label}


def test_pope_counts_missing_and_unparsed_answers(tmp_path, capsys):
    asked = write(tmp_path / "q.json", *(question(i, "yes" if i % 2 else "no") for i in range(1, 6)))
    said = write(
        tmp_path / "a.jsonl",
        {"question_id": 1, "answer": "Yes, there is."},
        {"question_id": 2, "answer": "Perhaps."},
        {"question_id": 3, "text": "There is not."},
        {"question_id": 4, "answer": "No."},
    )
    found = score_pope(said, asked).values
    assert found["n"] == 5
    assert (found["missing"], found["unparsed"]) == (1, 1)
    assert found["accuracy"] == pytest.approx(40)  # 1 and 4 are right; a missing answer is not
    assert found["precision"] == pytest.approx(100)
    assert score_pope(said, asked, rule="script").values["precision"] == pytest.approx(50)  # "Perhaps." is its yes
    assert found["recall"] == pytest.approx(100 / 3)
    cli.main(["pope", str(said), str(said), "--questions", str(asked), str(asked)])
    assert "mean of 2 files" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["pope", str(said), str(said), "--questions", str(asked)])
    assert "a questions file for each file of answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([question(1, "maybe")], [], "a label is yes or no, got 'maybe'"),
        ([{"question_id": 1, "image": "a", "text": "b"}], [], "expected an object with 'label'"),
        ([question(1, "yes"), question(1, "no")], [], "line 2: question 1 stood on line 1"),
        ([question(1, "yes")], [{"question_id": 2, "answer": "No"}], "question 2 is not among the 1 questions"),
        ([question(1, "yes")], [{"question_id": 1, "answer": 3}], "expected an 'answer'"),
    ],
)
def test_mistakes_in_questions_and_answers_are_told(questions, answers, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        score_pope(write(tmp_path / "a.jsonl", *answers), write(tmp_path / "q.json", *questions))


def test_opope_finds_objects_not_substrings(tmp_path):
    told = write(tmp_path / "told.jsonl", {"image_id": 1, "caption": "A carrot and two puppies."})
    asked = write(tmp_path / "q.json", question(1, "no", "car"), question(2, "yes", "dog"), question(3, "yes", "cat"))
    found = score_opope(told, asked).values
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["precision"] == pytest.approx(100)
    with pytest.raises(ValueError, match="holds no image id"):
        _ = Question(1, "photo.jpg", "Is there a dog in the image?", True).image_id
    with pytest.raises(ValueError, match="names no object"):
        asked_object(Question(1, "1.jpg", "Is it nice?", True), PARSER)


def test_amber_by_hand(tmp_path, capsys):
    image = AmberImage(frozenset({"sky", "dog"}), frozenset({"ball"}))
    parser = amber_parser({1: image}, {"dog": ["puppy"]})
    assert counts("A puppy and a ball under the sky.", image, parser) == (3, 2, 1, 2)
    found = amber(np.array([[3.0, 2, 1, 2], [0, 0, 0, 2]]))
    assert found.chair == pytest.approx(100 / 6)
    assert found.cover == pytest.approx(50)
    assert found.hal == pytest.approx(50)
    assert found.cog == pytest.approx(100 / 6)
    said = "A puppy and a ball under the sky. The ball is red."
    assert pooled_counts(said, image, parser) == (4, 2, 2, 2, 1, 1)
    shares = pooled_rates(np.array([4.0, 2, 2, 2, 1, 1, 1]) + np.array([0, 0, 0, 2, 0, 1, 0]), 2)
    assert {name: float(x) for name, x in shares.items()} == {"chair": 50, "cover": 50, "hal": 50, "cog": 50}
    items = [{"id": 1, "type": "generative", "truth": ["sky", "dog"], "hallu": ["ball"]}, {"id": 2, "type": "yes"}]
    notes = write(tmp_path / "annotations.json", items)
    told = write(tmp_path / "told.json", [{"id": 1, "response": "A dog."}])
    cli.main(["amber", str(told), "--annotations", str(notes), "--json"])
    assert json.loads(capsys.readouterr().out)["cover"] == 50
    cli.main(["amber", str(told), "--annotations", str(notes), "--json", "--pooled"])
    assert json.loads(capsys.readouterr().out)["cog"] == 0
    with pytest.raises(SystemExit):
        cli.main(["amber", str(write(tmp_path / "t.json", [{"id": 9, "response": "x"}])), "--annotations", str(notes)])
    assert "without ground truth (9)" in capsys.readouterr().err


AMBER_ITEM = {"id": 1, "type": "generative", "truth": ["dog"], "hallu": []}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([AMBER_ITEM, AMBER_ITEM], "item 2: expected an id that is a number and stands there once, got 1"),
        ([AMBER_ITEM | {"id": None}], "item 1: expected an object with 'id'"),
        ([AMBER_ITEM | {"id": "3.7"}], "item 1: expected an id that is a number"),
        ([AMBER_ITEM | {"truth": [None]}], "item 1, 'truth': expected a list of words"),
        ([AMBER_ITEM | {"hallu": [["dog"]]}], "item 1, 'hallu': expected a list of words"),
        ([AMBER_ITEM | {"truth": []}], "no generative item with an object"),
        ([[AMBER_ITEM]], "item 1: expected an object"),
        ({}, "a list of items"),
        ("", "notes.json: no JSON from line 2, column 1 on; expected AMBER's annotations"),
        ("[" * 100_000, "notes.json: JSON nested too deep"),
    ],
)
def test_mistakes_in_ambers_annotations_are_told(items, message, tmp_path):
    told = write(tmp_path / "told.json", [{"id": 1, "response": "A dog."}])
    with pytest.raises(ValueError, match=message):
        score_amber(told, write(tmp_path / "notes.json", items))


def test_mistakes_in_responses_and_associations_are_told(tmp_path):
    notes = write(tmp_path / "notes.json", [AMBER_ITEM])
    for content, message in (
        ('{"id": 1, "response": "a"}\n{"id": 1, "response": "b"}', "line 2: id 1 stands there twice"),
        ('{"id": 1, "response": "a"}\n{"id": 2', "line 2: no JSON from column 9 on; expected one object a line"),
        ("[]", "holds no response"),
        ("[null]", "item 1: expected an object with 'id'"),
    ):
        with pytest.raises(ValueError, match=message):
            score_amber(write(tmp_path / "told.json", content), notes)
    told = write(tmp_path / "told.json", [{"id": 1, "response": "A dog."}])
    for content, message in (("[]", "expected AMBER's relation.json"), ('{"dog": [3]}', "'dog': expected a list")):
        with pytest.raises(ValueError, match=message):
            score_amber(told, notes, write(tmp_path / "relation.json", content))


def coco(folder: Path, *, split: str = "val", **changed: Any) -> Path:
    """A COCO folder with two images; `changed` lists take the place of its own."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "annotations": [{"image_id": 1, "category_id": 3}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    write(folder / "annotations" / f"instances_{split}.json", content | changed)
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": [{"id": 1, "file_name": "1.png"}] * 2}, "images, entry 2: id 1 stands there twice"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 3, "name": "cat"}]}, "categories, entry 2: id 3 stands"),
        ({"images": [{"id": None, "file_name": "1.png"}]}, r"images, entry 1: expected an object with 'id' \(int\)"),
        ({"images": [{"id": 1, "file_name": "1.png"}, {"id": "b", "file_name": "2.png"}]}, "images, entry 2: expected"),
        ({"images": [{"id": 1, "file_name": "../1.png"}]}, "'../1.png' leads out of its folder"),
        ({"images": [{"id": 1, "file_name": "/etc/1.png"}]}, "'/etc/1.png' leads out of its folder"),
        ({"images": [{"id": 1, "file_name": "C:\\1.png"}]}, "leads out of its folder"),
        ({"images": []}, "lists no image"),
        ({"images": None}, "has no list 'images'"),
        ({"annotations": [None]}, "annotations, entry 1: expected an object"),
        ({"annotations": [{"image_id": 9, "category_id": 3}]}, "the image 9 that it refers to is not in the instances"),
        ({"annotations": [{"image_id": 1, "category_id": [3]}]}, "entry 1: expected an object with 'category_id'"),
    ],
)
def test_mistakes_in_coco_annotations_are_told(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_coco(coco(tmp_path, **changed), "val", PARSER)


def test_a_truth_that_names_an_image_twice_is_refused(tmp_path):
    for content, message in (
        ('{"1": ["dog"], "1": ["cat"]}', "'1' stands there twice"),
        ('{"1": ["dog"], "01": ["cat"]}', r"image 1 stands there twice \(once as '01'\)"),
        ('{"\u0661": ["dog"]}', "expected an image id"),
        ('{"1": [["dog"]]}', r"image 1 has \[\['dog'\]\]"),
    ):
        with pytest.raises(ValueError, match=message):
            read_truth(write(tmp_path / "truth.json", content), PARSER)


def test_byte_order_marks_and_line_separators_are_read(tmp_path):
    text = json.dumps({"image_id": 1, "caption": "A dog.\N{LINE SEPARATOR}A cat."}, ensure_ascii=False)
    (tmp_path / "told.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "truth.json").write_bytes(b'\xef\xbb\xbf{"1": ["dog"]}')
    assert score_chair(tmp_path / "told.jsonl", truth=tmp_path / "truth.json").values["chair_i"] == 50
    row = json.dumps({"id": 1, "response": "A dog.\N{LINE SEPARATOR}A cat."}, ensure_ascii=False)
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode())
    scores = score_amber(tmp_path / "r.jsonl", write(tmp_path / "notes.json", [AMBER_ITEM]))
    assert scores.values["cover"] == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{", "byte 0 is no UTF-8"),
        (b"[" * 100_000, "line 1: JSON nested too deep"),
        (b"9" * 5000, "line 1: JSON with a number that is too long"),
        (b"null\n", "line 1: expected an object with 'image_id'"),
    ],
)
def test_no_file_leaks_the_words_of_python(content, message, tmp_path):
    path = tmp_path / "told.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        read_captions(path)
    assert "Expecting" not in str(told.value)
    assert "codec" not in str(told.value)


def test_captions_that_say_nothing_to_the_parser_are_noted(tmp_path, capsys):
    told = write(
        tmp_path / "told.jsonl",
        {"image_id": 1, "caption": "A dog."},
        {"image_id": 2, "caption": "Собака на лугу."},
        {"image_id": 3, "caption": "Lovely."},
    )
    truth = write(tmp_path / "truth.json", {"1": ["dog"], "2": ["dog"], "3": []})
    cli.main(["chair", str(told), "--truth", str(truth)])
    printed = capsys.readouterr().out
    assert "note: 2 of 3 captions name no object that the parser knows" in printed
    assert "note: 1 of 3 captions are in another script" in printed
    cli.main(["chair", str(told), "--truth", str(truth), "--json"])
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2


def test_details_never_take_the_place_of_an_input(tmp_path, capsys):
    told = write(tmp_path / "told.jsonl", {"image_id": 1, "caption": "A dog."})
    truth = write(tmp_path / "truth.json", {"1": ["dog"]})
    (tmp_path / "link.jsonl").symlink_to(told)
    before = told.read_text(), truth.read_text()
    for details in (told, truth, tmp_path / "link.jsonl", tmp_path / "." / "told.jsonl"):
        with pytest.raises(SystemExit):
            cli.main(["chair", str(told), "--truth", str(truth), "--details", str(details)])
        assert "would overwrite what is read" in capsys.readouterr().err
    assert (told.read_text(), truth.read_text()) == before


def test_a_cache_that_was_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = write(tmp_path / "told.jsonl", {"image_id": 1, "caption": "A dog."})
    before = score_chair(told, coco=coco(tmp_path / "coco")).values
    (cached,) = (tmp_path / "cache" / "interp").iterdir()
    whole = cached.read_text()
    for damage in ("", whole[: len(whole) // 2], "[]", "null", '{"1": 3}', '{"1": [3]}', "[" * 100_000):
        cached.write_text(damage)
        assert score_chair(told, coco=tmp_path / "coco").values == before
        assert cached.read_text() == whole


def test_what_a_question_asks_about_is_found_in_linear_time():
    start = time.process_time()
    with pytest.raises(ValueError, match="names no object"):
        asked_object(Question(1, "1.jpg", "is there a " * 20_000, True), PARSER)
    assert time.process_time() - start < 5


def test_questions_name_images_inside_their_folder(tmp_path):
    rows = [question(1, "yes") | {"image": "../1.jpg"}]
    with pytest.raises(ValueError, match=r"line 1: the file name '../1.jpg' leads out of its folder"):
        read_questions(write(tmp_path / "q.json", *rows))


def test_mcnemar_by_hand():
    ours = np.array([True, False, False, False, False, False])
    theirs = np.array([False, True, True, True, True, True])
    found = mcnemar(ours, theirs)
    assert (found.better, found.worse) == (5, 1)
    assert found.p == pytest.approx(2 * (6 + 1) / 64)
    assert mcnemar(ours, ours).p == 1.0
    with pytest.raises(ValueError, match="the same images"):
        mcnemar(ours, theirs[:2])


def test_mcnemar_with_images_exchanged_whole():
    ours = np.array([True, False, False, False, False, False])
    theirs = np.array([False, True, True, True, True, True])
    assert clustered_mcnemar(ours, theirs, np.arange(6)) == mcnemar(ours, theirs), "one question an image"
    # changes by image: -1 + 1, 2, 2: of the sums of 0, +-2, +-2 half are as far from 0 as 4
    found = clustered_mcnemar(ours, theirs, np.array([0, 0, 1, 1, 2, 2]))
    assert (found.better, found.worse, found.p) == (5, 1, 0.5)
    assert clustered_mcnemar(ours, ours, np.zeros(6, dtype=int)).p == 1.0


WORDS = ["a", "dog", "hot dog", "teddy bear", "bus", "seats", "the", "Buses", "!"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8), st.text(max_size=20))
def test_mentions_lie_where_they_say(parts, noise):
    text = " ".join(parts) + noise
    mentions = PARSER.mentions(text)
    for before, after in itertools.pairwise(mentions):
        assert before.end <= after.start
    for m in mentions:
        assert m.category in PARSER.categories
        assert [x.category for x in PARSER.mentions(text[m.start : m.end])] == [m.category]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "file.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for read in (read_captions, read_questions, lambda p: read_truth(p, PARSER)):
        with contextlib.suppress(ValueError):  # any other error fails
            assert read(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["fork", "A fork.", "1.png"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "name", "images", "annotations", "categories", "image_id", "category_id", "file_name"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_any_annotations_are_read_or_refused(tmp_path_factory, instances, captions):
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for name, content in (("instances", instances), ("captions", captions)):
        write(folder / "annotations" / f"{name}_val.json", content)
    with contextlib.suppress(ValueError):
        read_coco(folder, "val", PARSER)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_synonyms_are_read_or_refused(text):
    with contextlib.suppress(ValueError):
        assert set(read_synonyms(text).values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["Yes", "No", "no way.", "Hm", None]), st.booleans()), min_size=1))
def test_pope_stays_in_its_bounds(pairs):
    answers, labels = zip(*pairs, strict=True)
    found = pope(answers, labels)
    assert 0 <= found.accuracy <= 100
    right = sum(a is not None and understood(a) == y for a, y in pairs)
    assert found.accuracy == pytest.approx(100 * right / len(pairs))
    assert found.missing == sum(a is None for a in answers)
    assert found.unparsed == sum(a is not None and not re.search("yes|no", a, re.IGNORECASE) for a in answers)
