"""What is private in transformers, accelerate and nnsight: the first test to fail when a release changes it."""

import subprocess
import sys

import pytest
import torch
from transformers import GenerationConfig

from interp.models import compat


@pytest.mark.parametrize("touched", compat.TOUCHED, ids=lambda t: t.name)
def test_each_private_name_is_there(touched):
    found = compat.imported(touched)
    assert not isinstance(found, compat._Missing), f"{touched.where}.{touched.name} is gone; {touched.why}"
    assert touched.why
    assert touched.seen


def test_a_name_that_is_gone_is_told_where_it_is_used():
    gone = compat.imported(compat.Touched("nothing", "transformers.modeling_utils", "a test asks", "5.24.0"))
    for use in (gone, lambda: gone["sdpa"], lambda: "sdpa" in gone):
        with pytest.raises(ImportError, match=r"nothing is gone .*interp needs it because a test asks.*5\.24\.0"):
            use()


def test_the_command_line_survives_what_is_gone():
    code = (
        "import transformers.masking_utils as m, transformers.modeling_utils as u\n"
        "del m.ALL_MASK_ATTENTION_FUNCTIONS\n"
        "import interp.interventions, interp.models, interp.models.compat as c\n"
        "print(interp.interventions.describe_methods()[:6])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "greedy", done.stderr


def test_attributes_are_where_they_were(model, inputs):
    config = model.hf.config.get_text_config()
    assert compat.backend_of(config) == "sdpa"
    with compat.attention_backend(model.decoder_configs, "eager"):
        assert compat.backend_of(config) == "eager"
    assert compat.backend_of(config) == "sdpa"
    assert compat.offers_sdpa(model.hf)
    assert compat.entry_device(model.hf) == torch.device("cpu")
    assert compat.wrapped(model.traced) is model.hf
    for backend in ("eager", "sdpa"):
        assert callable(compat.kernel(backend, model.part(0, "self_attn")))


def test_the_cache_by_its_name(model, inputs):
    name = compat.cache_keyword(model.hf)
    assert name in ("cache", "past_key_values")
    out = model.hf.generate(**inputs.kwargs(), max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    cache = compat.cache_of(out)
    assert cache.get_seq_length() == inputs.input_ids.shape[1] + 1
    with torch.no_grad():
        again = model.hf(input_ids=out.sequences[:, -1:], **{name: cache}, use_cache=True)
    assert again.logits.shape[1] == 1
    assert cache.get_seq_length() == inputs.input_ids.shape[1] + 2


def test_generation_config_has_the_fields_that_are_kept(model):
    assert isinstance(model.hf.generation_config, GenerationConfig)
    assert model.hf.generation_config.eos_token_id is not None
