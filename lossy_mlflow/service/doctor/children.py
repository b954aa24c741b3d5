"""What is asked in a process of its own, because it loads torch or runs the user's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lossy_mlflow.errors import LossyError
from lossy_mlflow.service.doctor.report import Seen, State

WITHIN_S = 25.0

# A GPU that torch sees may be one that its build can't compute on.
_TORCH = """
import importlib.util, json
answer = {}
if importlib.util.find_spec("torch"):
    import torch
    answer = {"version": torch.__version__, "built_for": torch.version.cuda or torch.version.hip, "gpus": []}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            try:
                fault = "" if (torch.ones(8, device=f"cuda:{i}") * 2).sum().item() == 16 else "it computes wrongly"
            except Exception as error:
                fault = f"{type(error).__name__}: {error}".splitlines()[0]
            answer["gpus"].append({"name": torch.cuda.get_device_name(i), "fault": fault})
print(json.dumps(answer))
"""
_USER_CODE = """
import json, sys
from lossy_mlflow.errors import LossyError
from lossy_mlflow.user_code import load_user_code
printed, sys.stdout = sys.stdout, sys.stderr
try:
    answer = {"file": str(load_user_code(None))}
except LossyError as error:
    answer = {"what": error.what, "hint": error.hint}
print(json.dumps(answer), file=printed)
"""


class Child:
    """One question, asked when it is made; the answer is waited for when it is wanted."""

    def __init__(self, code: str | None, judge: Callable[[dict[str, Any]], Seen]) -> None:
        """`code`: what prints the answer as JSON in its last line; None where there is nothing to ask."""
        self._judge = judge
        self._until = time.monotonic() + WITHIN_S
        self._process = (
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            if code
            else None
        )

    @classmethod
    def torch(cls) -> Child:
        return cls(_TORCH, _judge_torch)

    @classmethod
    def user_code(cls) -> Child:
        return cls(_USER_CODE if os.environ.get("LOSSY_USER_CODE") else None, _judge_user_code)

    def seen(self) -> Seen:
        return self._judge(self._answer() if self._process else {})

    def end(self) -> None:
        """Nothing of it is left behind."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        try:
            out, err = self._process.communicate(timeout=max(0.1, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise LossyError(
                f"not loaded within {WITHIN_S:.0f} s",
                "Try it by hand, in the same folder: it may be what it does as it loads, or the disk it lies on.",
            ) from None
        try:
            answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            last_words = next(iter(reversed(err.splitlines())), f"exit code {self._process.returncode}")
            raise LossyError(f"it can't be loaded: {last_words[:200]}", "Install it anew.") from None
        return answer


def _judge_torch(answer: dict[str, Any]) -> Seen:
    if not answer:
        return Seen(
            State.OK,
            "not installed: fine where decoders are only looked up, downloaded or promoted;"
            " to train or to load one: pip install 'lossy-mlflow[train]'",
        )
    version, gpus = f"torch {answer['version']}", answer["gpus"]
    if faults := [f"{gpu['name']}: {gpu['fault']}" for gpu in gpus if gpu["fault"]]:
        return Seen(
            State.WARN,
            f"{version} can't use a GPU that it sees: {'; '.join(faults)}",
            "Free it, or install the build of torch for it: https://pytorch.org/get-started    Meanwhile: --device cpu",
        )
    if gpus:
        return Seen(
            State.OK, f"{version}, CUDA {answer['built_for']}: {_counted([gpu['name'] for gpu in gpus])}"
        )
    # The driver's own device: it is there also where torch can't speak to it.
    if Path("/dev/nvidia0").exists():
        build = f"is built for CUDA {answer['built_for']}" if answer["built_for"] else "is the build for CPUs"
        return Seen(
            State.WARN,
            f"this machine has a GPU that torch doesn't see; {version} {build}",
            "Compare with the driver's version (nvidia-smi), and see CUDA_VISIBLE_DEVICES; builds:"
            " https://pytorch.org/get-started",
        )
    return Seen(State.OK, f"{version}, no GPU: trainings run on the CPU")


def _counted(names: list[str]) -> str:
    return ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )


def _judge_user_code(answer: dict[str, Any]) -> Seen:
    if not answer:
        return Seen(State.SKIPPED, "LOSSY_USER_CODE isn't set: models and sets of the package alone")
    if "what" in answer:
        return Seen(State.FAIL, answer["what"], answer["hint"])
    return Seen(State.OK, f"{answer['file']} loads (LOSSY_USER_CODE)")
