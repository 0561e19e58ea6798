"""The notebooks in Jupyter Lab, driven by a real browser: `make browser`. It needs Chromium."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from test_chain import TINY

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
TOKEN = "browser-test"
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
    "apputils-extension/notification": {"fetchNews": "false"},  # no question hides a part of it
}
STAND_IN = TINY | {"DATASET": "shapes100"}
PLAIN = STAND_IN | {"SYNTHETIC_PER_CLASS": 0, "EPOCHS": 8, "REAL_FRACTION": 1.0}

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def lab(copy, tmp_path_factory):
    """Jupyter Lab on a copy of the project, as `make lab` starts it; its address."""
    home = tmp_path_factory.mktemp("home")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hidden = ("MPLBACKEND", "HEADLESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config")}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks", "--no-browser", "--allow-root"]
    command += [f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: ask(f"{address}/api"), 60)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def ask(address, method="GET"):
    request = urllib.request.Request(f"{address}?token={TOKEN}", method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")


def wait_for(answer, seconds):
    """Call `answer` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):  # no connection yet
            if found := answer():
                return found
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


@pytest.fixture
def opened(copy, lab, tmp_path, request):
    """A function that opens a notebook of ours with other parameters and returns its page.

    The last view of each page is kept in the folder that the variable SCREENSHOTS names.
    """
    shots = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def open_notebook(name, source, parameters, first_cells=None):
            write_notebook(copy / "notebooks", name, source, parameters, first_cells)
            page = chromium.new_page(viewport={"width": 1300, "height": 900})
            page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
            return page

        yield open_notebook
        for page in chromium.contexts[0].pages if chromium.contexts else ():
            page.screenshot(path=shots / f"last-{request.node.name}.png")
        chromium.close()
    for kernel in ask(f"{lab}/api/kernels"):
        ask(f"{lab}/api/kernels/{kernel['id']}", "DELETE")


def write_notebook(folder, name, source, parameters, first_cells):
    """Write a copy of a notebook with other parameters, or of its first code cells alone."""
    notebook = nbformat.read(folder / f"{source}.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][:first_cells]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for key, value in parameters.items():
                cell.source = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value!r}", cell.source)
    notebook.cells = code if first_cells else notebook.cells
    nbformat.write(notebook, folder / f"{name}.ipynb")


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def finished(page, seconds=240):
    """Wait until every code cell has been executed, and check that no error is shown."""
    every = r"cells => cells.length && cells.every(cell => /\[\d+\]/.test(cell.innerText))"
    prompts = ".jp-CodeCell .jp-InputPrompt"
    wait_for(lambda: page.eval_on_selector_all(prompts, every) or complaints(page), seconds)
    assert complaints(page) == []


def complaints(page):
    """What a person would not want to see: error output, in red."""
    red = '[data-mime-type="application/vnd.jupyter.error"]'
    return page.locator(red).all_inner_texts()


def cell_with(page, text):
    """The code cell whose source holds a text."""
    source = page.locator(".jp-InputArea-editor", has_text=text)
    return page.locator(".jp-CodeCell").filter(has=source).first


def picture_of(cell):
    """The picture below a cell, as its data; None if there is none yet."""
    return cell.evaluate("cell => cell.querySelector('img')?.src")


def wait_for_pictures(page, n):
    """Wait until the cell that trains has drawn its curves n times, and return the cell."""
    cell, seen = cell_with(page, "model, run = train_vgg16("), set()
    wait_for(lambda: seen.add(picture_of(cell)) or len(seen - {None}) >= n, 240)
    return cell


def test_sliders_draw_within_a_second_without_dataset_or_training(opened):
    page = opened("play", "gan_synthetic_images", {}, first_cells=2)
    run_all(page)
    finished(page)
    cell = cell_with(page, "play(show_class")
    pictures = [picture_of(cell)]
    cell.locator("select").select_option(label="sunflower")
    wait_for(lambda: picture_of(cell) != pictures[-1], 10)
    cell.locator(".noUi-handle").first.focus()
    for _ in range(3):
        pictures.append(picture_of(cell))
        start = time.perf_counter()
        page.keyboard.press("ArrowRight")
        wait_for(lambda: picture_of(cell) != pictures[-1], 10)
        assert time.perf_counter() - start < 2
    assert len(set(pictures)) == 4


def test_a_gan_trains_in_jupyter_lab(opened):
    page = opened("gan", "gan_synthetic_images", STAND_IN | {"EPOCHS": 3})
    run_all(page)
    finished(page, 400)


def test_curves_grow_and_a_picture_of_ones_own_is_classified(opened, copy):
    page = opened("picture", "vgg16_with_gan", PLAIN)
    run_all(page)
    training = wait_for_pictures(page, 3)
    finished(page, 400)
    assert "Epoch 8/8" in training.inner_text()
    first = cell_with(page, "picture = pictures.read(PICTURE)")
    before = picture_of(first)
    Image.new("RGB", (300, 200), "blue").save(copy / "notebooks" / "mine.png")
    first.locator(".cm-content").click()
    page.keyboard.press("Control+Home")
    page.keyboard.type('PICTURE = "mine.png"\n')
    page.keyboard.press("Control+Enter")
    wait_for(lambda: picture_of(first) not in (before, None), 60)
    assert complaints(page) == []


def test_a_run_that_is_stopped_continues_when_its_cell_is_run_again(opened):
    page = opened("stopped", "vgg16_with_gan", PLAIN | {"RUN": "vgg16_stopped", "EPOCHS": 40})
    run_all(page)
    training = wait_for_pictures(page, 2)
    time.sleep(12)  # checkpoints are ten seconds apart
    page.get_by_role("button", name="Interrupt the kernel").first.click()
    words = "KeyboardInterrupt: Training was interrupted. Run this cell again"
    wait_for(lambda: words in training.inner_text(), 30)
    assert "keras/src" not in training.inner_text()  # no pages of Keras's own code
    training.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    found = r"this run continues after epoch (\d+) \("
    wait_for(lambda: re.search(found, training.inner_text()), 60)
