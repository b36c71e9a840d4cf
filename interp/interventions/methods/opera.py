"""OPERA: a penalty on trusting summary tokens in beam search, and a way back where they are trusted too long.

Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024, arXiv 2311.17911.

Paper (its method section could not be read here again): `omega[i, j]` is the largest probability over the heads of the
last layer with which token i attends to token j, rows normalised again; `phi` the largest over columns j of the product
over rows i >= j of `sigma omega[i, j]` among generated tokens; a softmax of `H(h) - alpha phi` over the candidates.
Where the best columns of the last tokens coincide `threshold` times, at a place s, the search goes back to the tokens
up to s and takes another one: `rollbacks` times at most at a place, then one place earlier, never further back.

Released code (shikiw/OPERA @5fc3aa4, which gave the paper's numbers; `variant=released`, the default): the product is
multiplied by 1e-7 and held in float16, hence 0 below 3e-8 and infinite from 65520 on; in a text of at most ten tokens
the penalty is minus the candidate's attention to the picture, a reward; places are counted over the whole text, must
agree in all beams more than `threshold` times and lie at 10 or later; a choice after a way back is over the whole
vocabulary, and not penalised; nothing keeps it from going further back.

`variant=paper` is the text above, with the last `recent` tokens, which the paper does not give.
`variant=vocabulary` is how interp read it before: rows as they are, probabilities over the whole vocabulary.  Without
the factor penalties have a median of millions, and texts break.  Only there is `alpha=0:rollbacks=0` beam search: the
other two normalise among the candidates.  Each prompt is searched by itself.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from interp.interventions.base import Count, Method, Preset, Weight, Within
from interp.interventions.primitives.continuation import Continuation
from interp.interventions.primitives.opera_paper import PaperSearch
from interp.interventions.primitives.opera_released import ReleasedSearch, Rules
from interp.interventions.primitives.rereading import LastLayer, Reader, searched
from interp.models import LVLM, GenerateOptions, Inputs, Searched

RECENT = 20
RELEASED = Preset({}, "shikiw/OPERA README and chair_eval.py @2a0a234: one set for all models, 512 new tokens")


@dataclass(frozen=True)
class OPERA(Method):
    """Beam search that distrusts summary tokens.

    `alpha`: weight of the over-trust penalty; `sigma`: scale of the attention in it; `candidates`: tokens tried for
    each beam; `threshold` coincidences send the search back, `rollbacks` times at most; `recent`: among how many
    tokens, in the paper's text (auto: 20).
    """

    variant: Literal["released", "paper", "vocabulary"] = "released"
    num_beams: Annotated[int, Within(1, 1000)] = 5
    candidates: Annotated[int, Within(1, 1000)] = 5
    alpha: Weight = 1.0
    sigma: Annotated[float, Within(0, 1e6, above=True)] = 50.0
    threshold: Count = 15
    recent: Annotated[int | None, Within(1, 100_000)] = None
    rollbacks: Annotated[int, Within(0, 1000)] = 5

    citation: ClassVar = "Huang et al., CVPR 2024, arXiv 2311.17911"
    cost: ClassVar = "a token for each candidate of each beam"
    off: ClassVar = "num_beams=1:alpha=0:rollbacks=0"
    passes: ClassVar = {"main": "its own passes are those from which the text is written"}
    presets: ClassVar = dict.fromkeys(("llava-1.5", "instructblip", "minigpt-4", "shikra"), RELEASED)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_idle(self.variant != "released", "variant=paper or vocabulary", "recent")
        if self.candidates < self.num_beams:
            raise ValueError(f"expected at least as many candidates as beams, got {self.candidates} < {self.num_beams}")

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Search in place of generate's own loop."""
        if self.num_beams == 1 and not self.alpha and not self.rollbacks:
            return nullcontext(GenerateOptions(needs_cache=True))
        return nullcontext(GenerateOptions(search=partial(self._search, model, inputs)))

    def _search(
        self, model: LVLM, inputs: Inputs, processor: LogitsProcessorList, config: GenerationConfig
    ) -> Searched:
        """Search all prompts together, each by itself."""
        if (config.num_beams or 1) > 1 or config.do_sample:
            raise ValueError("OPERA has beams of its own (num_beams=), expected neither num_beams nor do_sample")
        limit = config.max_length - inputs.input_ids.shape[1]
        together = Continuation(model, inputs, "main")
        logits, last = together.start(), LastLayer(model)
        eos = torch.tensor([config.eos_token_id or []], device=logits.device).flatten().long()
        searches = []
        for row in range(len(inputs.input_ids)):
            prompt = together.chosen(torch.tensor([row], device=logits.device))
            reader = Reader(last, prompt, logits[row : row + 1], inputs.image_mask[row], self.variant != "vocabulary")
            searches.append(self._search_of(inputs, row, reader, processor, eos))
        with last.watching():
            texts = searched([search.run(limit) for search in searches])
        layers = [layer for search in searches for layer in search.texts.text.cache.layers]
        longest = max(len(text) for text in texts)
        filler = int(eos[0]) if len(eos) else inputs.pad_token_id
        rows = torch.stack([torch.nn.functional.pad(t, (0, longest - len(t)), value=filler) for t in texts])
        return Searched(torch.cat([inputs.input_ids, rows], 1), layers)

    def _search_of(
        self, inputs: Inputs, row: int, reader: Reader, processor: LogitsProcessorList, eos: Tensor
    ) -> ReleasedSearch | PaperSearch:
        """The search over one prompt."""
        prompt = inputs.input_ids[row : row + 1]

        def processed(ids: Tensor, scores: Tensor) -> Tensor:
            full: Any = torch.cat([prompt.expand(len(ids), -1), ids], 1)
            return processor(full, scores)

        n_text = int(inputs.attention_mask[row].sum()) - int(inputs.image_mask[row].sum())
        rules = Rules(
            self.num_beams,
            self.candidates,
            self.alpha,
            self.sigma,
            self.threshold,
            self.rollbacks,
            eos,
            n_text + len(inputs.pictures[row]) if row < len(inputs.pictures) else n_text,
        )
        if self.variant == "released":
            return ReleasedSearch(rules, reader, processed)
        recent = RECENT if self.recent is None else self.recent
        return PaperSearch(rules, recent, self.variant == "paper", reader, processed)
