"""Which files a run of ours keeps, beside what anybody logs into it, and what its tags say of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

HPARAMS_FILE = "hparams.json"
STATE_TAG = "training_state"
STATE_FOLDER = "training_state"
STATE_SLOTS = ("a.safetensors", "b.safetensors")


@dataclass(frozen=True, slots=True)
class StoredState:
    """What the tag says: which file of the folder is the newest training state, its digest, and the epoch after which it was."""

    file: str
    sha256: str
    epoch: int


def stored_state(tag: str) -> StoredState | None:
    """None where the tag is not what a training has written: anybody can edit a tag."""
    try:
        stored = StoredState(**json.loads(tag))
    except (ValueError, TypeError):
        return None
    return stored if stored.file in STATE_SLOTS else None


def files_of_ended_run(tags: Mapping[str, str], status: str) -> dict[str, str]:
    """The paths of the files that a run of ours with these tags must have, each with its SHA-256, or '' where no tag says it.

    A run that has not ended may have them in somebody's outbox still; one that failed at its start has none.
    """
    files: dict[str, str] = {}
    if "same_as" in tags:
        return files
    if status == "FINISHED" and "hparams_sha256" in tags:
        files[HPARAMS_FILE] = ""
    if stored := stored_state(tags.get(STATE_TAG, "")):
        files[f"{STATE_FOLDER}/{stored.file}"] = stored.sha256
    return files
