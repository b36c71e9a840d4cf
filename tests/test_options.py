"""Options of the commands that run over items: the same ones for all, by flat names, checked when called."""

from typing import Any, cast

import pytest

from interp import cli
from interp.cli.options import checked
from interp.cli.running import Study
from interp.experiments.captions import StudyConfig
from interp.experiments.config import DataConfig, ModelConfig, RunConfig

MODEL = {"model": "m", "revision": "r", "device": "cuda", "dtype": "bfloat16", "attn_implementation": "eager"}
MODEL |= {"quantization": "8bit"}
DATA: dict[str, Any] = {"data": "testbed:biased", "split": "train", "limit": 3, "ids": "f", "seed": 2, "prompt": "p"}
RUN: dict[str, Any] = {"batch_size": 4, "workers": 1, "out": "o"}
OVER_ITEMS = ("study", "sweep", "ablate", "attention", "causal")


@pytest.mark.parametrize("name", OVER_ITEMS)
def test_every_command_takes_them_all(name):
    given = [f"--{option.replace('_', '-')}={value}" for option, value in (MODEL | DATA | RUN).items()]
    command: Any = cli.parse([name, *given, "--trust-remote-code"])
    assert vars(command.model) == vars(ModelConfig(**cast(Any, MODEL), trust_remote_code=True))
    assert vars(command.data) == vars(DataConfig(**DATA))
    assert vars(command.run) == vars(RunConfig(**RUN))


@pytest.mark.parametrize("name", OVER_ITEMS)
def test_mistakes_are_told_when_called_in_one_line(name, capsys):
    for wrong, message in (
        (["--limit", "0"], "limit is a number of at least 1, got 0"),
        (["--seed", "-1"], "seed is a number of at least 0, got -1"),
        (["--workers", "-1"], "workers is a number of at least 0, got -1"),
        (["--dtype", "foo"], "dtype is float32, bfloat16, float16 or auto, got 'foo'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, *wrong])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_command_without_options_is_the_default_configuration():
    assert checked(Study(), StudyConfig) == StudyConfig()
