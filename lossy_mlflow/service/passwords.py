"""Passwords that are tried, checked where they are in nobody's way."""

from __future__ import annotations

import hmac
import secrets

from lossy_mlflow.service.settings import AUTH_CACHE_S

# A client with an old password goes on asking: it costs a hash of 0.2 s once in this time.
_BAD_FOR_S = 10
_REMEMBERED = 10_000
_WAITING = 16


class Passwords:
    """Checks a password in a thread, one at a time, before MLflow does: it would on the event loop, where everybody waits 0.2 s.

    Who has been checked a while ago waits for nobody; many requests with one password wait for one check. Keeps digests under a
    key of this process, no passwords.
    """

    def __init__(self) -> None:
        import anyio
        from cachetools import TTLCache

        self._good: TTLCache[bytes, bool] = TTLCache(_REMEMBERED, AUTH_CACHE_S)
        self._bad: TTLCache[bytes, bool] = TTLCache(_REMEMBERED, _BAD_FOR_S)
        self._under_way: dict[bytes, anyio.Event] = {}
        self._key = secrets.token_bytes(32)
        self._one = anyio.CapacityLimiter(1)

    async def refusal(self, path: str, authorization: bytes) -> tuple[int, str, dict[str, str]] | None:
        """Status, text and headers of the answer to who shouldn't go on. Who sends no password is answered by MLflow."""
        from mlflow.server import auth

        if not authorization or auth.is_unprotected_route(path):
            return None
        right = await self._is_right(authorization)
        if right is None:
            return 429, "Too many passwords are being checked.", {"Retry-After": "1"}
        return (
            None
            if right
            else (401, "You are not authenticated.", {"WWW-Authenticate": 'Basic realm="mlflow"'})
        )

    async def _is_right(self, authorization: bytes) -> bool | None:
        """None where too many others wait for theirs to be checked."""
        import anyio
        import anyio.to_thread

        digest = hmac.digest(self._key, authorization, "sha256")
        # Again, where the client whose check this one has waited for is gone, and its check with it.
        while not (digest in self._good or digest in self._bad):
            if other := self._under_way.get(digest):
                await other.wait()
                continue
            if self._one.statistics().tasks_waiting >= _WAITING:
                return None
            self._under_way[digest] = anyio.Event()
            try:
                right = await anyio.to_thread.run_sync(_is_right, authorization, limiter=self._one)
                (self._good if right else self._bad)[digest] = True
                return right
            finally:
                self._under_way.pop(digest).set()
        return digest in self._good


def _is_right(authorization: bytes) -> bool:
    import flask
    from mlflow.server import app, auth
    from werkzeug.datastructures import Authorization

    # As MLflow checks it in a request, so that it remembers it as well.
    with app.test_request_context(headers={"Authorization": authorization.decode("latin-1")}):
        asked = flask.request.authorization
        if asked is None or asked.username is None or asked.password is None:
            return False
        return isinstance(auth.authenticate_request(), Authorization)
