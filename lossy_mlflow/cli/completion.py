"""What the shell may complete: names that are known here, and those that a server tells at once."""

from __future__ import annotations

import click


def hparam_sets(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from lossy_mlflow.hparams import set_names

    return [name for name in set_names() if name.startswith(start)]


def trained_sets(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    """Those that `lossy train` takes."""
    from lossy_mlflow.hparams import evaluates, get_hparams, set_names

    return [name for name in set_names() if name.startswith(start) and not evaluates(get_hparams(name))]


def evaluated(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Labels that have been evaluated; where the server doesn't answer, the sets."""
    from lossy_mlflow.tracking.evaluated_labels import evaluated_labels

    labels = evaluated_labels(start)
    return hparam_sets(context, parameter, start) if labels is None else labels


def data_sets(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from lossy_mlflow.data import dataset_names

    return [name for name in dataset_names() if name.startswith(start)]
