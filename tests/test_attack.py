"""A part of the attacks (`python -m attack`), drawn by seed: no traceback, nothing wrong accepted, no leaked word."""

import random
import sys
from collections.abc import Sequence

import pytest
from attack.attacks import GROUPS
from attack.ledger import Attack, Ledger

DRAWN = {"files": 60, "pictures": 6, "models": 12}
"""How many attacks of each group; the others' are run by hand."""


def drawn(attacks: Sequence[Attack], n: int) -> list[Attack]:
    return random.Random(0).sample(list(attacks), n)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", DRAWN)
def test_attacks_are_refused_in_one_line(group, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ledger = Ledger()
    for number, attack in enumerate(drawn(list(GROUPS[group]()), DRAWN[group])):
        ledger.run(attack, tmp_path / str(number))
    assert not ledger.bad, ledger.table()


def test_the_ledger_sees_what_must_not_be(tmp_path, monkeypatch):
    """A command that raises, one that accepts and one that leaks are each told."""

    def command(args):
        if args[0] == "raise":
            raise KeyError("x")
        if args[0] == "leak":
            print("interp: 'NoneType' object has no attribute 'x'", file=sys.stderr)
            raise SystemExit(2)

    monkeypatch.setattr("attack.ledger.cli.main", command)
    ledger = Ledger()
    for name in ("raise", "accept", "leak"):
        ledger.run(Attack("g", name, lambda _, name=name: [name]), tmp_path / name)
    assert [(o.end, o.leak) for o in ledger.outcomes] == [("traceback", False), ("accepted", False), ("refused", True)]
    assert len(ledger.bad) == 3
    assert ledger.table().splitlines()[-1].split() == ["all", "3", "1", "0", "0", "1", "1", "1"]
