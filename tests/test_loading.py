"""What a model's folder may lack or hold wrongly, told when it is loaded; types, devices, templates, positions."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import cli
from interp.models import UnsupportedModelError, load
from interp.models.inputs import position_limit, rendered
from interp.models.loading import _taken
from interp.testbed.build import build_config, build_model, build_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small LLaVA in a folder, in two shards."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(build_config(processor, layers=2, heads=2, width=32))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder, max_shard_size="300KB")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the tensors of the shard that holds the projection."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if any(name.endswith("layers.1.self_attn.o_proj.weight") and "language" in name for name in tensors):
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
    return folder


def projection(tensors: dict[str, Any]) -> str:
    return next(name for name in tensors if name.endswith("layers.1.self_attn.o_proj.weight") and "language" in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(projection(w)),
            r"weights come from the files: 1 missing from the files: .*layers.1.self_attn.o_",
        ),
        (
            lambda w: w.update({projection(w): torch.zeros(3, 3)}),
            r"1 of another shape: .*o_proj.weight \(file \(3, 3",
        ),
        (lambda w: w.update(more=torch.zeros(1)), r"1 in the files but not in the model: more"),
        (
            lambda w: w[projection(w)].view(-1)[:1].fill_(torch.nan),
            r"weights are finite: 1 hold NaN or infinity: model.*o_p",
        ),
        (lambda w: w[projection(w)].view(-1)[:1].fill_(-torch.inf), r"weights are finite: 1 hold NaN or infinity"),
        (
            lambda w: w.update({projection(w): w[projection(w)].to(torch.int8)}),
            r"1 saved as whole numbers: .*o_proj.weight",
        ),
    ],
)
def test_weights_that_are_not_whole_are_refused_by_name(folder, change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load(changed(folder, change))


def test_shards_that_are_whole_are_taken(folder):
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load(folder).misfits == ()


def test_the_doctor_sees_missing_weights(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", str(changed(folder, lambda w: w.pop(projection(w))))])
    assert stop.value.code == 1
    assert "FAIL  weights come from the files" in capsys.readouterr().out


def test_tied_weights_are_not_missing(tmp_path):
    torch.manual_seed(0)
    processor = build_processor()
    config: Any = build_config(processor, layers=2, heads=2, width=32)
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = True
    model = build_model(config)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    assert load(tmp_path).misfits == ()


def test_files_that_are_cut_short_are_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"the weights \({shard.name} cut short or overwritten\) in .*fetch the model again"
    ):
        load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"the weights in .* cannot be used"):
        load(folder)


@pytest.mark.parametrize("content", ["", "null", "[" * 100_000], ids=["empty", "null", "deep"])
@pytest.mark.parametrize(
    ("part", "message"),
    [("config.json", "configuration"), ("tokenizer.json", "processor"), ("processor_config.json", "processor")],
)
def test_parts_that_cannot_be_read_are_told_in_one_line(folder, part, content, message):
    (folder / part).write_text(content)
    with pytest.raises(ValueError, match=f"cannot load the model .*model': .*{message}"):
        load(folder)


LOOP = "{% for i in range(99999) %}"
TEMPLATES = {
    "{% for %}": "TemplateSyntaxError",
    "{% for i in range(10000000) %}x{% endfor %}": "OverflowError: Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ messages.__class__.__mro__ }}": "SecurityError",
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{{ 'x' * 30000000 }}": "OverflowError: it writes 30000000 characters",
    f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}": "TimeoutError: it does not end within 0.05 s",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_loop_attack_or_do_not_parse_are_refused(template, monkeypatch):
    monkeypatch.setattr("interp.models.inputs.RENDERING_SECONDS", 0.05 if "99999" in template else 60.0)
    processor, watched = build_processor(), sys.gettrace()
    processor.chat_template = template
    with pytest.raises(
        ValueError, match=f"the chat template of this LlavaProcessor cannot be used: {TEMPLATES[template]}"
    ):
        rendered(processor, [{"role": "user", "content": "x"}])
    assert sys.gettrace() is watched


def test_an_object_is_converted_to_the_type_that_is_asked_for():
    processor = build_processor()
    model = build_model(build_config(processor, layers=2, heads=2, width=32))
    assert load(model, processor).dtype == torch.float32
    assert load(model, processor, dtype="bfloat16", check=False).dtype == torch.bfloat16
    assert load(model, processor, dtype="auto", check=False).dtype == torch.bfloat16
    quantised: Any = model
    quantised.is_quantized = True
    with pytest.raises(ValueError, match="a quantised model keeps its types"):
        load(model, processor, dtype="float32", check=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "foo"}, "dtype is float32, bfloat16, float16 or auto .*got 'foo'"),
        ({"dtype": torch.int8}, r"got 'torch.int8'"),
        ({"dtype": "float64"}, "got 'float64'"),
        ({"device": "meta"}, "the device 'meta' holds no values"),
        ({"device": "foo"}, "cannot use the device 'foo'"),
        ({"device_map": "meta"}, "'meta' in device_map holds no values"),
        ({"device_map": "auto", "device": "cpu"}, "both say where the model goes"),
        ({"revision": "main"}, "'testbed' is a local folder"),
        ({"device_map": "nowhere"}, "cannot load the model 'testbed'"),
        ({"attn_implementation": "nothing"}, "cannot load the model 'testbed'"),
    ],
)
def test_settings_that_cannot_act_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("testbed", **options)


def test_what_is_no_model_is_refused(model):
    for thing in (torch.nn.Linear(2, 2), 3, None):
        with pytest.raises(ValueError, match="expected a name, a folder or a Hugging Face model"):
            _taken(thing, model.processor, None, None, [])  # the tests' type checker would stop load itself
    with pytest.raises(ValueError, match="expected a Hugging Face processor or tokenizer, got a int"):
        load(model.hf, 3)


def test_prompts_and_new_tokens_must_fit_the_positions(model, pictures):
    inputs = model.inputs(pictures[:1], "Describe.")
    taken = int(inputs.position_ids.max()) + 1
    assert model.max_positions == inputs.max_positions == 1024
    with pytest.raises(ValueError, match=f"takes {taken} positions and 1000 new tokens, but the model knows 1024"):
        model.generate(inputs, max_new_tokens=1000)
    with pytest.raises(ValueError, match=r"the longest prompt takes 1[0-9]{3} positions, but the model knows 1024"):
        model.inputs(pictures[:1], "fork " * 1000)
    caption = torch.full((1024,), 7)
    with pytest.raises(ValueError, match="but the model knows 1024"):
        inputs.extended([caption])
    assert replace(inputs, max_positions=taken).require_room(0) is None


def test_stretched_rotary_positions_know_more():
    stretched = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    for rope, limit in ((None, 1024), ({"rope_type": "default"}, 1024), (stretched, 4096), ({"full": stretched}, 4096)):
        assert position_limit(SimpleNamespace(max_position_embeddings=1024, rope_parameters=rope)) == limit
    assert position_limit(SimpleNamespace()) is None


def test_an_empty_template_is_refused(folder):
    (folder / "chat_template.jinja").write_text("")
    with pytest.raises(ValueError, match="chat template is empty; restore it, or remove it"):
        load(folder)
