"""What a person writes to mean a decoder: NAME, NAME@ALIAS, NAME/VERSION, and MLflow's models:/ URIs of the same. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lossy_mlflow.errors import UsageError

_FORMS = "NAME, NAME@ALIAS, NAME/VERSION or models:/NAME@ALIAS, models:/NAME/VERSION"
BEST_STEP, LAST_STEP = -2, -1
_PREFIX = "models:/"


@dataclass(frozen=True, slots=True)
class Reference:
    """A registered model's name, and at most one of an alias and a version number."""

    name: str
    alias: str | None = None
    version: int | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return self.name

    @property
    def is_plain(self) -> bool:
        """Whether it is a name alone, which leaves open which of its versions is meant."""
        return self.alias is None and self.version is None


def parse_reference(text: str) -> Reference:
    """Read a reference; `parse_reference(str(r)) == r`. Raises UsageError, with the forms there are."""
    bare = text.removeprefix(_PREFIX)
    if re.fullmatch(r"m-[0-9a-f]{32}", bare) and bare != text:
        raise UsageError(
            f"{text!r} names a logged model, not a version of a registered one.",
            f"Write {_FORMS}.",
        )
    # A name holds neither '@' nor '/' nor ':' (`run_label` and the registry see to it), so one split is enough.
    match = re.fullmatch(r"(?P<name>[^@/:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>[0-9]+))?", bare)
    if match is None or not match["name"].isprintable() or match["name"] != match["name"].strip():
        raise UsageError(f"{text!r} is not a reference to a decoder.", f"Write {_FORMS}.")
    version = int(match["version"]) if match["version"] else None
    if version == 0:
        raise UsageError(f"{text!r}: versions are counted from 1.", "See them: lossy checkpoints NAME")
    return Reference(match["name"], match["alias"], version)


def refuse_step(reference: Reference, chkt_step: int | None) -> None:
    """Raises UsageError where `chkt_step` is none that there is, and where `reference` says already which version it means."""
    if chkt_step is None:
        return
    if chkt_step < BEST_STEP:
        raise UsageError(
            f"There is no chkt_step {chkt_step}.",
            "-2 means the best version, -1 the last, N the one of epoch N.",
        )
    if not reference.is_plain:
        raise UsageError(
            f"{reference} says which version it means, and so does chkt_step {chkt_step}.",
            f"Give one of the two: {reference} alone, or {reference.name} with a chkt_step.",
        )
