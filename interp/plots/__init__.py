"""Figures by subject; each function draws on given or new axes and returns them (all of them, if several)."""

from interp.plots.attention import bars, overlay, sparsity_curves
from interp.plots.heads import head_heatmap, patching_heatmap, predicted_against
from interp.plots.lens import PlacedWord, logit_lens, words_over_picture
from interp.plots.methods import against_controls, chair_against, method_matrix, operating_curve
from interp.plots.redraw import (
    draw_ablation,
    draw_across,
    draw_attention,
    draw_causal,
    draw_cause,
    draw_doses,
    draw_sinks,
    draw_study,
    draw_sweep,
    redraw,
)
from interp.plots.style import CORRECT, HALLUCINATED, SHARE, limits_of, save
from interp.plots.sweeps import Curve, dose_curve, sweep_curves
from interp.plots.words import roc_curve, swap_losses, t_vhd_along, t_vhd_histogram, t_vhd_histograms

__all__ = [
    "CORRECT",
    "HALLUCINATED",
    "SHARE",
    "Curve",
    "PlacedWord",
    "against_controls",
    "bars",
    "chair_against",
    "dose_curve",
    "draw_ablation",
    "draw_across",
    "draw_attention",
    "draw_causal",
    "draw_cause",
    "draw_doses",
    "draw_sinks",
    "draw_study",
    "draw_sweep",
    "head_heatmap",
    "limits_of",
    "logit_lens",
    "method_matrix",
    "operating_curve",
    "overlay",
    "patching_heatmap",
    "predicted_against",
    "redraw",
    "roc_curve",
    "save",
    "sparsity_curves",
    "swap_losses",
    "sweep_curves",
    "t_vhd_along",
    "t_vhd_histogram",
    "t_vhd_histograms",
    "words_over_picture",
]
