"""One selection of images: by seed, by a file of ids."""

from dataclasses import replace

import pytest

from interp.data import Data, Sample, open_data
from interp.evaluate import ObjectParser


@pytest.fixture(scope="module")
def scenes() -> Data:
    return open_data("testbed:broken", None, ObjectParser.coco())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("7\n3\n", (3, 7)), ("[7, 3]", (3, 7)), ('{"image_ids": [3]}', (3,)), ("\ufeff3\r\n\r\n4", (3, 4))],
)
def test_ids_of_a_file(text, chosen, scenes, tmp_path):
    (tmp_path / "ids").write_text(text, encoding="utf-8", newline="")
    assert scenes.selected(200, 0, str(tmp_path / "ids")).image_ids == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[3.7]", "a whole number or a file name, got 3.7"),
        ("[true]", "a whole number or a file name, got true"),
        ("[null]", "a whole number or a file name, got null"),
        ("[[1]]", r"a whole number or a file name, got \[1\]"),
        ("[3, 4, 3]", "the image 3 is listed twice"),
        ("3\n3", "the image 3 is listed twice"),
        ("[9999]", "got 1 others, such as .9999"),
        ('["3"]', "got 1 others, such as"),
        ("-3", "got 1 others, such as"),
        ("[]", "expected ids of testbed:broken"),
        ("", "expected ids of testbed:broken"),
        ("[1, 2", "cannot read image ids"),
        ("[" * 100_000, "cannot read image ids"),
        ('{"ids": [1]}', "a list of image ids, or a manifest"),
    ],
)
def test_files_that_hold_no_ids_are_refused(text, message, scenes, tmp_path):
    (tmp_path / "ids").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as told:
        scenes.selected(None, 0, str(tmp_path / "ids"))
    assert str(tmp_path / "ids") in str(told.value)


def test_images_that_go_by_file_names(scenes, tmp_path):
    names = ("COCO_val2014_000000000042.jpg", "a_7.png", "b_7.png", "cat.png")
    data = replace(scenes, name="questions", image_ids=names)
    (tmp_path / "ids").write_text("cat.png\n42\n")
    assert data.chosen(tmp_path / "ids").image_ids == ("COCO_val2014_000000000042.jpg", "cat.png")
    (tmp_path / "ids").write_text("7")
    with pytest.raises(ValueError, match=r"7 may be any of a_7\.png, b_7\.png; list file names instead"):
        data.chosen(tmp_path / "ids")


def test_a_sample_and_the_first_of_it(scenes):
    few = scenes.selected(10, 3)
    assert few.image_ids == tuple(sorted(few.image_ids))
    assert few.first(4).image_ids == few.image_ids[:4]
    assert scenes.questions is not None
    questions = scenes.questions(few.image_ids[:2])
    assert {q.image for q in questions} == {str(i) for i in few.image_ids[:2]}
    assert len({q.question_id for q in questions}) == len(questions) > 4
    sample = few.load(few.image_ids[0])
    assert isinstance(sample, Sample)
    assert sample.image_id == few.image_ids[0]
