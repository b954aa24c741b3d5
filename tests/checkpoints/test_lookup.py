"""Names, versions and their tags in the registry, as somebody else may have left them: read, or refused with the way on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import pytest

from lossy_mlflow.checkpoints import list_checkpoints, load_decoder, resolve
from lossy_mlflow.errors import NotFoundError, UsageError
from tests.conftest import Workplace


@pytest.fixture
def registered(here: Workplace) -> mlflow.MlflowClient:
    """`vae2_digits` with two versions, of the epochs 2 and 4, the second with the alias `best`."""
    client = mlflow.MlflowClient()
    client.create_registered_model("vae2_digits")
    for epoch in (2, 4):
        tags = {"epoch": str(epoch), "val_loss": f"{10 - epoch}.5"}
        client.create_model_version("vae2_digits", str(here.folder / "files"), tags=tags)
    client.set_registered_model_alias("vae2_digits", "best", "2")
    return client


def test_a_plain_name_means_the_best_version_unless_chkt_step_says_another(
    registered: mlflow.MlflowClient,
) -> None:
    assert resolve("vae2_digits").version == resolve("vae2_digits", -2).version == 2
    assert resolve("vae2_digits", 2).version == 1
    assert [(item.epoch, item.val_loss) for item in list_checkpoints("models:/vae2_digits")] == [
        (4, 6.5),
        (2, 8.5),
    ]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: list_checkpoints("vae2_digits@best"), "lossy checkpoints vae2_digits "),
        (lambda: list_checkpoints("vae2_digits/3"), "lossy resolve vae2_digits/3"),
        (lambda: list_checkpoints("models:/it's one@best"), """lossy checkpoints 'it'"'"'s one' """),
        (lambda: resolve("vae2_digits@best", 99), "vae2_digits@best alone"),
        (lambda: resolve("vae2_digits/1", -1), "vae2_digits/1 alone"),
        (lambda: resolve("vae2_digits", -9), "-2 means the best version"),
        (lambda: load_decoder("vae2_digits", -3), "-2 means the best version"),
        (lambda: load_decoder("vae2_digits@best", 4), "vae2_digits@best alone"),
    ],
)
def test_what_says_two_things_at_once_is_refused(
    registered: mlflow.MlflowClient, ask: Callable[[], Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ask()
    assert says in caught.value.hint


def test_the_way_to_a_name_that_is_not_there_is_a_command_that_works(registered: mlflow.MlflowClient) -> None:
    for name, way in [
        ("vae10_digits", "Train it: lossy train vae10_digits "),
        ("icml_aae2_x", "Import it, from the published archive: "),
        ("icml_vae2_rd_rerun", "icml_vae2_rd_rerun is an evaluation: load what it evaluates, icml_vae2_rd "),
        ("vae10_digits_my try", "Train it: lossy train vae10_digits '--e-name=my try' "),
        ("vae2_digit", "See what there is: lossy checkpoints "),
        ("nothing", "See what there is: lossy checkpoints "),
    ]:
        with pytest.raises(NotFoundError, match=f"No registered model '{name}'") as caught:
            resolve(name)
        assert caught.value.hint.startswith(way)


@pytest.mark.parametrize(
    ("edited", "epoch", "val_loss"),
    [
        ({"epoch": "abc"}, None, 6.5),
        ({"epoch": ""}, None, 6.5),
        ({"epoch": "4.0"}, None, 6.5),
        ({"val_loss": "x"}, 4, None),
        ({"val_loss": "nan"}, 4, None),
        ({"val_loss": "inf"}, 4, None),
        ({"val_loss": None}, 4, None),
        ({"val_loss": None, "epoch": None}, None, None),
    ],
    ids=str,
)
def test_a_tag_that_says_no_number_counts_as_none(
    registered: mlflow.MlflowClient,
    edited: dict[str, str | None],
    epoch: int | None,
    val_loss: float | None,
) -> None:
    for key, value in edited.items():
        if value is None:
            registered.delete_model_version_tag("vae2_digits", "2", key)
        else:
            registered.set_model_version_tag("vae2_digits", "2", key, value)
    found = list_checkpoints("vae2_digits")
    assert [item.version for item in found] == [2, 1]
    assert (found[0].epoch, found[0].val_loss) == (epoch, val_loss)
    assert resolve("vae2_digits@best") == found[0]
