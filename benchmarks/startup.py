"""How long a command takes to start, as a ratio to the imports that it can't do without, in the same run.

    python benchmarks/startup.py [--rounds 5]

Every command is a process of its own, on the same machine, in turn; the median of each is compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

IMPORT_MLFLOW = [sys.executable, "-c", "import mlflow"]
IMPORT_BOTH = [sys.executable, "-c", "import mlflow, torch"]
LOSSY = [sys.executable, "-m", "lossy_mlflow"]
FINISHED = [*LOSSY, "train", "vae10_digits", "--set", "model_train.epochs=1"]

# What, its command (a word that changes is put in for {}), its reference, the ratio to stay under.
CASES = [
    ("lossy --help", [*LOSSY, "--help"], "import mlflow", 0.2),
    ("lossy hparams list", [*LOSSY, "hparams", "list"], "import mlflow", 0.2),
    ("lossy train, finished", FINISHED, "import mlflow", 1.8),
    ("lossy train, one epoch", [*FINISHED, "--e-name", "{}"], "import mlflow, torch", 2.2),
]
REFERENCES = {"import mlflow": IMPORT_MLFLOW, "import mlflow, torch": IMPORT_BOTH}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        _seconds(FINISHED, folder)  # makes the database, and the run that is finished
        times: dict[str, list[float]] = {}
        for name, command in _in_turn(rounds):
            times.setdefault(name, []).append(_seconds(command, folder))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'command':<24}{'seconds':>9}{'ratio':>8}  {'to':<22}target")
    for name, _, reference, target in CASES:
        ratio = median[name] / median[reference]
        verdict = "" if ratio < target else "  missed"
        print(f"{name:<24}{median[name]:>9.2f}{ratio:>8.2f}  {reference:<22}< {target}{verdict}")


def _in_turn(rounds: int) -> Iterator[tuple[str, list[str]]]:
    for number in range(rounds):
        yield from REFERENCES.items()
        for name, command, _, _ in CASES:
            yield name, [word.format(number) for word in command]


def _seconds(command: list[str], folder: str) -> float:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"XDG_STATE_HOME": str(Path(folder, "state")), "MLFLOW_DISABLE_TELEMETRY": "true"}
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
