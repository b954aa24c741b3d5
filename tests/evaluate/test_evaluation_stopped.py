"""An evaluation that is stopped goes on in the same run, and gives the same numbers as one that was not."""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Workplace, wait_for
from tests.evaluate.test_evaluate import _inputs, _runs

WORK = (
    *("--set", "rd.max_beta=1000", "--set", "rd.n_betas=30", "--set", "rd.anneal_steps=600"),
    *("--set", "rd.batch_size=24", "--set", "rd.n_batch=2", "--set", "rd.n_chains=8"),
    *("--set", "rd.gap_beta_indexes=[-1]", "--set", "rd.gap_images=8"),
)


def _numbers(curve: dict[str, Any]) -> dict[str, Any]:
    return {name: curve[name] for name in ("beta", "rate", "distortion", "log_z", "ess", "gap", "acceptance")}


def started_and_saved(workplace: Workplace, client: Any, *words: str) -> subprocess.Popen[str]:
    """An evaluation of vae10_digits that has a state to go on from."""
    process = workplace.start("evaluate", "vae10_digits", *words)
    wait_for(
        lambda: any("training_state" in run.data.tags for run in _runs(client, "vae10_digits")), 90, "a state"
    )
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.campaign)])
def test_it_goes_on_with_the_same_numbers(
    workplace: Workplace, client: Any, saves_often: Path, number: signal.Signals
) -> None:
    process = started_and_saved(workplace, client, *WORK)
    time.sleep(random.uniform(0, 1))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number is signal.SIGKILL else 143), err
    (stopped,) = _runs(client, "vae10_digits")
    if number is signal.SIGTERM:
        assert stopped.info.status == "KILLED"
        assert "the same command again" in err
    said = workplace.lossy("plot", "vae10_digits")
    assert said.returncode == 3
    assert "vae10_digits has no finished evaluation; one is " in said.stderr
    gone_on = workplace.json(*shlex.split(said.stderr.partition("o on with it: lossy ")[2]))
    (run,) = _runs(client, "vae10_digits")
    assert run.info.run_id == stopped.info.run_id
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "rate")) == 30
    assert [len(inputs) for inputs in _inputs(client, run.info.run_id)] == [1, 1]

    client.set_tag(run.info.run_id, "evaluation_sha256", "another")
    whole = workplace.json("evaluate", "vae10_digits", *WORK)
    assert len(_runs(client, "vae10_digits")) == 2
    assert _numbers(gone_on) == _numbers(whole)


def test_it_goes_on_where_another_kind_of_device_has_left_it(
    workplace: Workplace, client: Any, saves_often: Path
) -> None:
    """A GPU's generator has a state of 16 bytes, which a CPU's can't go on from. The GPU's own tests do it with one."""
    ours = saves_often.read_text()
    saves_often.write_text(
        ours + "    import torch\n"
        "    whole = run.to_tensors\n"
        "    gpu = {'generator': torch.zeros(16, dtype=torch.uint8)}\n"
        "    run.to_tensors = lambda done: whole(done) | (gpu if done.generator is not None else {})\n"
    )
    process = started_and_saved(workplace, client, *WORK)
    process.kill()
    process.communicate(timeout=60)
    saves_often.write_text(ours)
    gone_on = workplace.json("evaluate", "vae10_digits", *WORK)
    (run,) = _runs(client, "vae10_digits")
    assert run.info.status == "FINISHED"
    client.set_tag(run.info.run_id, "evaluation_sha256", "another")
    whole = workplace.json("evaluate", "vae10_digits", *WORK)
    assert gone_on["log_z"] != whole["log_z"]
    # Within the noise of 8 chains an image, of which there are 48; a state that doesn't fit its betas is thousands off.
    assert all(abs(one - other) < 1 for one, other in zip(gone_on["rate"], whole["rate"], strict=True))


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "rd.n_betas=1", "--set", "rd.gap_beta_indexes=[]", "--set", "rd.anneal_steps=200000"),
        pytest.param(
            (
                *("--set", "rd.n_betas=2", "--set", "rd.batch_size=2", "--set", "rd.anneal_steps=60000"),
                *("--set", "rd.n_chains=2", "--set", "rd.gap_beta_indexes=[-1]", "--set", "rd.gap_images=50"),
            ),
            marks=pytest.mark.campaign,
        ),
    ],
    ids=["between two betas", "in a gap"],
)
def test_a_stop_is_heard_at_once(
    workplace: Workplace, client: Any, saves_often: Path, words: tuple[str, ...]
) -> None:
    """A batch system kills half a minute after its SIGTERM; what there is by then goes on."""
    process = started_and_saved(workplace, client, *words)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert time.monotonic() - begun < 15
    assert "its state is saved" in err
