"""Durable delivery to an MLflow tracking server: what was logged lies on the disk first, and a sender process delivers it.

    MLFLOW_TRACKING_URI=outbox+http://HOST:PORT python any_mlflow_program.py

`plugin` is what MLflow calls, `journal` and `folder` what lies on the disk, `sender` the process that delivers it. docs/outbox.md
has the promise.
"""
