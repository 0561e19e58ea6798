"""The notebooks in Jupyter Lab, driven through a real browser: `make browser`. It needs Chromium; SCREENSHOTS names a folder."""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
TOKEN = "browser-test"
SETTINGS = {"tracker": {"windowingMode": "none"}}  # all cells are in the page, not only those in sight
TINY = {"DATASET": "shapes100", "WIDTH": 0.05, "SYNTHETIC_PER_CLASS": 0, "BATCH_SIZE": 64, "PRECISION": "float32"}

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def lab(copy, tmp_path_factory):
    """Jupyter Lab on a copy of the project, as `make lab` starts it, in a home of its own; its address."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    for name, values in SETTINGS.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1])}
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "HEADLESS")} | own
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2), 60)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def wait_for(answer, seconds):
    """Return what `answer` returns as soon as it is true and raises nothing."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := answer():
                return found
        except OSError:
            found = None
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(copy, lab, browser):
    """A function that opens a notebook, made of cells of one of ours and with other parameters, and returns its page."""
    pages = []

    def open_notebook(name, of, parameters, wanted=lambda source: True):
        notebook = nbformat.read(copy / "notebooks" / f"{of}.ipynb", 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        kept = {id(cell) for number, cell in enumerate(code) if number < 4 or wanted(cell.source)}
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or id(cell) in kept]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                for key, value in parameters.items():
                    cell.source = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value!r}", cell.source)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, copy / "notebooks" / f"{name}.ipynb")
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        pages.append(page)
        page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        return page

    yield open_notebook
    for page in pages:
        if "SCREENSHOTS" in os.environ:
            page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "last.png")  # what a test that failed saw
        page.close()
    request = urllib.request.Request(f"{lab}/api/kernels?token={TOKEN}")
    for kernel in json.load(urllib.request.urlopen(request, timeout=10)):
        gone = urllib.request.Request(f"{lab}/api/kernels/{kernel['id']}?token={TOKEN}", method="DELETE")
        urllib.request.urlopen(gone, timeout=20)


def run_all(page, seconds=180, wait=True):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    if wait:
        finished(page, seconds)


def finished(page, seconds=180):
    """Wait until every code cell has been executed, and check that none failed."""
    every = "cells => cells.length && cells.every(cell => /\\[\\d+\\]/.test(cell.innerText))"
    wait_for(lambda: page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", every) or errors(page), seconds)
    assert errors(page) == []


def errors(page):
    return page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()  # noqa: E501  # fmt: skip


def cell_with(page, text):
    """The code cell whose source holds a text."""
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea-editor", has_text=text)).first


def picture(page, name, cell):
    """Save a screenshot of a cell."""
    folder = Path(os.environ["SCREENSHOTS"]) if "SCREENSHOTS" in os.environ else None
    cell.scroll_into_view_if_needed()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        cell.screenshot(path=folder / f"{name}.png")


def seconds_to_another(page, cell, act):
    """Return how long it takes from an action until the cell shows another picture."""
    image = cell.locator("img").first
    before, start = image.get_attribute("src"), time.perf_counter()
    act()
    wait_for(lambda: cell.locator("img").count() and cell.locator("img").first.get_attribute("src") != before, 10)
    return time.perf_counter() - start


def test_sliders_draw_at_once_without_dataset_or_training(opened):
    part = ("generator = keras.saving.load_model(records.find(part", "def noise_vectors", "utils.play(")
    page = opened("play", "gan_synthetic_images", {"RUN": "gan_long"}, lambda source: any(text in source for text in part))
    run_all(page)
    cell = cell_with(page, "utils.play(show_class")
    picture(page, "play-first", cell)
    seconds_to_another(page, cell, lambda: cell.locator("select").select_option(label="sunflower"))
    handle = cell.locator(".noUi-handle").first
    handle.focus()
    times = [seconds_to_another(page, cell, lambda: page.keyboard.press("ArrowRight")) for _ in range(7)]
    print(f"\nfrom a key to the picture: {statistics.median(times):.2f} s (median of 7), at most {max(times):.2f} s")
    assert statistics.median(times) < 1
    assert "sunflower, noise 7" in cell.locator(".jp-OutputArea").first.inner_text() or cell.locator("img").count() == 1
    for text in ("utils.play(show_walk", "utils.play(show_noise"):
        assert cell_with(page, text).locator("img").count() == 1
        picture(page, text.split("show_")[1], cell_with(page, text))
    picture(page, "play", cell)
    assert errors(page) == []


def test_curves_grow_while_a_network_trains_and_a_picture_is_named(opened, copy, tmp_path):
    page = opened("picture", "vgg16_with_gan", TINY | {"EPOCHS": 8})
    run_all(page, wait=False)
    training = cell_with(page, "model, run = train_vgg16(")
    seen = set()

    def watch():
        images = training.locator("img")
        assert images.count() <= 1  # one figure that changes, not one an epoch
        if images.count():
            seen.add(images.first.get_attribute("src"))
        if len(seen) == 3:
            picture(page, "training", training)
        return len(seen) >= 4

    wait_for(watch, 120)
    assert training.locator(".jupyter-widgets").count()  # the bar
    finished(page)
    picture(page, "trained", training)
    shown = cell_with(page, "picture = pictures.read(PICTURE)")
    assert shown.locator("img").count() == 1
    picture(page, "own-picture", shown)
    assert "Nearest test images:" in cell_with(page, "of_test, of_picture").inner_text()
    Image.new("RGB", (300, 200), "blue").save(copy / "notebooks" / "mine.png")
    before = shown.locator("img").first.get_attribute("src")
    shown.locator(".cm-content").click()
    page.keyboard.press("Control+Home")
    page.keyboard.type('PICTURE = "mine.png"\n')
    page.keyboard.press("Control+Enter")
    wait_for(lambda: shown.locator("img").count() and shown.locator("img").first.get_attribute("src") != before, 60)
    picture(page, "own-picture-blue", shown)
    assert errors(page) == []


def test_a_training_that_is_stopped_goes_on_when_its_cell_is_run_again(opened):
    page = opened("stopped", "vgg16_with_gan", TINY | {"EPOCHS": 200, "PATIENCE": 200, "RUN": "vgg16_stopped"})
    run_all(page, wait=False)
    training = cell_with(page, "model, run = train_vgg16(")
    wait_for(lambda: training.locator("img").count(), 120)
    page.get_by_role("button", name="Interrupt the kernel").first.click()
    wait_for(lambda: "KeyboardInterrupt" in training.inner_text(), 30)
    training.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    wait_for(lambda: "s of training found in vgg16_stopped" in training.inner_text(), 60)
    picture(page, "again", training)
    wait_for(lambda: training.locator("img").count(), 60)
    page.get_by_role("button", name="Interrupt the kernel").first.click()
