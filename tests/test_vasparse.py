import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_families import PROMPTS, picture
from torch import Tensor
from zoo import build

from interp.interventions import M3ID, VCD, VASparse, parse_method
from interp.interventions.methods.vasparse import Scope
from interp.interventions.primitives.contrast import EmbeddingReader
from interp.interventions.primitives.kv_cache import NotedLayer
from interp.metrics.selection import density_peaks
from interp.models import LVLM, AttentionCall, Inputs, image_free, load, read, run_with_edits

CLOSE: Any = {"rtol": 1e-4, "atol": 1e-4}
STEPS: Any = {"max_new_tokens": 24, "min_new_tokens": 24}


def test_the_watched_path_equals_greedy_where_it_drops_nothing(model, inputs):
    """A penalty too small to matter sends everything through the watched kernel and the cache with notes."""
    expected = model.generate(inputs, max_new_tokens=24).texts
    for options in ({}, {"num_beams": 3}):
        expected = model.generate(inputs, max_new_tokens=24, **options).texts
        with VASparse(keep=1, alpha=0, beta=1e-9)(model):
            assert model.generate(inputs, max_new_tokens=24, **options).texts == expected


@pytest.mark.parametrize("name", ["testbed", "qwen2.5-vl", "gemma3", "idefics3", "llava-next"])
@pytest.mark.parametrize("scope", ["generated", "all", "image"])
def test_eviction_equals_logical_masking(name, scope, model):
    """Token for token, with padded rows and grouped queries; and the cache is smaller."""
    lvlm = model if name == "testbed" else load(*build(name))
    inputs = lvlm.inputs([picture(0), picture(1, 40, 60)], PROMPTS)
    texts = {}
    for when in ("mask", "evict"):
        method = VASparse(keep=0.5, alpha=0, scope=scope, when=when, dropped="discard")
        with method(lvlm):
            texts[when] = [t.tolist() for t in lvlm.generate(inputs, **STEPS).tokens]
    assert texts["mask"] == texts["evict"]
    greedy = [t.tolist() for t in lvlm.generate(inputs, **STEPS).tokens]
    if name == "testbed" and scope == "all":
        assert texts["evict"] != greedy, "half of all tokens are gone"


def test_an_evicted_cache_is_smaller_and_positions_go_on(model, inputs):
    sizes = {}
    original = NotedLayer.update
    for when in ("mask", "evict"):
        seen: list[tuple[int, int]] = []

        def update(self, *args, _seen=seen, **kwargs):
            out = original(self, *args, **kwargs)
            _seen.append((self.get_seq_length(), self.n_bytes))
            return out

        NotedLayer.update = update  # type: ignore[method-assign]
        try:
            with VASparse(keep=0.25, alpha=0, scope="all", when=when)(model):
                model.generate(inputs, **STEPS)
        finally:
            NotedLayer.update = original  # type: ignore[method-assign]
        sizes[when] = seen
    n = inputs.input_ids.shape[1]
    assert [s for s, _ in sizes["evict"]][:: model.n_layers] == list(range(n, n + 24))
    assert sizes["evict"][-1][1] < 0.5 * sizes["mask"][-1][1]


class ReferencePattern:
    """The attention of a whole caption by the paper's equations, query by query, in float64; knows nothing of interp's.

    Eq. 7: `s' = (1 + beta) s - beta w s`, `w` the softmax over visible keys of what they have received so far.
    Eqs. 3 to 5: of the keys in scope the `ceil(keep n)` of largest `<q, k>^2 + lambda P` (or another reading of eq. 4)
    stay, `P` the softmax over visible keys of what each paid to the image as a query, in the last head.
    """

    def __init__(self, inputs: Inputs, method: VASparse) -> None:
        self.inputs, self.method = inputs, method
        self.patterns: dict[int, Tensor] = {}

    def see(self, layer: int, call: Any) -> None:
        groups = call.query.shape[1] // call.key.shape[1]
        dots = (call.query.double() @ call.key.double().repeat_interleave(groups, 1).mT).numpy()
        self.patterns[layer] = torch.from_numpy(np.stack([self.row(d, b, call.scaling) for b, d in enumerate(dots)]))

    def give(self, layer: int, pattern: Tensor) -> Tensor:
        return self.patterns[layer].to(pattern)

    def row(self, dots: np.ndarray, b: int, scaling: float) -> np.ndarray:
        m, n_prompt, n = self.method, self.inputs.input_ids.shape[1], dots.shape[-1]
        real = np.concatenate([self.inputs.attention_mask[b].bool().numpy(), np.ones(n - n_prompt, bool)])
        image = np.concatenate([self.inputs.image_mask[b].numpy(), np.zeros(n - n_prompt, bool)])
        in_scope = real if m.scope == "all" else np.arange(n) >= n_prompt
        found = np.zeros_like(dots)
        received, paid = np.zeros((len(dots), n)), np.zeros((len(dots), n))
        for t in range(int(real.argmax()), n):
            keys = np.flatnonzero(real[: t + 1])
            raw = np.stack([softmax(d[t, keys] * scaling) for d in dots])
            received[:, keys] += raw
            paid[:, t] = raw[:, image[keys]].sum(-1)
            saliency = softmax((paid[-1] if m.saliency_heads == "last" else paid.mean(0))[keys])
            for h, d in enumerate(dots):
                delta = self.importance(d[t, keys], raw[h], scaling) + m.lambda_ * saliency
                choice = np.flatnonzero(in_scope[keys])
                size = math.ceil(m.keep * len(choice) - 1e-9)
                dropped = choice[np.argsort(-delta[choice], kind="stable")[size:]]
                scores = d[t, keys] * scaling
                scores = (1 + m.beta) * scores - m.beta * softmax(received[h, keys]) * scores
                scores[dropped] = -np.inf
                found[h, t, keys] = softmax(scores)
        return found

    def importance(self, dots: np.ndarray, raw: np.ndarray, scaling: float) -> np.ndarray:
        readings = {"logits_squared": dots**2, "scaled_squared": (dots * scaling) ** 2}
        return (readings | {"probs": raw, "probs_squared": raw**2})[self.method.score]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(
    "settings",
    [{}, {"score": "probs", "saliency_heads": "mean"}, {"scope": "all", "keep": 0.6, "score": "logits_squared"}],
)
def test_native_steps_equal_the_equations(pictures, settings):
    """Penalty and selection of a whole caption in one edited pass give the logits of the native steps."""
    model = load("testbed", check=False)
    model.hf.double()  # so that a key at the edge of the kept ones is no accident
    inputs = model.inputs(pictures[:2], ["Please describe this image in detail.", "Describe this image."])
    method = VASparse(alpha=0, dropped="discard", **settings)
    native: list[Tensor] = []
    options: Any = {"max_new_tokens": 12, "min_new_tokens": 12}
    with method(model):
        written = model.generate(
            inputs, **options, logits_processor=[lambda _, scores: native.append(scores.clone()) or scores]
        ).tokens
    reference = ReferencePattern(inputs, method)
    edits: Any = {"attention": reference.see, "pattern": reference.give}
    logits = run_with_edits(model, inputs.extended(written), edits, keep=13)[:, :-1]
    found = torch.stack(native, 1)
    written_out = found.isfinite()  # `min_new_tokens` forbids the end of sequence
    assert written_out.float().mean() > 0.99
    torch.testing.assert_close(found[written_out], logits[written_out].float(), **CLOSE)
    plain = run_with_edits(model, inputs.extended(written), {}, keep=13)[:, :-1]
    assert not torch.allclose(plain, logits, atol=1e-2), "the method changed nothing: this would test nothing"


@pytest.mark.parametrize("method", [VASparse(keep=0.5), VASparse(when="evict"), VCD(), M3ID(gamma=0.1)])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}])
def test_rows_of_a_batch_equal_each_alone(method, options, model, inputs):
    options = dict(options)
    if "seed" in options:
        options.pop("seed")
        with method(model):  # a batch draws other numbers than a row; only that it runs
            assert len(model.generate(inputs, max_new_tokens=8, **options).texts) == 4
        return
    if isinstance(method, VASparse):
        method = replace(method, alpha=0.0)  # SVCD draws one mask for the batch
    if isinstance(method, VCD):
        method = replace(method, image_free="blank")  # so does noise
    with method(model):
        together = model.generate(inputs, max_new_tokens=16, **options).texts
        for row in range(4):
            one = model.inputs([inputs.pictures[row]], inputs.texts[row], chat=False)
            assert model.generate(one, max_new_tokens=16, **options).texts == [together[row]]


@pytest.mark.parametrize("name", ["qwen2.5-vl", "paligemma", "instructblip"])
def test_contrast_with_an_image_free_stream_equals_two_forward_passes(name):
    lvlm = load(*build(name))
    check_contrast(lvlm, lvlm.inputs([picture(0), picture(1, 40, 60)], PROMPTS))


def test_contrast_on_the_testbed(model, inputs):
    check_contrast(model, inputs)


def check_contrast(lvlm: LVLM, inputs: Inputs) -> None:
    """Each native step equals the contrast of two teacher-forced passes."""
    method = VCD(alpha=0.7, plausibility=0.0, image_free="remove")
    with method(lvlm):
        written = lvlm.generate(inputs, max_new_tokens=5, min_new_tokens=5).tokens
    with_image = read(lvlm, inputs.extended(written), "logits")["logits"][:, -6:-1]
    without = read(lvlm, image_free(lvlm, inputs).extended(written), "logits")["logits"][:, -6:-1]
    mixed = 1.7 * with_image.log_softmax(-1) - 0.7 * without
    eos = lvlm.hf.generation_config.eos_token_id
    mixed[..., eos if eos is not None else []] = -torch.inf
    assert torch.equal(mixed.argmax(-1), torch.stack(written))


def test_pooled_contrast_depends_on_the_picture_and_the_last_one_does_not(model, inputs, pictures):
    other = model.inputs(pictures[::-1], [PROMPTS[0]] * 4)
    same = model.inputs(pictures, [PROMPTS[0]] * 4)
    ids = same.input_ids
    one, two = (EmbeddingReader(model, x, "pooled", 0.5, 0)(ids) for x in (same, other))
    assert not torch.allclose(one[0], two[0])
    one, two = (EmbeddingReader(model, x, "last", 0.5, 0)(ids) for x in (same, other))
    torch.testing.assert_close(one, two)
    prompt = model.embeddings(same)
    whole = EmbeddingReader(model, same, "pooled", 0.0, 0)(ids)
    torch.testing.assert_close(whole, model.hf.lm_head(prompt.mean(1)), **CLOSE)
    for share in (0.01, 0.5):  # a few tokens' logits alone, and as many as are no longer worth it
        needed = torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < share
        some = EmbeddingReader(model, same, "pooled", 0.0, 0)(ids, needed)
        torch.testing.assert_close(some[needed], whole[needed], **CLOSE)
        assert ((some == 0).any() and share == 0.01) or torch.equal(some, whole)


def test_wrong_settings_are_refused():
    cases: Any = (
        ({"keep": 1.5}, "keep of VASparse is a number of at least 0 and at most 1, got 1.5"),
        ({"neighbours": 0}, "neighbours of VASparse is a whole number of at least 1"),
    )
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            VASparse(**wrong)
    with pytest.raises(ValueError, match="score of VASparse is one of probs_squared, probs, logits_squared"):
        parse_method("vasparse:score=raw")
    with pytest.raises(ValueError, match="alpha of VCD is a number of at least 0"):
        VCD(alpha=-1)


@pytest.mark.parametrize("dropped", [[7, 7], [24, 24], [7, 24], [0, 12]])
def test_a_cluster_is_a_further_key_with_the_sums_of_its_members(dropped):
    """Rows that drop as many keys and rows that do not, one cluster and several: against the keys written out."""
    random = torch.Generator().manual_seed(3)
    method = VASparse(neighbours=2)
    query, key, value = (torch.randn(2, h, n, 8, generator=random) for h, n in ((4, 1), (2, 40), (2, 40)))
    call = AttentionCall(query, key, value, None, 8**-0.5)
    order = torch.rand(2, 4, 40, generator=random).argsort(-1)
    gone = (order < torch.tensor(dropped)[:, None, None])[:, :, None]
    scores = call.scores() + 0.1  # as if a penalty had been there
    nothing = torch.zeros(2, 1, 40, dtype=torch.bool)
    scope = Scope(nothing, nothing, torch.zeros(2, 1, 1, 1, dtype=torch.long), None, 0)
    pattern = method._merging(call, call.products(), scores, gone, scope)
    found = call.head_outputs(pattern)
    for row in range(2):
        for head in range(4):
            out = gone[row, head, 0]
            k, v = key[row, head // 2], value[row, head // 2]
            keys, values = [], []
            if out.any():
                n = max(1, math.ceil(0.1 * int(out.sum()) - 1e-9))
                cluster = density_peaks(k[out], n, 2)
                keys = [k[out][cluster == c].sum(0) for c in range(n)]
                values = [v[out][cluster == c].sum(0) for c in range(n)]
            logits = [scores[row, head, 0, ~out], *(query[row, head] @ c * 8**-0.5 for c in keys)]
            read = torch.cat(logits).softmax(0) @ torch.cat([v[~out], *(c[None] for c in values)])
            torch.testing.assert_close(found[row, 0, head], read, **CLOSE)
