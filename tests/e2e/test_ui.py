"""What a person sees in MLflow's tracking UI of what has been trained, in a real browser.

The README's pictures are made here too, from sets trained in full:
LOSSY_SCREENSHOTS=docs/images pytest tests/e2e/test_ui.py
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, expect

import lossy_mlflow
from lossy_mlflow.experiments.imports import import_files
from lossy_mlflow.experiments.pictures import samples_png
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.tracking.connection import tracking_to
from tests.conftest import Workplace, start_mlflow_server
from tests.services.browser import needs_browser, start_chromium

SCREENSHOTS = os.environ.get("LOSSY_SCREENSHOTS")
if SCREENSHOTS:
    SETS, OVERRIDES = ["vae10_digits", "vae2_digits", "dcvae10_digits"], {}
else:
    SETS = ["vae10_digits", "vae2_digits", "linear_vae10_digits"]
    OVERRIDES = {"model_train.epochs": 4, "checkpointing_freq": 2, "start_checkpointing": 2}
# As a person would pick them: MLflow's own colours follow from the runs' ids, and may be alike.
COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c"]

pytestmark = needs_browser

# One process trains all sets: most of a short training's time is its imports.
TRAIN = """
import json, sys, lossy_mlflow
sets, overrides = json.loads(sys.argv[1])
ids = {name: lossy_mlflow.train(name, overrides=overrides, overwrite=True).run_id for name in sets}
print(json.dumps(ids))
"""

# What a person's browser remembers after the first visit, and no more: that models are trained here, the assistant closed.
REMEMBERED = """
localStorage.clear();
localStorage.setItem("mlflow.workflowType_v1", JSON.stringify("machine_learning"));
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""


@dataclass(frozen=True)
class Trained:
    """The runs of SETS on a server, as a plain MLflow client knows them."""

    uri: str
    client: Any
    experiment_id: str
    runs: dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this file's own: what other tests train on the shared one would stand in its tables and charts."""
    with start_mlflow_server(tmp_path_factory.mktemp("server")) as (uri, _):
        yield uri


@pytest.fixture(scope="module")
def trained(server: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("trained")
    workplace = Workplace(folder, folder / "home")
    done = workplace.run(
        *(sys.executable, "-c", TRAIN, json.dumps([SETS, OVERRIDES])),
        env={"MLFLOW_TRACKING_URI": server},
    )
    assert done.returncode == 0, done.stderr
    client = MlflowClient(server)
    ids = json.loads(done.stdout.splitlines()[-1])
    for run_id, colour in zip(ids.values(), COLOURS, strict=True):
        client.set_tag(run_id, "mlflow.runColor", colour)
    runs = {name: client.get_run(run_id) for name, run_id in ids.items()}
    experiment_id = client.get_experiment_by_name("vaes/digits").experiment_id
    return Trained(server, client, experiment_id, runs)


@pytest.fixture(scope="module")
def browser(trained: Trained) -> Iterator[BrowserContext]:
    with start_chromium() as chromium:
        browser = chromium.new_context(base_url=trained.uri, viewport={"width": 1400, "height": 900})
        # A page takes seconds where other tests keep the machine busy.
        browser.set_default_timeout(60_000)
        expect.set_options(timeout=30_000)
        browser.add_init_script(REMEMBERED)
        yield browser


@pytest.fixture
def page(browser: BrowserContext, tmp_path: Path) -> Iterator[Page]:
    """What the page shows at the test's end stays in the test's folder, as last.png."""
    page = browser.new_page()
    yield page
    page.screenshot(path=tmp_path / "last.png")
    page.close()


def test_the_runs_table_shows_names_losses_hparams_and_descriptions(page: Page, trained: Trained) -> None:
    page.goto(f"/#/experiments/{trained.experiment_id}/runs")
    for name in SETS:
        page.get_by_role("link", name=name, exact=True).first.wait_for()
    expect(page.get_by_test_id("experiment-link")).to_have_text("digits")

    page.get_by_test_id("column-selection-dropdown").first.click()
    wanted = ["Description", "val_loss", "model_name", "model_train.z_size"]
    for column in ["Dataset", "Source", *wanted]:
        page.get_by_test_id("column-selector-tree").get_by_title(column, exact=True).click()
    page.keyboard.press("Escape")

    for name, run in trained.runs.items():
        row = page.locator(f"[row-id='{run.info.run_id}']")
        expect(_cell(row, "attributes.`Run Name`")).to_contain_text(name)
        expect(_cell(row, "attributes.`Models`")).to_contain_text(name)
        expect(_cell(row, "params.`model_name`")).to_have_text(run.data.params["model_name"])
        expect(_cell(row, "params.`model_train.z_size`")).to_have_text(run.data.params["model_train.z_size"])
        # The table has room for the first words of a description: they tell the model and its size.
        expect(_cell(row, "attributes.`Description`")).to_contain_text(run.data.params["model_name"])
        expect(_cell(row, "attributes.`Description`")).to_contain_text(run.data.params["model_train.z_size"])
        shown = float(_cell(row, "metrics.`val_loss`").inner_text())
        assert shown == pytest.approx(run.data.metrics["val_loss"])


def test_compared_runs_show_which_hparams_differ(page: Page, trained: Trained) -> None:
    page.goto(f"/#/experiments/{trained.experiment_id}/runs")
    for run in trained.runs.values():
        page.locator(f"[row-id='{run.info.run_id}']").get_by_role("checkbox", name="row selection").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()

    page.get_by_role("switch", name="Parameters - Show diff only").click()
    params = page.get_by_role("table").filter(has=page.get_by_role("rowheader", name="model_name"))
    rows = {
        row.get_by_role("rowheader").inner_text(): row.get_by_role("cell").all_inner_texts()
        for row in params.get_by_role("row").all()
    }
    params_of = {name: run.data.params for name, run in trained.runs.items()}
    keys = set().union(*params_of.values())
    differing = {key for key in keys if len({params.get(key) for params in params_of.values()}) > 1}
    assert {"model_name", "model_train.z_size"} < differing < keys
    assert rows.keys() == differing
    order = [name for name in _column_names(page) if name in SETS]
    assert sorted(order) == sorted(SETS)
    for key in ("model_name", "model_train.z_size"):
        assert dict(zip(order, rows[key], strict=True)) == {
            name: params[key] for name, params in params_of.items()
        }


def test_val_loss_over_epochs_of_all_runs_is_one_chart(page: Page, trained: Trained, tmp_path: Path) -> None:
    page.goto(f"/#/experiments/{trained.experiment_id}/runs?compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("^val_loss$")
    chart = _card(page, "val_loss")
    for name in SETS:
        expect(chart).to_contain_text(f"{name} (val_loss)")
    lines = chart.locator(".js-plotly-plot").evaluate("plot => plot.data.map(({name, x, y}) => [name, x, y])")
    drawn = {name: list(zip(x, y, strict=True)) for name, x, y in lines}
    for name, run in trained.runs.items():
        history = trained.client.get_metric_history(run.info.run_id, "val_loss")
        assert drawn[name] == [(point.step, point.value) for point in history]

    _beside_samples(page, chart, _newest_common_picture(trained))
    page.screenshot(path=Path(SCREENSHOTS or tmp_path, "tracking_ui.png"))


def test_a_runs_pictures_are_shown_by_epoch(page: Page, trained: Trained, tmp_path: Path) -> None:
    run_id = trained.runs["vae10_digits"].info.run_id
    page.goto(f"/#/experiments/{trained.experiment_id}/runs/{run_id}/model-metrics")
    for key in ("samples", "reconstructions"):
        steps = sorted(_pictures(trained, run_id, key))
        assert len(steps) >= 2
        page.get_by_placeholder("Search metric charts").fill(key)
        _card(page, key).get_by_role("button").first.click()  # to the full screen
        dialog = page.get_by_role("dialog", name=key)
        seen = {}
        for step in steps:
            _move_to(dialog.get_by_role("slider"), step)
            picture = dialog.locator(f"img[src*='{key}%2Bstep%2B{step}%2B']")
            expect(picture).not_to_have_js_property("naturalWidth", 0)
            picture.scroll_into_view_if_needed()
            seen[step] = picture.screenshot()
        assert len(set(seen.values())) == len(steps)
        page.keyboard.press("Escape")

    if SCREENSHOTS:
        samples = _pictures(trained, run_id, "samples")
        file = trained.client.download_artifacts(run_id, samples[max(samples)], str(tmp_path))
        shutil.copy(file, Path(SCREENSHOTS, "samples.png"))


def test_a_run_shows_what_it_is_its_data_and_the_versions_it_made(page: Page, trained: Trained) -> None:
    run = trained.runs["vae10_digits"]
    page.goto(f"/#/experiments/{trained.experiment_id}/runs/{run.info.run_id}")
    expect(page.get_by_test_id("runs-header")).to_have_text("vae10_digits")
    page.get_by_text("lossy_mlflow.load_decoder('vae10_digits@best')").wait_for()
    body = page.locator("body")
    for words in (r"hparam_set\W+vae10_digits", r"device\W+(cpu|cuda)", r"kind\W+train"):
        expect(body).to_contain_text(re.compile(words))
    versions = trained.client.search_model_versions(f"run_id = '{run.info.run_id}'")
    for version in versions:
        row = page.get_by_role("row").filter(has_text=f"decoder-epoch-{version.tags['epoch']}")
        expect(row.last).to_contain_text(f"v{version.version}")

    page.get_by_test_id("open-dataset-drawer").or_(page.get_by_text("digits-training")).first.click()
    drawer = page.get_by_role("dialog")
    expect(drawer).to_contain_text("2 datasets used")
    expect(drawer).to_contain_text("images: 1200")
    expect(drawer).to_contain_text(run.data.tags["dataset_digest"][:8])
    drawer.get_by_text("digits-validation").click()
    expect(drawer).to_contain_text("images: 297")


def test_the_registered_model_shows_its_versions_aliases_and_tags(page: Page, trained: Trained) -> None:
    page.goto("/#/models/vae10_digits")
    page.get_by_text("lossy_mlflow.load_decoder('vae10_digits@best')").wait_for()
    model = trained.client.get_registered_model("vae10_digits")
    run_id = trained.runs["vae10_digits"].info.run_id
    versions = trained.client.search_model_versions(f"run_id = '{run_id}'")
    assert {"best", "last"} <= model.aliases.keys()
    for version in versions:
        row = page.get_by_role("row").filter(
            has=page.get_by_role("link", name=f"Version {version.version}", exact=True)
        )
        for tag in ("epoch", "val_loss", "hparam_set"):
            expect(row).to_contain_text(re.compile(rf"{tag}\W+{re.escape(version.tags[tag].lstrip('-'))}"))
        expect(row).to_contain_text(f"Epoch {version.tags['epoch']}, val_loss")
        aliases = {alias for alias, number in model.aliases.items() if number == version.version}
        shown = set(re.findall(r"@\s(\w+)", row.inner_text()))
        assert shown == aliases

    page.get_by_role("link", name=f"Version {model.aliases['best']}", exact=True).click()
    expect(page.get_by_role("link", name="vae10_digits", exact=True).last).to_be_visible()
    expect(page.locator("body")).to_contain_text("Source Run:")
    expect(page.locator("body")).to_contain_text("@ best")


@pytest.mark.parametrize("name", ["vae10_digits", "brought in"])
def test_a_version_shows_its_pictures_its_signature_and_an_example(
    page: Page, trained: Trained, tmp_path: Path, name: str
) -> None:
    if name == "brought in":
        _import_as(name, trained, tmp_path)
    version = trained.client.get_model_version_by_alias(name, "best")
    page.goto(f"/#/models/{name}/versions/{version.version}")
    body = page.locator("body")
    epoch = "unknown" if name == "brought in" else version.tags["epoch"]
    expect(body).to_contain_text(re.compile(rf"Epoch {epoch}[,.]"))
    expect(body).to_contain_text(version.tags["files_sha256"])
    # The picture is of this version's own decoder, drawn once more from what the registry hands out.
    _expect_picture(page.locator("img[src*='samples.png']"), name, trained.uri)
    page.get_by_text("Inputs (1)").click()
    page.get_by_text("Outputs (1)").click()
    expect(body).to_contain_text("float32, shape: [-1,10]")
    expect(body).to_contain_text("float32, shape: [-1,64]")
    page.screenshot(path=tmp_path / "version.png")

    page.get_by_role("link", name=f"decoder-epoch-{version.tags['epoch']}").click()
    _expect_picture(page.locator("img[src*='samples.png']"), name, trained.uri)
    page.get_by_role("link", name="Artifacts", exact=True).or_(
        page.get_by_text("Artifacts", exact=True)
    ).first.click()
    page.get_by_text("samples.png", exact=True).click()
    expect(page.locator("img[src*='samples.png'], img[src^='blob:']").first).to_be_visible()
    page.screenshot(path=tmp_path / "files.png")
    page.get_by_text("input_example.json", exact=True).click()
    expect(body).to_contain_text(re.compile(r"\[\s*0,\s*0,"))


def _cell(row: Locator, column: str) -> Locator:
    return row.locator(f'[col-id="{column}"]')


def _column_names(page: Page) -> list[str]:
    """The names of the compared runs, in the order of their columns."""
    row = page.get_by_role("row").filter(has_text="Run Name:")
    return [text.strip() for text in row.get_by_role("cell").all_inner_texts()]


def _card(page: Page, name: str) -> Locator:
    """The chart, or the picture by step, of that name."""
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    return cards.filter(has=page.get_by_text(name, exact=True))


def _move_to(slider: Locator, step: int) -> None:
    for _ in range(200):
        if int(slider.get_attribute("aria-valuenow") or 0) >= step:
            break
        slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", str(step))


def _beside_samples(page: Page, chart: Locator, step: int) -> None:
    """Lay the page out as for a talk: the chart first and large, beside it the samples of all runs at `step`."""
    samples = _card(page, "samples")
    _choose(page, chart, "Move to top")
    _choose(page, _card(page, "reconstructions"), "Delete")
    _choose(page, samples, "Configure")
    page.get_by_text("Show run parameters").click()
    page.get_by_role("button", name="Save changes").click()
    _move_to(samples.get_by_role("slider"), step)
    expect(samples.locator(f"img[src*='samples%2Bstep%2B{step}%2B']")).to_have_count(len(SETS))
    corner = page.get_by_test_id("draggable-card-resize-handle").first.bounding_box()
    assert corner is not None
    page.mouse.move(corner["x"] + 5, corner["y"] + 5)
    page.mouse.down()
    page.mouse.move(corner["x"] + 205, corner["y"] + 185, steps=8)
    page.mouse.up()


def _choose(page: Page, card: Locator, item: str) -> None:
    card.get_by_test_id("experiment-view-compare-runs-card-menu").click()
    page.get_by_role("menuitem", name=item, exact=True).click()


def _pictures(trained: Trained, run_id: str, key: str) -> dict[int, str]:
    """The run's pictures of that key: step to artifact path."""
    paths = [file.path for file in trained.client.list_artifacts(run_id, "images")]
    wanted = [path for path in paths if path.startswith(f"images/{key}+step+") and path.endswith(".png")]
    return {int(path.split("+")[2]): path for path in wanted}


def _newest_common_picture(trained: Trained) -> int:
    steps = [_pictures(trained, run.info.run_id, "samples").keys() for run in trained.runs.values()]
    return max(set(steps[0]).intersection(*steps))


def _import_as(name: str, trained: Trained, folder: Path) -> None:
    """A decoder of this server as somebody else's file."""
    with tracking_to(trained.uri):
        torch.save(lossy_mlflow.load_decoder("vae10_digits@last").state_dict(), folder / "theirs.pth")
        import_files([str(folder / "theirs.pth")], name=name, hparam_set="vae10_digits")


def _expect_picture(shown: Locator, name: str, uri: str) -> None:
    expect(shown).not_to_have_js_property("naturalWidth", 0)
    file = shown.page.request.get(shown.evaluate("image => image.src")).body()
    pixels = np.asarray(Image.open(io.BytesIO(file)), int)
    with tracking_to(uri):
        decoder = lossy_mlflow.load_decoder(f"{name}@best")
    drawn = samples_png(decoder, get_hparams("vae10_digits"), "cpu")
    # Another number of threads adds in another order.
    assert np.abs(np.asarray(Image.open(io.BytesIO(drawn)), int) - pixels).max() <= 1
