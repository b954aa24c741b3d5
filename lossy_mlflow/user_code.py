"""A file of the user's own that registers models and hparam sets, named by --user-code or LOSSY_USER_CODE."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from lossy_mlflow.errors import LossyError, NotFoundError

_ENVIRONMENT = "LOSSY_USER_CODE"
_MODULE_PREFIX = "lossy_user_code_"
# What has been run, by its path: the digest of the content that was.
_loaded: dict[Path, str] = {}
_OURS = Path(__file__).parent
_PYTHONS = Path(sysconfig.get_path("stdlib"))


class _FromSource(SourceFileLoader):
    """Reads the source alone: Python takes compiled code for current where an edit came within a second and left the size."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 (its base has it)
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


def load_user_code(file: str | None) -> Path | None:
    """Run the file (`file`, else the one LOSSY_USER_CODE names): its decorators register what it defines. Once, unless changed.

    It is the user's own code, run because they named it: files that come with a checkpoint are never run. What lies beside it
    can be imported, from now on. Raises NotFoundError where there is no such file, LossyError with the line where it fails.
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
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    if spec is None or spec.loader is None or path.suffix != ".py":
        raise LossyError(f"{path} is not a Python file.", "Its name must end in .py")
    if str(path.parent) not in sys.path:
        # Last: a queue.py or a models.py of theirs must not take the place of what Python and the packages import by that name.
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with explained_user_code("The user code fails"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[path] = digest
    return path


@contextmanager
def explained_user_code(doing: str) -> Iterator[None]:
    """What the user's code raises in here, calls of sys.exit included, as a LossyError: `doing`, their line, what it was."""
    try:
        yield
    except LossyError:
        raise
    except (Exception, SystemExit) as error:
        raise _explained(doing, error) from error


@contextmanager
def explained_where_theirs(doing: str) -> Iterator[None]:
    """As `explained_user_code`, where most code is ours: what comes from none of the user's own lines stays as it is."""
    try:
        yield
    except LossyError:
        raise
    except Exception as error:
        if not _where(error):
            raise
        raise _explained(doing, error) from error


def _explained(doing: str, error: BaseException) -> LossyError:
    return LossyError(
        ": ".join(filter(None, [doing, _where(error), _what(error)])),
        "Mend it; `lossy -v ...` shows its traceback.",
    )


def _imported_by_the_program(path: Path) -> bool:
    """Whether the program has imported the file by itself, so that what it registers is registered."""
    return any(
        not name.startswith(_MODULE_PREFIX) and getattr(module, "__file__", None) == str(path)
        for name, module in list(sys.modules.items())
    )


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}"


def _where(error: BaseException) -> str:
    """FILE:LINE of the innermost code that is neither ours nor Python's nor an installed package's; '' where there is none."""
    if isinstance(error, SyntaxError) and error.filename and _is_the_users(error.filename):
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_the_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""


def _is_the_users(file: str) -> bool:
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    # "<string>" and "<frozen importlib._bootstrap>" are no files.
    return not (
        installed or file.startswith("<") or path.is_relative_to(_OURS) or path.is_relative_to(_PYTHONS)
    )
