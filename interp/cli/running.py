"""Commands that run over a data set; their options are the fields of the configurations."""

import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

from interp.experiments.ablation import AblateConfig, run_ablate
from interp.experiments.attention import SurveyConfig, run_survey
from interp.experiments.attribution import CausalConfig, run_causal
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.pope import PopeConfig, run_pope
from interp.experiments.sweep import SweepConfig, run_sweep
from interp.interventions import describe_methods


@dataclass(frozen=True)
class Methods:
    """List every method with its parameters, citation, cost, and the setting that changes nothing."""

    def __call__(self) -> None:
        """Print the list."""
        print(describe_methods())


@dataclass(frozen=True)
class Study(PopeConfig):
    """Caption images with several methods, look at the heads with and without the image, and compare.

    With --task pope: put yes/no questions to the model, with the same methods.
    """

    task: Literal["captions", "pope"] = "captions"
    """captions: CHAIR and T-VHD; pope: answers to yes/no questions."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Run the study and print its table."""
        settings: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(PopeConfig)}
        if self.task == "pope":
            summary = run_pope(PopeConfig(**settings))
            if summary is None:
                return
        else:
            own = {f.name for f in fields(StudyConfig)}
            if self.questions or self.images or self.from_logits:
                raise ValueError("--questions, --images and --from-logits belong to --task pope")
            summary = run_study(StudyConfig(**{k: v for k, v in settings.items() if k in own}))
        print(summary)
        if summary.failures:
            sys.exit(1)


@dataclass(frozen=True)
class Sweep(SweepConfig):
    """Study methods at every combination of some parameters' values and draw the curves."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Run the sweep and print its table."""
        print(run_sweep(SweepConfig(**vars(self))))


@dataclass(frozen=True)
class Ablate(AblateConfig):
    """Edit a set of heads and as many random ones: hallucination, recall, POPE, log-likelihood."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Measure and print the table."""
        print(run_ablate(AblateConfig(**vars(self))))


@dataclass(frozen=True)
class Attention(SurveyConfig):
    """Sparsity curves, sinks and attention to the image, measured while captions are written."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Run the survey and print its tables."""
        print(run_survey(SurveyConfig(**vars(self))))


@dataclass(frozen=True)
class Causal(CausalConfig):
    """What each head does for hallucinated and for correct words, and how heads rank; writes heads.npz."""

    def __post_init__(self) -> None:
        """Nothing: checked when called, so that a mistake is told in one line and not by the parser."""

    def __call__(self) -> None:
        """Measure and print the tables."""
        print(run_causal(CausalConfig(**vars(self))))
