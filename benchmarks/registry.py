"""What decoders in the registry cost: loading a cached version, and publishing 10 MB to an `mlflow server` on this machine.

    python benchmarks/registry.py [--rounds 10]

Loading, once the reference is resolved, is compared with building the module and reading the version's safetensors file into it;
for information, with reading it into a module that is there already as well. Publishing is compared with
`mlflow.pytorch.log_model`, its requirements given and its weights pickled, which registers the model too: once without an outbox,
as its sender does it; once by an outbox, where the caller is the training thread.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import torch
from outbox import started_server
from safetensors.torch import load_file
from torch import nn

from lossy_mlflow.checkpoints import resolve
from lossy_mlflow.checkpoints.flavor import weights_and_tree
from lossy_mlflow.checkpoints.load import load_checkpoint, local_copy
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import Connection, connect, connected_for_logging

# Its decoder has 2.9 million parameters, of which 11.7 MB are stored.
HPARAM_SET = "vae10_mnist"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    tree = get_hparams(HPARAM_SET)
    decoder = decoder_of(build_model(tree))
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    stack = contextlib.ExitStack()
    # After what the outbox does at the program's end, for which it needs both.
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    os.environ |= {
        "MLFLOW_TRACKING_URI": stack.enter_context(started_server(Path(folder))),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "LOSSY_CACHE_DIR": f"{folder}/cache",
        "LOSSY_OUTBOX_DIR": f"{folder}/outbox",
    }
    n_bytes = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    print(f"{HPARAM_SET}, {n_bytes / 1e6:.1f} MB, {torch.get_num_threads()} threads")
    published = _publish(tree, decoder, rounds)
    loaded = _load(tree, decoder, 3 * rounds)
    _print("load a cached version", loaded["lossy"], "build, read file", loaded["build and file"], 1.5)
    _print("", loaded["lossy"], "read file alone", loaded["file"])
    _print("publish", published["lossy"], "log_model", published["log_model"], 1)
    _print("publish by the outbox", published["outbox"], "log_model", published["log_model"], 0.1)


def _print(what: str, seconds: float, reference: str, reference_seconds: float, target: float = 0) -> None:
    ratio = seconds / reference_seconds
    verdict = f"   target < {target}{'' if ratio < target else '  missed'}" if target else ""
    print(
        f"{what:<24}{seconds * 1e3:>9.1f} ms{ratio:>8.2f} x  "
        f"{reference:<18}{reference_seconds * 1e3:>9.1f} ms{verdict}"
    )


def _publish(tree: Hparam, decoder: nn.Module, rounds: int) -> dict[str, float]:
    weights = decoder.state_dict()
    epochs = iter(range(1, 1000))
    with contextlib.ExitStack() as stack:
        direct = connect()
        by_outbox = stack.enter_context(connected_for_logging())

        def to(connection: Connection, name: str) -> Callable[[], None]:
            run_id = _run(connection, name)
            publication = Publication(name, "", tree, {})
            return lambda: publish(connection, run_id, publication, Snapshot(next(epochs), 1.0, weights))

        def log_model() -> None:
            mlflow.set_tracking_uri(direct.uri)
            with mlflow.start_run(log_model_run):
                mlflow.pytorch.log_model(
                    decoder,
                    name="decoder",
                    registered_model_name="theirs",
                    pip_requirements=["torch"],
                    serialization_format="pickle",
                )

        log_model_run = _run(direct, "theirs")
        seconds = _in_turn(rounds, {"lossy": to(direct, "ours"), "log_model": log_model})
        # By itself: a sender is at work meanwhile.
        seconds |= _in_turn(rounds, {"outbox": to(by_outbox, "by_outbox")})
        while len(direct.client.search_model_versions("name = 'by_outbox'")) <= rounds:
            time.sleep(0.5)
        return seconds


def _run(connection: Connection, name: str) -> str:
    experiment = connection.client.get_experiment_by_name("benchmark")
    experiment_id = (
        experiment.experiment_id if experiment else connection.client.create_experiment("benchmark")
    )
    run_id: str = connection.client.create_run(experiment_id, tags={"label": name}).info.run_id
    return run_id


def _load(tree: Hparam, decoder: nn.Module, rounds: int) -> dict[str, float]:
    checkpoint = resolve("ours@last")
    weights, _ = weights_and_tree(local_copy(checkpoint))
    return _in_turn(
        rounds,
        {
            "lossy": lambda: load_checkpoint(checkpoint),
            "build and file": lambda: decoder_of(build_model(tree)).load_state_dict(load_file(weights)),
            "file": lambda: decoder.load_state_dict(load_file(weights)),
        },
    )


def _in_turn(rounds: int, cases: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each, after one round that doesn't count: what is loaded by the first call is loaded then."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            begin = time.perf_counter()
            case()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
