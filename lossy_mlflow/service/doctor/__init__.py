"""Looking at everything a client needs: its server, its folders, what is installed, what its environment says.

Nothing is made or changed by looking, and all of it takes seconds, also where the server or a disk hangs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from lossy_mlflow.service.doctor.children import WITHIN_S, Child
from lossy_mlflow.service.doctor.database import look_at_database
from lossy_mlflow.service.doctor.machine import cache, data, environment, outbox, versions
from lossy_mlflow.service.doctor.report import Book, Finding, Report, State
from lossy_mlflow.service.doctor.server import look_at_server

__all__ = ["Finding", "Report", "State", "examine"]


def examine(progress: Callable[[Finding], None] | None = None) -> Report:
    """Look at everything; what fails is a finding, never an exception. `progress` is called with each finding as it is made."""
    import urllib3

    # They take longest: they load while the rest is looked at.
    torch, user_code = Child.torch(), Child.user_code()
    book = Book(progress)
    try:
        with warnings.catch_warnings():
            # Said once, in the certificate's line.
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            _look_at_the_way(book)
        book.look("data", data)
        book.look("cache", cache)
        book.look("environment", environment)
        book.look("user code", user_code.seen, within_s=WITHIN_S + 1)
        book.look("torch", torch.seen, within_s=WITHIN_S + 1)
    finally:
        torch.end()
        user_code.end()
    return book.report()


def _look_at_the_way(book: Book) -> None:
    from lossy_mlflow.tracking.connection import is_server, tracking_uri

    book.look("versions", versions)
    uri = tracking_uri()
    if is_server(uri):
        look_at_server(book, uri)
    else:
        look_at_database(book, uri)
    book.look("outbox", lambda: outbox(uri))
