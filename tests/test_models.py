"""Loading, the doctor, prompts, and the command line's look at one picture."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers import BertConfig, BertForMaskedLM, BitsAndBytesConfig

from interp import cli
from interp.interventions import VHR
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, UnsupportedModelError, diagnose, image_free, load
from interp.models.doctor import Check, Diagnosis
from interp.testbed import WEIGHTS
from interp.trace.divergence import token_vhd, vhd

PROMPT = "Please describe this image in detail."


def test_loading_proves_the_adapter_in_well_under_a_second(model):
    diagnosis = diagnose(model)
    assert diagnosis.healthy
    assert diagnosis.seconds < 5, "well under one on an idle machine; this one may be busy"
    assert "sdpa and eager agree" in str(diagnosis)


def test_a_model_object_with_its_processor_is_taken(random_model, pictures):
    again = load(random_model.hf, random_model.processor)
    inputs = again.inputs(pictures[:1], PROMPT)
    assert torch.equal(vhd(again, inputs), vhd(random_model, inputs))


def test_loading_says_what_is_wrong(model, tmp_path):
    with pytest.raises(ValueError, match=r"comes with its processor: load\(model, processor\)"):
        load(model.hf)
    with pytest.raises(ValueError, match="revision belong to loading by name"):
        load(model.hf, model.processor, revision="main")
    with pytest.raises(UnsupportedModelError, match=r"attribute 'image_token'.*own processor"):
        load(model.hf, model.processor.tokenizer)
    bert = BertForMaskedLM(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16))
    with pytest.raises(UnsupportedModelError, match=r"does not know the architecture BertForMaskedLM.*families\.py"):
        load(bert, model.processor)
    bert.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load the model 'testbd': expected a bundled model \(testbed"):
        load("testbd")
    with pytest.raises(ValueError, match="'testbed' is a local folder"):
        load("testbed", remote=True)


def test_only_safetensors_are_read_unless_asked_otherwise(random_model, tmp_path):
    random_model.processor.save_pretrained(tmp_path)
    random_model.hf.config.architectures = [type(random_model.hf).__name__]
    random_model.hf.config.save_pretrained(tmp_path)
    torch.save(random_model.hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load(tmp_path)
    assert load(tmp_path, use_safetensors=False).fingerprint == random_model.fingerprint


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"layers": "model.layers"}, "paths of the family's entry: LlavaForConditionalGeneration.*'layers'"),
        ({"out_proj": "mlp.down_proj"}, "heads fill the output projection"),
        ({"attention_out": "mlp"}, r"residual in \+ attention \+ MLP"),
        ({"out_proj": "self_attn.q_proj"}, "probabilities x values = head outputs"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(random_model, change, failure):
    wrong = LVLM(random_model.hf, random_model.processor, "wrong")
    wrong.family = replace(wrong.family, **change)
    with pytest.raises(UnsupportedModelError, match=failure):
        diagnose(wrong).require()


def test_wrong_head_numbers_are_refused(random_model):
    """Six heads where there are three of twice the width: the output projection is filled all the same."""
    wrong = LVLM(random_model.hf, random_model.processor, "wrong")
    wrong.n_heads, wrong.d_head = wrong.n_heads * 2, wrong.d_head // 2
    with pytest.raises(UnsupportedModelError, match=r"probabilities x values = head outputs|two small prompts run"):
        diagnose(wrong).require()


def test_a_report_reads_well():
    checks = (Check("layers", True, "8"), Check("edits", False, "none"), Check("sdpa", None, "not offered"))
    text = str(Diagnosis("model", checks, 0.5))
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["ok", "FAIL", "-"]
    assert "cannot be trusted" in text


def test_weights_on_disk_change_nothing(model, pictures, tmp_path):
    places: dict[str, str] = dict.fromkeys(
        ("model.vision_tower", "model.multi_modal_projector", "model.language_model.rotary_emb"), "cpu"
    )
    places |= dict.fromkeys(("model.language_model.embed_tokens", "model.language_model.norm", "lm_head"), "disk")
    places |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(model.n_layers)}
    split = load("testbed", device_map=places, offload_folder=str(tmp_path))
    inputs, theirs = model.inputs(pictures, PROMPT), split.inputs(pictures, PROMPT)
    assert torch.equal(vhd(split, theirs), vhd(model, inputs))
    with VHR()(model) as here, VHR()(split) as there:
        assert split.generate(theirs, max_new_tokens=8).texts == model.generate(inputs, max_new_tokens=8).texts
    assert torch.equal(here.heads[0].heads, there.heads[0].heads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_read_and_edited(model, pictures, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    options = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8, "bnb_4bit_compute_dtype": torch.float32}
    small = load("testbed", quantization_config=BitsAndBytesConfig(**options))
    inputs = small.inputs(pictures, PROMPT)
    near = vhd(model, model.inputs(pictures, PROMPT))
    assert torch.nn.functional.cosine_similarity(vhd(small, inputs).flatten(), near.flatten(), dim=0) > 0.95
    greedy = small.generate(inputs, max_new_tokens=8).texts
    with VHR(alpha=1.0)(small):
        assert small.generate(inputs, max_new_tokens=8).texts == greedy
    with VHR(alpha=4.0)(small):
        assert small.generate(inputs, max_new_tokens=8).texts != greedy


def test_prompts_and_pictures_must_fit(model, pictures):
    placeholder = "<image>"
    with pytest.raises(ValueError, match="got 2 rows of images, 1 prompts"):
        model.inputs(pictures[:2], [PROMPT])
    with pytest.raises(ValueError, match="expected as many <image> in the prompt as pictures, got 2 and 1"):
        model.inputs(pictures[:1], f"{placeholder} or {placeholder}: which has a fork?")
    two = model.inputs([pictures[:2]], f"{placeholder} or {placeholder}: which has a fork?")
    assert two.image_mask.sum() == 128
    with pytest.raises(ValueError, match="<image> tokens in the prompts"):
        model.inputs(pictures[:1], "no picture here", chat=False)
    with pytest.raises(ValueError, match="expected at least one row"):
        model.inputs([], PROMPT)
    text = model.inputs(None, ["A fork.", "A fork is on the table."])
    assert not text.image_mask.any()
    with pytest.raises(ValueError, match="pictures to take away"):
        image_free(model, text)
    with pytest.raises(ValueError, match="one of remove, mask, blank, noise, got 'none'"):
        image_free(model, model.inputs(pictures[:1], PROMPT), "none")


@pytest.fixture
def truncated(pictures, tmp_path) -> Path:
    path = tmp_path / "half.png"
    pictures[0].save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_truncated_picture_is_named(model, truncated):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(truncated) as picture, pytest.raises(ValueError, match="cannot read a picture of row 0"):
        model.inputs([picture], PROMPT)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_heads_from_the_command_line(model, pictures, tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    pictures[0].save(photo)
    cli.main(["heads", "--image", str(photo), "--top", "3", "--out", str(out), "--caption"])
    printed = capsys.readouterr().out
    inputs = model.inputs(pictures[:1], PROMPT)
    expected = vhd(model, inputs)[0]
    best = divmod(int(expected.argmax()), model.n_heads)
    assert f"   1  L{best[0]}H{best[1]}" in printed
    saved = np.load(out / "vhd.npz")
    np.testing.assert_allclose(saved["vhd"], expected, rtol=1e-5)
    caption = model.generate(inputs).tokens[0]
    t_vhd = token_divergence(token_vhd(model, inputs, [caption])[0].vhd, default_top_k(model.n_heads))
    np.testing.assert_allclose(saved["t_vhd"], t_vhd, rtol=1e-4)
    rows = table(out / "heads.csv")
    assert len(rows) == model.n_layers * model.n_heads
    assert float(rows[0]["vhd"]) == pytest.approx(expected.max().item(), rel=1e-5)
    assert len(table(out / "tokens.csv")) == len(caption)
    assert {p.name for p in out.glob("*.png")} == {"vhd.png", "t_vhd.png"}


def test_a_given_caption_is_followed(pictures, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    pictures[0].save(photo)
    cli.main(["heads", "--image", str(photo), "--caption", "A fork is here."])
    assert "caption: A fork is here." in capsys.readouterr().out


def test_the_command_line_says_what_is_wrong(truncated, capsys):
    for args, message in (
        (["heads", "--image", str(truncated)], "cannot read the image"),
        (["heads", "--image", "none.png"], "cannot read the image none.png"),
        (["heads"], "--image"),
        (["doctor", str(WEIGHTS)], "cannot load the model"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_doctor_from_the_command_line(capsys, monkeypatch):
    cli.main(["doctor", "testbed"])
    assert "everything fits" in capsys.readouterr().out
    sick = Diagnosis("model", (Check("edits", False, "none"),), 0.1)
    monkeypatch.setattr("interp.cli.looking.diagnose", lambda _: sick)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "testbed"])
    assert stop.value.code == 1
