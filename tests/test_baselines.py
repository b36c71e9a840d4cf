"""Baselines against `references`, token for token: the slow side reads every text anew, whole and without a cache."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from references import (
    avisc,
    deco,
    dola,
    fastv,
    h2o,
    icd,
    m3id,
    opera_search,
    pai,
    snapkv,
    spin,
    streaming_llm,
    vasparse,
    vcd,
)
from references.softmax import causal, largest, softmax
from test_families import picture
from torch import Tensor
from zoo import build

from interp.interventions import METHODS, OPERA, VHR, VASparse, describe_methods, parse_method
from interp.interventions.methods.icd import DISTURBANCES
from interp.interventions.primitives.continuation import Continuation
from interp.interventions.primitives.opera_released import ReleasedSearch, Rules
from interp.interventions.primitives.rereading import Reader, Texts, Wanted, searched
from interp.metrics.contrast import distances
from interp.metrics.over_trust import over_trust
from interp.models import LVLM, AttentionCall, Inputs, diffused, image_free, load
from interp.models.kernels import watched

STEPS = 6
PROMPT = "Please describe this image in detail."
Change = Callable[[int, np.ndarray], np.ndarray | None]
"""From a layer and its scores `[head, token, token]`, in float64, the pattern to take; None: the model's own."""


@dataclass(frozen=True)
class Read:
    """A text as it is read whole: next logits, scores by layer, hidden states of the last token `[state, d]`."""

    logits: np.ndarray
    scores: list[np.ndarray]
    hidden: Tensor


@torch.no_grad()
def whole(
    lvlm: LVLM, inputs: Inputs, ids: list[int], change: Change | None = None, blind: Tensor | None = None
) -> Read:
    """Read a prompt and a text; `blind` marks tokens whose embeddings are zero."""
    x = inputs.extended([torch.tensor(ids)]) if ids else inputs
    scores: list[np.ndarray] = [np.empty(0)] * lvlm.n_layers

    def watch_of(layer: int) -> Any:
        def watch(call: AttentionCall) -> Any:
            scores[layer] = call.scores()[0].double().numpy()
            pattern = None if change is None else change(layer, scores[layer])
            return None if pattern is None else (call, torch.from_numpy(pattern)[None].to(call.query))

        return watch

    def zeroed(_: Any, args: Any, kwargs: Any) -> Any:
        assert blind is not None
        hidden = args[0].clone()
        hidden[0, : len(blind)][blind] = 0
        return (hidden, *args[1:]), kwargs

    with ExitStack() as stack:
        parts = {lvlm.part(layer, lvlm.family.attention): watch_of(layer) for layer in range(lvlm.n_layers)}
        stack.enter_context(watched(lvlm.decoder_configs, parts))
        if blind is not None:
            stack.callback(lvlm.layer(0).register_forward_pre_hook(zeroed, with_kwargs=True).remove)
        out = lvlm.hf(**x.kwargs(), use_cache=False, output_hidden_states=True)
    return Read(out.logits[0, -1].double().numpy(), scores, torch.stack([h[0, -1] for h in out.hidden_states]))


@dataclass(frozen=True)
class Case:
    """A model and a prompt with one picture; `image` are the places of image tokens."""

    lvlm: LVLM
    inputs: Inputs

    @property
    def image(self) -> np.ndarray:
        return np.flatnonzero(self.inputs.image_mask[0].numpy())

    @property
    def prompt(self) -> int:
        return self.inputs.input_ids.shape[1]

    def slow(self, scores_of: Callable[[list[int]], np.ndarray]) -> list[int]:
        """Greedy by a function that reads each text anew."""
        text: list[int] = []
        end = self.lvlm.hf.generation_config.eos_token_id
        for _ in range(STEPS):
            token = int(scores_of(text).argmax())
            if token == end:
                break
            text.append(token)
        return text

    def fast(self, method: str) -> list[int]:
        with parse_method(method)(self.lvlm):
            found = self.lvlm.generate(self.inputs, max_new_tokens=STEPS).tokens[0].tolist()
        if self.lvlm.name != "testbed":  # which is sure of its first words
            plain = self.lvlm.generate(self.inputs, max_new_tokens=STEPS).tokens[0].tolist()
            assert found != plain, "the method changed nothing: this would test nothing"
        return found

    def hidden_by(self, change: Change) -> list[int]:
        return self.slow(lambda text: whole(self.lvlm, self.inputs, text, change).logits)


@pytest.fixture(params=["testbed", "qwen2.5-vl"])
def case(request, model) -> Case:
    lvlm = model if request.param == "testbed" else load(*build(request.param))
    return Case(lvlm, lvlm.inputs([picture(3)], PROMPT))


def contrasted(case: Case, other: Inputs, formula: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> list[int]:
    """Greedy by a contrast of two readings."""

    def scores(text: list[int]) -> np.ndarray:
        theta, phi = (whole(case.lvlm, x, text).logits for x in (case.inputs, other))
        return formula(theta, phi, len(text) + 1)

    return case.slow(scores)


def test_vcd_mixes_noise_into_the_pixels(case):
    pixels = case.inputs.pixels["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3))
    mixed = torch.from_numpy(vcd.noised(pixels.numpy(), noise.numpy(), 700)).to(pixels)
    torch.testing.assert_close(diffused(case.inputs, 700, 3).pixels["pixel_values"], mixed)
    other = replace(case.inputs, pixels=case.inputs.pixels | {"pixel_values": mixed})
    expected = contrasted(case, other, lambda theta, phi, _: vcd.contrast(theta, phi, 3.0, 0.01))
    assert case.fast("vcd:alpha=3:plausibility=0.01:noise_step=700:seed=3") == expected
    first = contrasted(case, other, lambda a, b, step: vcd.contrast(a, b, 3.0 * (step == 1), 0.01))
    assert case.fast("vcd:alpha=3:plausibility=0.01:noise_step=700:seed=3:only_first=true") == first


def test_icd_reads_the_picture_under_another_instruction(case):
    assert tuple(DISTURBANCES.values()) == icd.DISTURBANCES
    other = case.lvlm.inputs([case.inputs.pictures[0]], f"{icd.DISTURBANCES[3]} {PROMPT}")
    expected = contrasted(case, other, lambda theta, phi, _: icd.released(theta, phi, 4.0, 0.01))
    assert case.fast("icd:alpha=4:plausibility=0.01") == expected


def test_m3id_of_avisc_and_of_the_paper(case):
    other = image_free(case.lvlm, case.inputs)
    expected = contrasted(case, other, lambda theta, phi, step: m3id.avisc(theta, phi, step, 0.5))
    assert case.fast("m3id:gamma=0.5") == expected
    expected = contrasted(case, other, lambda theta, phi, step: m3id.paper(theta, phi, step, 0.2, 0.6))
    assert case.fast("m3id:gamma=0.2:confidence=0.6:plausibility=0") == expected


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_pai_pushes_the_last_query_from_the_token_on_that_the_code_does(gamma, case):
    without = image_free(case.lvlm, case.inputs)
    layers = range(round(case.lvlm.n_layers / 16), case.lvlm.n_layers)

    def change(layer: int, scores: np.ndarray) -> np.ndarray | None:
        new = scores.copy()
        for query in range(case.prompt - 1, scores.shape[1]):
            if layer in layers and pai.pushes(query - case.prompt + 1, gamma if gamma > 1 else None):
                new[:, query] = pai.pushed(scores[:, : query + 1], case.image, 2.0)[:, -1]
        return softmax(new)

    def scores(text: list[int]) -> np.ndarray:
        theta = whole(case.lvlm, case.inputs, text, change).logits
        return pai.contrast(theta, whole(case.lvlm, without, text).logits, gamma)

    assert case.fast(f"pai:alpha=2:gamma={gamma}") == case.slow(scores)


@pytest.mark.parametrize("by", ["scores", "probabilities"])
def test_spin_scales_heads_at_the_last_query(by, case):
    def change(_: int, scores: np.ndarray) -> np.ndarray:
        pattern = causal(scores)
        for query in range(case.prompt - 1, scores.shape[1]):
            row = (scores if by == "scores" else pattern)[:, query, case.image].sum(-1)
            pattern[:, query] *= spin.factors(row, 0.6, 0.1)[:, None]
            if by == "scores":
                factors = spin.released(scores[:, : query + 1], case.image, 0.6, 0.1)[:, -1]
                assert np.array_equal(factors, spin.factors(row, 0.6, 0.1))
        return pattern

    assert case.fast(f"spin:suppress=0.4:factor=0.1:by={by}") == case.hidden_by(change)


@pytest.mark.parametrize("released", [True, False])
def test_dola_reads_early_states_with_the_head_alone(released, case):
    lvlm = case.lvlm
    tied = lvlm.hf.get_output_embeddings().weight is lvlm.hf.get_input_embeddings().weight
    states = dola.candidates(lvlm.n_layers, "low", tied)

    def scores(text: list[int]) -> np.ndarray:
        read = whole(lvlm, case.inputs, text)
        early = lvlm.hf.get_output_embeddings()(read.hidden[states]).detach().double().numpy()
        chosen = dola.chosen(read.logits[None], early[:, None], released)
        return dola.contrast(read.logits, early[chosen])

    assert case.fast("dola" if released else "dola:divergence=jensen-shannon") == case.slow(scores)


def test_dolas_divergences_on_tensors():
    random = torch.Generator().manual_seed(0)
    last, early = (torch.randn(s, generator=random).double().log_softmax(-1) for s in ((2, 7), (3, 2, 7)))
    for kind in ("reversed", "jensen-shannon"):
        found = distances(last, early, kind)
        for (layer, row), value in np.ndenumerate(found.numpy()):
            expected = dola.divergence(last[row].numpy(), early[layer, row].numpy(), kind == "reversed")
            assert value == pytest.approx(expected)


def test_deco_adds_the_surest_early_layer(case):
    lvlm = case.lvlm
    n = lvlm.n_layers
    states = [s for s in range(n + 1) if 20 * n <= 32 * s <= 28 * n]
    norm = lvlm.family.final_norm

    def scores(text: list[int]) -> np.ndarray:
        read = whole(lvlm, case.inputs, text)
        module = lvlm.hf.get_submodule(norm)
        early = lvlm.hf.get_output_embeddings()(module(read.hidden[states])).detach().double().numpy()
        return deco.corrected(read.logits, early, alpha=30.0)

    assert case.fast("deco:alpha=30") == case.slow(scores)


def test_avisc_contrasts_with_blind_tokens(case):
    read = whole(case.lvlm, case.inputs, [])
    attention = np.stack([causal(scores)[:, -1, case.image] for scores in read.scores])
    unseen = torch.zeros(case.prompt, dtype=torch.bool)
    unseen[case.image] = ~torch.from_numpy(avisc.blind(attention))
    assert 0 < unseen.sum() < len(case.image)

    def scores(text: list[int]) -> np.ndarray:
        theta = whole(case.lvlm, case.inputs, text).logits
        return avisc.contrast(theta, whole(case.lvlm, case.inputs, text, blind=unseen).logits)

    assert case.fast("avisc") == case.slow(scores)


def shown(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return softmax(np.where(seen, scores, -np.inf))


def test_h2o_evicts_for_good(case):
    budget = int(0.1 * case.prompt)

    def change(_: int, scores: np.ndarray) -> np.ndarray:
        return shown(scores, np.stack([h2o.dropped(head, case.prompt, budget, budget) for head in scores]))

    assert case.fast("h2o") == case.hidden_by(change)


def test_streaming_llm_reads_the_prompt_whole(case):
    def change(_: int, scores: np.ndarray) -> np.ndarray:
        return shown(scores, streaming_llm.seen(scores.shape[-1], case.prompt, 4, 12))

    assert case.fast("streaming-llm:window=12") == case.hidden_by(change)


@pytest.mark.parametrize("again", [False, True])
def test_fastv_ranks_once_or_again(again, case):
    number = fastv.number_kept(len(case.image), 0.7)
    seen: list[np.ndarray] = []

    def change(layer: int, scores: np.ndarray) -> np.ndarray | None:
        if layer == 1:
            seen[:] = [fastv.seen(causal(scores), case.image, number, case.prompt, again)]
        return None if layer < 2 else shown(scores, seen[0])

    assert case.fast(f"fastv:keep=0.3:layer=2:again={str(again).lower()}") == case.hidden_by(change)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_snapkv_pools_the_votes_for_the_prefix(pooling, case):
    capacity = 6 + int(np.ceil(0.25 * (case.prompt - 6)))

    def change(_: int, scores: np.ndarray) -> np.ndarray:
        seen = np.tile(np.tri(scores.shape[-1], dtype=bool), (len(scores), 1, 1))
        for head, rows in enumerate(scores):
            kept = snapkv.kept(rows[: case.prompt, : case.prompt], 6, capacity, 5, pooling)
            seen[head, case.prompt :, : case.prompt] = np.isin(np.arange(case.prompt), kept)
        return shown(scores, seen)

    assert case.fast(f"snapkv:keep=0.25:window=6:pooling={pooling}") == case.hidden_by(change)


def test_top_k_in_one_layer_leaves_the_others(case):
    def change(layer: int, scores: np.ndarray) -> np.ndarray | None:
        if layer != 1:
            return None
        seen = np.zeros(scores.shape, dtype=bool)
        for (head, query), _ in np.ndenumerate(scores[..., 0]):
            number = int(np.ceil(0.1 * (query + 1)))
            seen[head, query, largest(scores[head, query, : query + 1], number)] = True
        return shown(scores, seen)

    assert case.fast("top-k:keep=0.1:layers=1") == case.hidden_by(change)


@pytest.mark.parametrize("score", vasparse.READINGS)
def test_vasparse_selects_by_each_reading(score, case):
    by = {"logits": "logits_squared", "scaled": "scaled_squared"}.get(score, score)
    method = VASparse(score=by)  # pyright: ignore[reportArgumentType]
    random = torch.Generator().manual_seed(1)
    query, keys = torch.randn(1, 1, 1, 8, generator=random), torch.randn(1, 1, 9, 8, generator=random)
    call = AttentionCall(query, keys, keys, None, 8**-0.5)
    found = method.importance(call, call.pattern())[0, 0, 0]
    expected = vasparse.importance(query[0, 0, 0].double().numpy(), keys[0, 0].double().numpy(), score)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


class Written(Texts):
    """Texts that a made-up model has read, without a cache."""

    def select(self, rows: Tensor) -> "Written":
        return Written(self.ids[rows], self.omega[rows], self.looks[rows], self.logits[rows], self.text)


class MadeUp(Reader):
    """A model of six tokens after a prompt of three, of which the first is an image; token 5 ends a text."""

    START = 3

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, *text])
        n = self.START + len(text)
        attention = np.zeros((2, n, n))
        for row in range(n):  # rows hang on earlier tokens only; one token is trusted by all that follow
            of = np.random.default_rng([self.seed, 7, *text[: max(row - self.START + 1, 0)]])
            weights = of.random((2, row + 1))
            weights[:, min(row, self.START + 11)] += 8.0
            attention[:, row, : row + 1] = weights / weights.sum(-1, keepdims=True)
        return random.normal(size=6) - np.array([0, 0, 0, 0, 0, 4.0]), attention

    def start(self, n: int) -> Written:
        return self.at(torch.empty(n, 0, dtype=torch.long))

    def at(self, ids: Tensor) -> Written:
        both = [self(text) for text in ids.tolist()]
        rows = [a.max(0) / a.max(0).sum(-1, keepdims=True) for _, a in both]
        omega = torch.from_numpy(np.stack([r[self.START :, self.START :] for r in rows]))
        looks = torch.tensor([r[-1, 0] for r in rows], dtype=torch.double)
        logits = torch.from_numpy(np.stack([logits for logits, _ in both]))
        return Written(ids, omega, looks, logits, object.__new__(Continuation))

    def read_all(self, wanted: Sequence[Wanted]) -> list[Texts]:
        found = []
        for w in wanted:
            before = w.texts.ids.repeat_interleave(w.tokens.shape[1], 0)
            assert isinstance(w.reader, MadeUp)
            found.append(w.reader.at(torch.cat([before, w.tokens.flatten()[:, None]], 1)))
        return found


def test_operas_search_goes_back_as_the_reference_does(monkeypatch):
    back: list[int] = []
    anew = ReleasedSearch._anew
    monkeypatch.setattr(ReleasedSearch, "_anew", lambda self, *args: back.append(args[1]) or anew(self, *args))
    rules = Rules(2, 3, 1.0, 3.0, 4, 3, torch.tensor([5]), 2)
    together = searched([ReleasedSearch(rules, MadeUp(seed), lambda _, scores: scores).run(26) for seed in range(6)])
    for seed, found in enumerate(together):
        settings: Any = {"beams": 2, "candidates": 3, "threshold": 4, "sigma": 3.0, "prompt_counted": 2}
        assert found.tolist() == opera_search.search(MadeUp(seed), 3, np.array([0]), 5, 26, **settings), seed
    assert len(back) > 3, "no way back was taken: this would test nothing"


def test_opera_token_for_token(case):
    def read(text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        found = whole(case.lvlm, case.inputs, text)
        return found.logits, causal(found.scores[-1])

    counted = case.prompt - len(case.image) + 1
    end = case.lvlm.hf.generation_config.eos_token_id
    settings: Any = {"beams": 2, "candidates": 2, "weight": 3.0, "prompt_counted": counted}
    expected = opera_search.search(read, case.prompt, case.image, end, 5, **settings)
    with OPERA(num_beams=2, candidates=2, alpha=3.0)(case.lvlm):
        assert case.lvlm.generate(case.inputs, max_new_tokens=5).tokens[0].tolist() == expected


def test_operas_penalty_of_the_paper_has_the_largest_column():
    omega = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double).tril()
    phi, column = over_trust(omega, 2.0)
    for row in range(3):
        columns = [np.prod(2 * omega[row, j:, j].numpy()) for j in range(4)]
        assert phi[row].item() == pytest.approx(max(columns))
        assert column[row] == int(np.argmax(columns))


def test_draws_hang_on_their_seed(model, pictures):
    inputs = model.inputs(pictures[:2], PROMPT)
    for name in ("vcd", "icd", "avisc"):
        texts = []
        for seed in (1, 1, 2):
            with parse_method(f"{name}:temperature=1.5:plausibility=0:seed={seed}")(model):
                texts.append(model.generate(inputs, max_new_tokens=8).texts)
        assert texts[0] == texts[1] != texts[2], name


def test_presets_name_their_source_and_are_shown():
    shown_methods = describe_methods()
    for name, entry in METHODS.items():
        for preset, found in entry.build.presets.items():
            method = parse_method(f"{name}:preset={preset}")
            assert all(getattr(method, key) == value for key, value in found.settings.items())
            assert len(found.source) > 8
            assert f"preset={preset}: " in shown_methods
    assert parse_method("vcd:preset=qwen-vl:alpha=0.5") == replace(parse_method("vcd:preset=qwen-vl"), alpha=0.5)
    with pytest.raises(ValueError, match=r"preset of OPERA is one of llava-1.5.*, got 'gpt'"):
        parse_method("opera:preset=gpt")
    with pytest.raises(ValueError, match="has no setting 'preset=x'"):
        parse_method("beams:preset=x")


def test_settings_that_cannot_act_are_refused():
    with pytest.raises(ValueError, match="noise_step of VCD acts with image_free=diffusion only"):
        parse_method("vcd:image_free=blank:noise_step=500")
    with pytest.raises(ValueError, match="recent of OPERA acts with variant=paper or vocabulary only"):
        parse_method("opera:recent=10")


def test_vhr_with_the_same_heads_for_every_image(model, pictures):
    inputs = model.inputs(pictures[:2], PROMPT)
    method = VHR(heads="L1H1+L5H2")
    chosen = method.select(model, inputs).heads
    assert chosen.sum().item() == 4
    assert chosen[:, 1, 1].all()
    with method(model):
        found = model.generate(inputs, max_new_tokens=8).texts
    with parse_method("edit:heads=L1H1+L5H2:op=scale:factor=2")(model):
        assert model.generate(inputs, max_new_tokens=8).texts == found
    with pytest.raises(ValueError, match="heads 0 to 7"):
        VHR(heads="L1H9").check(model)
