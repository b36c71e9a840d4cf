"""Commands that run over a data set; their options are the fields of the configurations and of their parts."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from interp.cli.options import DATA, RUN, TESTBED, Unchecked, UncheckedData, UncheckedModel, UncheckedRun, checked, flat
from interp.experiments.ablation import AblateConfig, run_ablate
from interp.experiments.attention import SurveyConfig, run_survey
from interp.experiments.attribution import CausalConfig, run_causal
from interp.experiments.captions import StudyConfig, run_study
from interp.experiments.cause import CauseConfig, run_cause
from interp.experiments.config import DataConfig
from interp.experiments.pope import PopeConfig, run_pope
from interp.experiments.sweep import SweepConfig, run_sweep
from interp.interventions import describe_methods

_ABLATE_DATA = UncheckedData(**vars(AblateConfig.data))
_SURVEY_DATA, _SURVEY_RUN = UncheckedData(**vars(SurveyConfig.data)), UncheckedRun(**vars(SurveyConfig.run))
_CAUSAL_DATA, _CAUSAL_RUN = UncheckedData(**vars(CausalConfig.data)), UncheckedRun(**vars(CausalConfig.run))

_CAUSE_DATA, _CAUSE_RUN = UncheckedData(**vars(CauseConfig.data)), UncheckedRun(**vars(CauseConfig.run))


@runtime_checkable
class Report(Protocol):
    """What an experiment gives back: a text, and how many items failed."""

    @property
    def failures(self) -> int:
        """How many."""
        ...


def shown(report: Report | None) -> int:
    """Print a report and give the exit code: 1 where items failed; nothing in the other processes of a launch."""
    if report is None:
        return 0
    print(report)
    return 1 if report.failures else 0


@dataclass(frozen=True)
class Methods:
    """List every method with its parameters, citation, cost, and the setting that changes nothing."""

    def __call__(self) -> None:
        """Print the list."""
        print(describe_methods())


@flat
@dataclass(frozen=True)
class Study(Unchecked, StudyConfig):
    """Caption images with several methods, look at the heads with and without the image, and compare.

    With --task pope: put yes/no questions to the model, with the same methods.
    """

    model: UncheckedModel = TESTBED
    data: UncheckedData = DATA
    run: UncheckedRun = RUN
    task: Literal["captions", "pope"] = "captions"
    """captions: CHAIR and T-VHD; pope: answers to yes/no questions."""
    questions: str | None = None
    """With --task pope: POPE's questions as JSONL; the testbed's adversarial ones if None."""
    images: str | None = None
    """With --task pope: folder of the images that the questions name."""
    from_logits: bool = False
    """With --task pope: read answers from the logits of Yes and No instead of the text."""

    def __call__(self) -> int:
        """Run the study and print its table."""
        if self.task == "pope":
            if (self.top_k, self.max_new_tokens) != (StudyConfig.top_k, StudyConfig.max_new_tokens):
                raise ValueError("--top-k and --max-new-tokens belong to --task captions")
            if self.data.prompt != DataConfig.prompt:
                raise ValueError("--prompt belongs to --task captions; --task pope asks its questions")
            if self.operating_curve:
                raise ValueError("--operating-curve belongs to --task captions")
            return shown(run_pope(checked(self, PopeConfig)))
        if self.questions or self.images or self.from_logits:
            raise ValueError("--questions, --images and --from-logits belong to --task pope")
        return shown(run_study(checked(self, StudyConfig)))


@flat
@dataclass(frozen=True)
class Sweep(Unchecked, SweepConfig):
    """Study methods at every combination of some parameters' values and draw the curves."""

    model: UncheckedModel = TESTBED
    data: UncheckedData = DATA
    run: UncheckedRun = RUN

    def __call__(self) -> int:
        """Run the sweep and print its table."""
        return shown(run_sweep(checked(self, SweepConfig)))


@flat
@dataclass(frozen=True)
class Ablate(Unchecked, AblateConfig):
    """Edit a set of heads and as many random ones: hallucination, recall, POPE, log-likelihood."""

    model: UncheckedModel = TESTBED
    data: UncheckedData = _ABLATE_DATA
    run: UncheckedRun = RUN

    def __call__(self) -> int:
        """Measure and print the table."""
        return shown(run_ablate(checked(self, AblateConfig)))


@flat
@dataclass(frozen=True)
class Attention(Unchecked, SurveyConfig):
    """Sparsity curves, sinks and attention to the image, measured while captions are written."""

    model: UncheckedModel = TESTBED
    data: UncheckedData = _SURVEY_DATA
    run: UncheckedRun = _SURVEY_RUN

    def __call__(self) -> int:
        """Run the survey and print its tables."""
        return shown(run_survey(checked(self, SurveyConfig)))


@flat
@dataclass(frozen=True)
class Causal(Unchecked, CausalConfig):
    """What each head does for hallucinated and for correct words, and how heads rank; writes heads.npz."""

    model: UncheckedModel = TESTBED
    data: UncheckedData = _CAUSAL_DATA
    run: UncheckedRun = _CAUSAL_RUN

    def __call__(self) -> int:
        """Measure and print the tables."""
        return shown(run_causal(checked(self, CausalConfig)))


@flat
@dataclass(frozen=True)
class Cause(Unchecked, CauseConfig):
    """Whether object words follow the picture or the text before them, and whether first-step VHD is VHD at words."""

    model: UncheckedModel = TESTBED
    data: UncheckedData = _CAUSE_DATA
    run: UncheckedRun = _CAUSE_RUN

    def __call__(self) -> int:
        """Measure and print the tables."""
        return shown(run_cause(checked(self, CauseConfig)))
