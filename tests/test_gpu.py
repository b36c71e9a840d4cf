"""What the CPU tests show, on a GPU: capture, every method, causal scores."""

import pytest
import torch

from interp.attribution.effects import attributed_contributions
from interp.interventions import METHODS, parse_method
from interp.models import load
from interp.trace.divergence import vhd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PROMPT = "Please describe this image in detail."


@pytest.fixture(scope="module")
def there():
    torch.backends.cuda.matmul.allow_tf32 = False
    return load("testbed", device="cuda")


def test_vhd_is_that_of_the_cpu(model, there, pictures):
    here = vhd(model, model.inputs(pictures, PROMPT))
    torch.testing.assert_close(vhd(there, there.inputs(pictures, PROMPT)).cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_there(name, model, there, pictures):
    """Off it is greedy; on, its text is mostly the CPU's (rounding may tip a token, sampling has other numbers)."""
    inputs, same = there.inputs(pictures, PROMPT), model.inputs(pictures, PROMPT)
    greedy = there.generate(inputs, max_new_tokens=16).texts
    with parse_method(":".join([name, METHODS[name].build.off]).rstrip(":"))(there):
        assert there.generate(inputs, max_new_tokens=16).texts == greedy
    with parse_method(name)(there):
        found = there.generate(inputs, max_new_tokens=16).texts
    if name != "sampling":
        with parse_method(name)(model):
            expected = model.generate(same, max_new_tokens=16).texts
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3


def test_contributions_are_those_of_the_cpu(model, there, pictures):
    inputs = model.inputs(pictures[:1], PROMPT)
    captions = [t[:8] for t in model.generate(inputs, max_new_tokens=8).tokens]
    here = attributed_contributions(model, inputs, captions, [[2]])[0]
    cuda = attributed_contributions(there, there.inputs(pictures[:1], PROMPT), captions, [[2]])[0].cpu()
    torch.testing.assert_close(cuda, here, rtol=1e-2, atol=1e-3)
