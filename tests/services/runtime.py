"""runc for podman where the machine's root lacks CAP_SYS_RESOURCE: without the limits that only this may set."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path


def _without_limits(file: Path, of_exec: bool) -> None:
    described = json.loads(file.read_text())
    (described if of_exec else described["process"]).pop("rlimits", None)
    file.write_text(json.dumps(described))


def main(words: list[str]) -> None:
    """Changes the container's description that podman has just written, and goes on as runc."""
    if "create" in words:
        _without_limits(Path(words[words.index("--bundle") + 1], "config.json"), of_exec=False)
    elif "exec" in words:
        _without_limits(Path(words[words.index("--process") + 1]), of_exec=True)
    runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert runc
    os.execv(runc, ["runc", *words])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
