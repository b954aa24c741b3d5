"""stdout that can't be written is told as that; a reader who has gone away is no fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOSSY = [sys.executable, "-m", "lossy_mlflow"]


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": request.param}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["hparams", "list"], ["--help"]], ids=" ".join)
def test_a_full_disk_under_stdout_is_an_error_without_a_traceback(
    words: list[str], environment: dict[str, str]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*LOSSY, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "lossy: The output can't be written: No space left on device.",
        "  Send stdout to another place.",
    ]


def test_a_reader_who_has_read_enough_ends_nothing_and_hears_no_complaint(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """What the user's own code prints before and after its reader has gone is in nobody's way either."""
    file = tmp_path / "mine.py"
    file.write_text("print('hello')\n")
    process = subprocess.Popen(
        [*LOSSY, "hparams", "list", "--user-code", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_a_closed_stdout_is_no_fault() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *LOSSY, "hparams", "list"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
