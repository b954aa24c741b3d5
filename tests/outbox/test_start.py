from __future__ import annotations

from pathlib import Path

import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.outbox.program import Outbox
from lossy_mlflow.outbox.start import sending_delay


@pytest.mark.parametrize(("text", "seconds"), [("", 1), ("0", 0), ("5", 5), ("0.5", 0.5)])
def test_how_often_what_is_logged_goes_out(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSY_OUTBOX_DELAY", text)
    assert sending_delay() == seconds


@pytest.mark.parametrize("text", ["5s", "inf", "nan", "-1", "one"])
def test_an_odd_time_is_refused_before_anything_is_logged(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOSSY_OUTBOX_DELAY", text)
    monkeypatch.setenv("LOSSY_OUTBOX_DIR", str(tmp_path / "outbox"))
    with pytest.raises(UsageError, match=f"LOSSY_OUTBOX_DELAY is '{text}'"):
        Outbox("outbox+http://127.0.0.1:1")
    assert not (tmp_path / "outbox").exists()
