"""The command line `lossy`: parses, calls one function, prints. Modules here load torch and mlflow inside the commands alone."""

from lossy_mlflow.cli.app import main

__all__ = ["main"]
