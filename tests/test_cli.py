"""The command line's front door: quick, quiet, helpful; and the lazy package behind it."""

import importlib
import os
import pkgutil
import resource
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import interp
from interp import cli
from interp.cli.commands import COMMANDS, Command

HEAVY = ("torch", "transformers", "nnsight", "matplotlib", "numpy", "tyro")


def run(*args: str, code: str | None = None, **more) -> subprocess.CompletedProcess:
    """The command line, or some code, in a process of its own."""
    what = ["-c", code] if code else ["-m", "interp", *args]
    return subprocess.run([sys.executable, *what], capture_output=True, text=True, timeout=600, **more)


def seconds_of_cpu(*args: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*args, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("asked", ["['--help']", "['--version']", "['studdy']", "['testbed', '--help']", "[]"])
def test_the_front_door_imports_nothing_heavy(asked):
    code = (
        f"import sys, interp.cli\ntry: interp.cli.main({asked})\nexcept SystemExit: pass\n"
        f"sys.exit(repr([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    assert run(code=code).stderr.splitlines()[-1] == "[]"


def test_help_takes_little_time():
    assert min(seconds_of_cpu("--help") for _ in range(3)) < 0.5


def test_a_command_imports_no_other():
    code = (
        "import sys, interp.cli\ntry: interp.cli.main(['chair', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(repr([m for m in ('torch', 'transformers', 'matplotlib', 'interp.cli.running') if m in sys.modules]))"
    )
    assert run(code=code).stderr.splitlines()[-1] == "[]"


def test_help_lists_every_command_and_version_is_the_package_s(capsys):
    cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.startswith(f"  {name} ") and line.endswith(command.about) for line in lines)
        assert command.about.endswith(".")
    assert max(map(len, lines)) <= 120
    cli.main(["--version"])
    assert capsys.readouterr().out == f"interp {interp.__version__}\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("studdy", "did you mean 'study'?"),
        ("testbed trian", "did you mean 'testbed train'?"),
        ("export", "did you mean 'testbed export'?"),
        ("zzz", "there is no command 'zzz'; `interp --help`"),
        ("--limit", "there is no command '--limit'"),
    ],
)
def test_an_unknown_command_is_one_line(asked, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(asked.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("asked", ["", "testbed", "bench"])
def test_half_a_command_shows_what_there_is(asked, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(asked.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    shown = {name for name in COMMANDS if f"  {name} " in error}
    assert shown == {name for name in COMMANDS if name.startswith(asked)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_two_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*name.split(), "--help"])
    assert not end.value.code
    *above, title, first, second = capsys.readouterr().out.splitlines()
    assert f"usage: interp {name}" in above[0]
    assert (title, first.strip(), second.strip()) == ("examples:", *COMMANDS[name].examples)
    for example in COMMANDS[name].examples:
        words = shlex.split(example.partition("|")[0])
        assert words[0] == "interp"
        if "--help" not in words:
            assert callable(cli.parse(words[1:]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--limt 3", "Unrecognized options: --limt, 3 Did you mean --limit?"),
        ("--limit nan", "--limit takes {None}|INT, got 'nan'."),
        ("--seed 1.5", "--seed takes a whole number, got '1.5'."),
        ("--limit", "Missing value for argument '--limit'."),
        ("--task x", "invalid choice 'x' for argument '--task'."),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(asked, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["study", *asked.split()])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interp: {said}")
    assert line.endswith("`interp study --help` shows the options")


def command(monkeypatch, act) -> list[str]:
    """A command `try` whose call is `act`."""
    monkeypatch.setitem(COMMANDS, "try", Command("given:Try", "Try.", ("", "")))
    monkeypatch.setitem(sys.modules, "given", SimpleNamespace(Try=lambda: act))
    return ["try"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no\n such  thing"), 2, "interp: no such thing\n"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "interp: [Errno 2] No such file: 'x.json'\n"),
        (KeyboardInterrupt(), 130, "interp: interrupted; "),
    ],
)
def test_mistakes_and_interrupts_are_one_line(monkeypatch, capsys, error, code, said):
    def act():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.main(command(monkeypatch, act))
    assert end.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == 1


@pytest.mark.parametrize("code", [None, 0, 1])
def test_a_command_s_exit_code_is_the_process_s(monkeypatch, code):
    args = command(monkeypatch, lambda: code)
    if not code:
        assert cli.main(args) is None
        return
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == code


def test_a_closed_pipe_is_silent():
    for args in (["--help"], ["chair", "--help"]):
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "interp", *args], stdout=write, stderr=subprocess.PIPE, text=True, timeout=600
            )
        finally:
            os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_told(monkeypatch, tmp_path, capfd):
    def act():
        raise BrokenPipeError("a worker's")

    with pytest.raises(SystemExit) as end:
        cli.main(command(monkeypatch, act))
    assert end.value.code == 2
    assert capfd.readouterr().err == "interp: a worker's\n"


def test_an_interrupt_during_imports_is_one_line(tmp_path):
    """A module that swallows KeyboardInterrupt, as C extensions do, stands for those that take seconds to import."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    for i in range(10**7): pass\n"
        "except KeyboardInterrupt:\n    raise ImportError('half imported')\n"
    )
    code = (
        "import signal, sys; from interp.cli import main; from interp.cli.commands import COMMANDS, Command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's parent may ignore it
        f"sys.path.insert(0, {str(tmp_path)!r}); COMMANDS['try'] = Command('slow:Try', '', ('', '')); main(['try'])"
    )
    done = run(code=code)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("interp: interrupted; ")
    assert done.stderr.count("\n") == 1


def test_interrupts_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    cli.parse(["chair", "x.jsonl"])
    assert signal.getsignal(signal.SIGINT) is before


def test_import_interp_imports_no_more_than_it_must():
    code = f"import sys, interp\nsys.exit(repr([m for m in {HEAVY!r} if m in sys.modules]))"
    assert run(code=code).stderr.splitlines()[-1] == "[]"


def test_every_part_is_reachable_and_every_name_resolves():
    parts = {m.name for m in pkgutil.iter_modules(interp.__path__) if m.ispkg}
    assert (
        set(interp._HOMES) | (parts - {"bench", "cli", "integrations"}) | {"plots"}
        == set(interp.__all__)
        <= set(dir(interp))
    )
    for name in interp.__all__:
        home = interp._HOMES.get(name)
        expected = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"interp.{name}")
        assert interp.__getattr__(name) is expected
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = interp.nothing
