"""What heads do: causal scores for words, direct logit attribution, and the language-bias probe."""

from interp.causal.effects import attributed_contributions, exact_contributions
from interp.causal.lens import head_logits, word_ids
from interp.causal.probe import Cut, goes_on_to_name
from interp.causal.report import CausalReport
from interp.causal.run import CausalConfig, run_causal

__all__ = [
    "CausalConfig",
    "CausalReport",
    "Cut",
    "attributed_contributions",
    "exact_contributions",
    "goes_on_to_name",
    "head_logits",
    "run_causal",
    "word_ids",
]
