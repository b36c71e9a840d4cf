"""Scoring what models say against what is there; knows nothing of models."""

from interp.evaluate.bootstrap import Interval, differences, intervals
from interp.evaluate.chair import CaptionScore, Chair, chair, score_caption
from interp.evaluate.objects import Mention, ObjectParser
from interp.evaluate.pope import Pope, pope

__all__ = [
    "CaptionScore",
    "Chair",
    "Interval",
    "Mention",
    "ObjectParser",
    "Pope",
    "chair",
    "differences",
    "intervals",
    "pope",
    "score_caption",
]
