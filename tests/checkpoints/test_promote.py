"""Promotions on a real registry, with versions that others have made, moved and deleted."""

from __future__ import annotations

import getpass
import os
import platform
import pty
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import mlflow
import pytest

from lossy_mlflow.checkpoints.evidence import Evidence
from lossy_mlflow.checkpoints.history import history
from lossy_mlflow.checkpoints.lineage import lineage
from lossy_mlflow.checkpoints.promote import promote, roll_back
from lossy_mlflow.checkpoints.promotions import Promotion, as_tag_value, next_key, time_of
from lossy_mlflow.checkpoints.prune import plan_prune, prune
from lossy_mlflow.cli.app import app
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.tracking.who import who
from tests.conftest import Workplace


def _register(client: mlflow.MlflowClient, name: str, versions: int, **tags: str) -> None:
    """All of the same files, which are nowhere: nobody loads them here."""
    client.create_registered_model(name)
    files = client.create_logged_model("0").model_id
    for epoch in range(1, versions + 1):
        of_it = {"epoch": str(epoch), "val_loss": f"{10 - epoch}.5", **tags}
        client.create_model_version(
            name, f"models:/{files}", model_id=files, tags=of_it, await_creation_for=0
        )


@pytest.fixture
def client(here: Workplace) -> mlflow.MlflowClient:
    """With the model `mine`, of four versions; `best` is the fourth."""
    client = mlflow.MlflowClient()
    _register(client, "mine", 4)
    client.set_registered_model_alias("mine", "best", "4")
    return client


def _champion(client: mlflow.MlflowClient, name: str = "mine") -> int | None:
    number = client.get_registered_model(name).aliases.get("champion")
    return None if number is None else int(number)


def _rows(name: str = "mine", alias: str | None = None) -> list[tuple[int | None, int, str, bool]]:
    return [
        (row.from_version, row.version, row.because, row.carried_out) for row in history(name, alias).entries
    ]


def test_promotions_and_rollbacks_are_kept_with_who_and_why(client: mlflow.MlflowClient) -> None:
    with pytest.raises(ConflictError, match="it has been at none"):
        roll_back("mine")
    shown: list[str] = []
    done = promote(
        "mine", because="its bound", show=lambda version, evidence: shown.append(f"{version}: {evidence}")
    )
    assert (done.stands_at, _champion(client)) == (4, 4)
    assert shown == ["mine/4: val_loss 6.5000"]
    promote("mine/2", because="quicker")
    assert promote("mine/2").already
    promote("mine/3", "candidate")
    promote("mine/1")
    assert [roll_back("mine").stands_at, roll_back("mine", because="no").stands_at] == [2, 4]
    with pytest.raises(ConflictError, match="at no version but 4"):
        roll_back("mine")
    assert _rows(alias="champion") == [
        (2, 4, "no", True),
        (1, 2, "", True),
        (2, 1, "", True),
        (4, 2, "quicker", True),
        (None, 4, "its bound", True),
    ]
    newest, *_, third, _, oldest = history("mine").entries
    assert (newest.rollback, third.alias, oldest.evidence.val_loss) == (True, "candidate", 6.5)
    assert newest.who == f"{getpass.getuser()}@{platform.node()}"


def test_what_was_moved_by_hand_and_what_is_gone_is_said(client: mlflow.MlflowClient) -> None:
    promote("mine/1")
    promote("mine/2")
    client.set_registered_model_alias("mine", "champion", "3")
    client.set_registered_model_alias("mine", "odd", "3")
    standing = {one.alias: one for one in history("mine").aliases}
    assert (standing["champion"].version, standing["champion"].promoted_to) == (3, 2)
    assert standing["champion"].moved_by_hand
    assert standing["odd"].moved_by_hand
    # The version that it had before is the one that the last promotion has left it at.
    client.delete_model_version("mine", "1")
    assert roll_back("mine").stands_at == 2
    assert not history("mine", "champion").aliases[0].moved_by_hand
    with pytest.raises(
        NotFoundError, match=r"mine@champion was at version 1 before, and that version is gone"
    ) as caught:
        roll_back("mine")
    assert "lossy checkpoints mine" in caught.value.hint
    assert [row.gone for row in history("mine").entries] == [(), (1,), (1,)]
    # With a version its aliases go.
    client.delete_model_version("mine", "2")
    assert history("mine", "champion").aliases[0].version is None
    client.set_registered_model_tag("mine", "promotion.hello", "x")
    assert history("mine").unreadable == ["promotion.hello"]
    assert promote("mine/4").stands_at == 4


def test_a_promotion_that_was_cut_off_is_told_and_made_good_by_promoting_again(
    client: mlflow.MlflowClient,
) -> None:
    promote("mine/1")
    key = next_key(client.get_registered_model("mine").tags, 4e9, "abcdef")
    left = Promotion(key, time_of(key), "champion", 1, 2, "me", "", Evidence())
    client.set_registered_model_tag("mine", key, as_tag_value(left))
    assert _rows() == [(1, 2, "", False), (None, 1, "", True)]
    assert not history("mine").aliases[0].moved_by_hand
    # Its alias may come at any moment.
    plan = plan_prune("mine", 0, 0)
    assert {item.version: item.stays_because for item in plan.stays} == {
        1: "alias champion",
        2: "a promotion to champion that isn't carried out yet",
        4: "alias best",
    }
    # Also where the clock that dated it was decades ahead.
    promote("mine/2", because="again")
    assert _champion(client) == 2
    assert _rows() == [(1, 2, "again", True), (1, 2, "", False), (None, 1, "", True)]


REFUSED: list[tuple[Callable[[], Any], type[LossyError], str]] = [
    (lambda: promote("mine", "best"), UsageError, "training's own: it follows the lowest val_loss"),
    (lambda: promote("mine", "Last"), UsageError, "training's own: it follows the newest epoch"),
    (lambda: promote("mine", "Latest"), UsageError, "reserved by MLflow"),
    (lambda: promote("mine", "v3"), UsageError, "reserved by MLflow"),
    (lambda: promote("mine", "a b"), UsageError, "can't be an alias"),
    (lambda: promote("mine", "a" * 256), UsageError, "can't be an alias"),
    (lambda: promote("mine", because="x" * 5000), UsageError, "characters too long"),
    (lambda: promote("mine", because="\udc80"), UsageError, "isn't text in UTF-8"),
    (lambda: promote("mine/9"), NotFoundError, "has no version 9; it has 4 (epoch 4) @best, 3"),
    (lambda: promote("mien/1"), NotFoundError, "did you mean mine?"),
    (lambda: promote("mine", to="mine"), UsageError, "Leave out --to"),
    (lambda: promote("mine", to="other@champion"), UsageError, "--to other"),
    (lambda: promote("mine", require_evidence=True), ConflictError, "no tag dataset_digest, which"),
    (lambda: roll_back("mine@champion"), UsageError, "lossy promote mine --rollback"),
    (lambda: history("mine/2"), UsageError, "lossy history mine"),
    (lambda: history("mine", "champoin"), NotFoundError, "nothing has been promoted yet"),
    (lambda: plan_prune("mine@best"), UsageError, "lossy prune mine"),
    (lambda: lineage("mine/9"), NotFoundError, "has no version 9"),
]


def test_what_can_not_be_done_is_refused_without_a_trace(client: mlflow.MlflowClient) -> None:
    for ask, error, says in REFUSED:
        with pytest.raises(error) as caught:
            ask()
        assert says in str(caught.value)
    model = client.get_registered_model("mine")
    assert (model.tags, model.aliases) == ({}, {"best": 4})
    assert [found.name for found in client.search_registered_models()] == ["mine"]


def test_eight_promotions_at_once_leave_one_champion_and_eight_records(
    mlflow_server: str, here: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    client = mlflow.MlflowClient()
    _register(client, "many", 8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: promote(f"many/{version}", because=f"try {version}"), range(1, 9)))
    found = history("many")
    assert sorted(row.version for row in found.entries) == list(range(1, 9))
    assert {row.who for row in found.entries} == {"ada"}
    assert all(row.carried_out for row in found.entries)
    assert found.entries[0].version == _champion(client, "many")
    # And two copies of one version at once are one.
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: promote("many/3", to="many production"), range(4)))
    assert {copy.stands_at for copy in copies} == {_champion(client, "many production")}
    assert len(client.search_model_versions("name = 'many production'")) == 1
    assert lineage("many production@champion").ancestors[0].version == "many/3"


def test_pruning_deletes_what_nothing_holds_and_looks_again_before_each(client: mlflow.MlflowClient) -> None:
    experiment = client.create_experiment("runs")
    pinned = client.create_run(experiment, tags={"pinned": "for the paper"}).info.run_id
    for run_id in (pinned, None, None, None):
        client.create_model_version("mine", "mlflow-artifacts:/mine", run_id=run_id)
    client.set_model_version_tag("mine", "1", "pinned", "")
    assert not plan_prune("mine").goes
    assert not plan_prune("mine", keep=0).goes
    plan = plan_prune("mine", keep=2, older_than_s=0)
    assert [item.version for item in plan.goes] == [6, 3, 2]
    assert {item.version: item.stays_because for item in plan.stays} == {
        8: "among the newest 2",
        7: "among the newest 2",
        5: "its run is pinned",
        4: "alias best",
        1: "pinned",
    }
    # Meanwhile somebody promotes one and pins one, and another process that prunes is quicker with the third.
    client.set_registered_model_alias("mine", "champion", "3")
    client.set_model_version_tag("mine", "6", "pinned", "yes")
    client.delete_model_version("mine", "2")
    done = prune(plan)
    assert [item.version for item in done.goes] == [2]
    assert {item.version: item.stays_because for item in done.stays if item.version in (3, 6)} == {
        3: "alias champion",
        6: "pinned",
    }
    assert sorted(int(item.version) for item in client.search_model_versions("name = 'mine'")) == [
        1,
        3,
        4,
        5,
        6,
        7,
        8,
    ]


def test_a_lineage_names_what_is_gone_and_ends_where_tags_go_in_a_circle(client: mlflow.MlflowClient) -> None:
    _register(client, "its child", 1, parent_version="mine/2")
    _register(client, "grandchild", 1, parent_version="its child/1")
    promote("grandchild/1", to="production")
    client.set_model_version_tag("mine", "2", "parent_version", "grandchild/1")
    found = lineage("production@champion")
    assert [(item.relation, item.version, item.of) for item in found.ancestors] == [
        ("copied from", "grandchild/1", "production/1"),
        ("started from", "its child/1", "production/1"),
        ("started from", "mine/2", "its child/1"),
    ]
    assert lineage("its child/1").started_from_it == ["grandchild/1", "production/1"]
    client.delete_model_version("its child", "1")
    assert [item.state for item in lineage("grandchild/1").ancestors] == ["gone"]
    gone = lineage("its child/1")
    assert (gone.state, gone.started_from_it) == ("gone", ["grandchild/1", "production/1"])
    client.delete_registered_model("grandchild")
    assert lineage("production/1").ancestors[0].state == "gone"
    client.set_model_version_tag("production", "1", "parent_version", "no reference / at all")
    assert [item.state for item in lineage("production/1").ancestors] == ["gone", "gone"]


def test_people_read_what_scripts_get_as_json(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(*words: str) -> str:
        capsys.readouterr()
        app.main(list(words), prog_name="lossy", standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "Nothing of mine has been promoted yet. Promote a version: lossy promote mine/VERSION" in lossy(
        "history", "mine"
    )
    assert lossy("promote", "mine/1", "--because", "a\x1b[2Jb").splitlines() == [
        "mine@champion is version 1 now. See all: lossy history mine",
        "Evidence for mine/1: val_loss 9.5000",
    ]
    assert "mine@champion is version 3 now (it was 1)." in lossy("promote", "mine/3")
    assert "mine@champion is version 3 already, since 20" in lossy("promote", "mine/3")
    assert "mine@champion is version 1 now (it was 3)." in lossy(
        "promote", "mine", "--rollback", "--because", "too slow"
    )
    client.set_registered_model_alias("mine", "champion", "2")
    client.delete_model_version("mine", "3")
    told = lossy("history", "mine")
    assert re.search(r"champion  3 \(gone\)  1         \S+  rollback: too slow  val_loss 9.5000", told)
    # What others write can't clear a screen.
    assert "a [2Jb" in told
    assert "champion stands at version 2, moved by hand: its last promotion left it at 1." in told
    assert re.search(r"^2 .* stays: alias champion$", lossy("prune", "mine", "--dry-run"), re.MULTILINE)
    assert "Nothing of mine goes" in lossy("prune", "mine")
    with pytest.raises(click.BadParameter, match="no length of time; write 30d"):
        lossy("prune", "mine", "--older-than", "30")
    with pytest.raises(UsageError, match="within one model"):
        lossy("promote", "mine", "--rollback", "--to", "other")
    # Asked at a terminal, and refused there.
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(ours, b"n\n")
        with pytest.raises(UsageError, match="nothing was deleted"):
            lossy("prune", "mine", "--keep=0", "--older-than=0s")
    os.close(ours)
    assert len(client.search_model_versions("name = 'mine'")) == 3


def test_who_is_whom_the_server_knows_and_never_a_password(
    here: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = f"{getpass.getuser()}@{platform.node()}"
    assert who("http://host:5000") == system
    assert who("https://ada%40x:secret@host") == "ada@x"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "grace")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert who("http://host:5000") == "grace"
    assert who("sqlite:////mlflow.db") == system
