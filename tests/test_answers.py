"""Reading yes/no answers: as a reader would, by the customary script's rule, and from the tokens that begin them."""

import json

import pytest

from interp import cli
from interp.evaluate.answers import answer_tokens, says_yes, understood
from interp.evaluate.pope import pope

YES = ["Yes", "yes, there is", "YES!", "**Yes**", "Yes, and there is no cat", "Yep", "There is a dog. No cat.",
       "There is a dog that is not running", "A dog is in the image", "I can see a dog", "It's there",
       "Is there a dog? Yes", "Based on the image, yes: there is a dog", "True", "The answer is yes"]  # fmt: skip
NO = ["No", "NO", "No!", "**No**", "no:", "Nope", "no way.", "There is not.", "There isn\u2019t",
      "I don't see one", "Based on the image, there are no dogs", "The image does not show a dog", "Yes or no? No",
      "Nothing", "Absolutely not", "`no`", "\nNo", "Not that I can see"]  # fmt: skip
NEITHER = ["", "Perhaps.", "Hm", "I cannot tell.", "I'm not sure", "It is unclear whether there is a dog",
           "Is there a dog?", "Sorry, I cannot help with that", "\u662f", "Nein"]  # fmt: skip


@pytest.mark.parametrize(("answers", "said"), [(YES, True), (NO, False), (NEITHER, None)])
def test_answers_are_understood_as_a_reader_would(answers, said):
    assert {answer: understood(answer) for answer in answers} == dict.fromkeys(answers, said)


def test_the_scripts_rule_is_kept_and_the_difference_is_counted(tmp_path, capsys):
    answers = ["NO", "No!", "**No**", "no:", "Yes", "No."]
    assert [says_yes(a) for a in answers] == [True, True, True, True, True, False]
    by_reader, by_script = (pope(answers, [False] * 4 + [True, False], rule) for rule in ("reader", "script"))
    assert (by_reader.accuracy, by_reader.rules_differ, by_reader.unparsed) == (100, 4, 0)
    assert (by_script.accuracy, by_script.rules_differ) == (pytest.approx(100 / 3), 4)
    assert by_script.yes_ratio == pytest.approx(500 / 6)
    said, asked = tmp_path / "a.jsonl", tmp_path / "q.json"
    said.write_text(json.dumps({"question_id": 1, "answer": "NO"}) + "\n")
    row = {"question_id": 1, "image": "1.png", "text": "Is there a dog in the image?", "label": "no"}
    asked.write_text(json.dumps(row) + "\n")
    for rule, accuracy in (("reader", 100), ("script", 0)):
        cli.main(["pope", str(said), "--questions", str(asked), "--rule", rule, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["accuracy"], found["rules_differ"]) == (accuracy, 1)
        assert "read 1 answers differently" in found["notes"][-1]


def test_first_tokens_of_yes_and_no_must_differ():
    pieces = ["", " ", "Yes", "No", "yes", "no", "?"]

    def encode(text):
        return [1, pieces.index(text.strip())] if text[0] == " " else [pieces.index(text)]

    assert answer_tokens(encode, lambda ids: pieces[ids[0]]) == ([2, 4], [3, 5])
    with pytest.raises(ValueError, match="do not tell the two apart"):
        answer_tokens(lambda _: [6], lambda ids: pieces[ids[0]])
    with pytest.raises(ValueError, match="do not tell the two apart"):
        answer_tokens(lambda _: [], lambda ids: pieces[ids[0]])
