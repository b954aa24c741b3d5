"""A file of the user's own that registers models and hparam sets, named by --user-code or LOSSY_USER_CODE."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path

from lossy_mlflow.errors import LossyError, NotFoundError

_ENVIRONMENT = "LOSSY_USER_CODE"
_MODULE_PREFIX = "lossy_user_code_"
# What has been run, by its path: the digest of the content that was.
_loaded: dict[Path, str] = {}


def load_user_code(file: str | None) -> Path | None:
    """Run the file (`file`, else the one LOSSY_USER_CODE names): its decorators register what it defines. Once, unless changed.

    It is the user's own code, run because they named it: files that come with a checkpoint are never run.
    Raises NotFoundError where there is no such file, LossyError with the line where it fails.
    """
    named = file or os.environ.get(_ENVIRONMENT)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not path.is_file():
        source = "--user-code" if file else _ENVIRONMENT
        raise NotFoundError(
            f"{source} names {named!r}; there is no such file in {path.parent}.",
            "Give the path of a .py file.",
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _loaded.get(path) == digest or _imported_by_the_program(path):
        return path
    # The name holds the whole path: two files called models.py are two modules, and an edited file takes its own place.
    name = f"{_MODULE_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LossyError(f"{path} is not a Python file.", "Its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except LossyError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise LossyError(
            f"The user code fails: {_where(error, path)}: {type(error).__name__}: {error}"
        ) from error
    _loaded[path] = digest
    return path


def _imported_by_the_program(path: Path) -> bool:
    """Whether the program has imported the file by itself, so that what it registers is registered."""
    return any(
        not name.startswith(_MODULE_PREFIX) and getattr(module, "__file__", None) == str(path)
        for name, module in list(sys.modules.items())
    )


def _where(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)
