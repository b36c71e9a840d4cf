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
    draw_checkpoints,
    draw_doses,
    draw_emergence,
    draw_sinks,
    draw_study,
    draw_sweep,
    draw_unsink,
    redraw,
)
from interp.plots.sinks import layer_profiles, mass_against_addition, over_steps, sparsity_by_length, two_maps
from interp.plots.style import CORRECT, HALLUCINATED, SHARE, limits_of, save
from interp.plots.sweeps import Curve, dose_curve, sweep_curves
from interp.plots.verdicts import verdict_matrix
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
    "draw_checkpoints",
    "draw_doses",
    "draw_emergence",
    "draw_sinks",
    "draw_study",
    "draw_sweep",
    "draw_unsink",
    "head_heatmap",
    "layer_profiles",
    "limits_of",
    "logit_lens",
    "mass_against_addition",
    "method_matrix",
    "operating_curve",
    "over_steps",
    "overlay",
    "patching_heatmap",
    "predicted_against",
    "redraw",
    "roc_curve",
    "save",
    "sparsity_by_length",
    "sparsity_curves",
    "swap_losses",
    "sweep_curves",
    "t_vhd_along",
    "t_vhd_histogram",
    "t_vhd_histograms",
    "two_maps",
    "verdict_matrix",
    "words_over_picture",
]
