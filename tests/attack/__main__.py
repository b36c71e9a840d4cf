"""`cd tests && python -m attack --minutes 30 --out attack.json`: attacks in random order, then kills, in that time."""

import argparse
import os
import random
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before anything imports tqdm

from attack.attacks import GROUPS
from attack.kills import KILLED, Killed, kill
from attack.ledger import Attack, Ledger


def main() -> None:
    """Attack, print the table, and write everything as JSON."""
    parser = argparse.ArgumentParser(description="Attack interp: bad inputs, misuses, kills.")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for attacks; kills get half of it")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS), help="which attacks")
    parser.add_argument("--kills", nargs="*", default=list(KILLED), choices=list(KILLED), help="which commands to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose name or group holds this text")
    parser.add_argument("--out", type=Path, default=Path("attack.json"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    start, ledger, killed = time.monotonic(), Ledger(), list[Killed]()
    end = start + 60 * chosen.minutes
    attacks: list[Attack] = [a for name in chosen.groups for a in GROUPS[name]()]
    attacks = [a for a in attacks if chosen.only in f"{a.group} {a.name}"]
    if chosen.groups != ["python"]:
        random.Random(chosen.seed).shuffle(attacks)
    with tempfile.TemporaryDirectory() as place:
        for number, attack in enumerate(attacks):
            if time.monotonic() > ((start + end) / 2 if chosen.kills else end):
                break
            outcome = ledger.run(attack, Path(place) / str(number))
            if outcome.end in ("traceback", "accepted") or outcome.leak:
                print(f"{outcome.end}: {outcome.group}: {outcome.name}: {outcome.said}", flush=True)
        while chosen.kills and time.monotonic() < end:
            name = chosen.kills[len(killed) % len(chosen.kills)]
            killed.append(kill(name, Path(place) / f"kill-{len(killed)}", chosen.seed + len(killed), end))
            print(killed[-1], flush=True)
    print(f"\n{len(ledger.outcomes)} of {len(attacks)} attacks\n{ledger.table()}")
    if killed:
        print(f"{sum(k.kills for k in killed)} kills in {len(killed)} runs; ended otherwise: "
              f"{sum(not k.same for k in killed)}")  # fmt: skip
    ledger.write(chosen.out, killed)


if __name__ == "__main__":
    main()
