"""Who acts: the user that the tracking server knows, else the one that the system knows. Never a password."""

from __future__ import annotations

import getpass
import os
import platform
from urllib.parse import unquote, urlsplit


def who(uri: str) -> str:
    """The name under which MLflow logs in at the server `uri`; where it logs in nowhere, USER@HOST of this machine."""
    from mlflow.utils.credentials import read_mlflow_creds

    # A database knows no users of MLflow's, whatever name is set for a server.
    if uri.startswith(("http://", "https://")):
        known = read_mlflow_creds().username or unquote(urlsplit(uri).username or "")
        if known:
            return known
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
