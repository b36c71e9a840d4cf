"""What attention does: statistics without maps, surveys over data sets, sinks, and overlays on pictures."""

from interp.attention.overlay import Overlay, overlay
from interp.attention.sinks import Inside, SinksConfig, inside, measure_sinks, sequences
from interp.attention.statistics import AttentionStatistics, attention_statistics, token_kinds
from interp.attention.survey import SurveyConfig, run_survey

__all__ = [
    "AttentionStatistics",
    "Inside",
    "Overlay",
    "SinksConfig",
    "SurveyConfig",
    "attention_statistics",
    "inside",
    "measure_sinks",
    "overlay",
    "run_survey",
    "sequences",
    "token_kinds",
]
