"""The notebooks in Jupyter Lab, driven through a real browser: `make browser`. It needs Chromium; SCREENSHOTS names a folder."""

import contextlib
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
from test_notebooks import TINY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
TOKEN = "browser-test"
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, not only those in sight
    "apputils-extension/notification": {"fetchNews": "false"},  # nor does a question hide a part of it
}
STAND_IN = TINY | {"DATASET": "shapes100"}
PLAIN = STAND_IN | {"SYNTHETIC_PER_CLASS": 0, "EPOCHS": 8, "REAL_FRACTION": 1.0}
TRAINING = "model, run = train_vgg16("  # the cell
BAR = '.widget-hprogress, .jupyter-widgets[class*="progress"]'

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


# ------------------------------------------------------------------------------------------ Lab and a browser


@pytest.fixture(scope="module")
def lab(copy, tmp_path_factory):
    """Jupyter Lab on a copy of the project, as `make lab` starts it, in a home of its own; its address."""
    home = tmp_path_factory.mktemp("home")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    others = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "HEADLESS", "CIFAR100_DIR")}
    command = [sys.executable, "-m", "jupyter", "lab", "notebooks", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=copy, env=others | own, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: ask(f"{address}/api"), 60)
        yield address
    finally:
        stop(server)


def stop(server):
    """End a server and, through it, its kernels; one that does not listen is killed."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        raise


def ask(address, method="GET"):
    request = urllib.request.Request(f"{address}?token={TOKEN}", method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or "null")


def wait_for(answer, seconds):
    """Return what `answer` returns as soon as it is true and raises nothing."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):  # no connection yet
            if found := answer():
                return found
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(copy, lab, browser, shots, request):
    """A function that opens a notebook, made of cells of one of ours and with other parameters, and returns its page."""
    pages = []

    def open_notebook(name, of, parameters, wanted=lambda source: True):
        write_notebook(copy / "notebooks", name, of, parameters, wanted)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        pages.append(page)
        page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        return page

    yield open_notebook
    for page in pages:
        page.screenshot(path=shots / f"last-{request.node.name}.png")  # what a test that failed saw
        page.close()
    for kernel in ask(f"{lab}/api/kernels"):
        ask(f"{lab}/api/kernels/{kernel['id']}", "DELETE")


def write_notebook(folder, name, of, parameters, wanted):
    """Write a notebook: the first four code cells of another one and those that are wanted, with other parameters."""
    notebook = nbformat.read(folder / f"{of}.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = {cell.id for number, cell in enumerate(code) if number < 4 or wanted(cell.source)}
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or cell.id in kept]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for key, value in parameters.items():
                cell.source = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value!r}", cell.source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


# ------------------------------------------------------------------------------------------ a person's hands and eyes


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def stop_button(page):
    page.get_by_role("button", name="Interrupt the kernel").first.click()


def run_cell(page, cell, seconds=60):
    """Run one cell and wait for its end."""
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    time.sleep(0.5)
    wait_for(lambda: number(cell) or complaints(page), seconds)


def number(cell):
    """The number of a cell that has been run, else None."""
    return re.search(r"\[(\d+)\]", cell.locator(".jp-InputPrompt").inner_text())


def finished(page, seconds=180):
    """Wait until every code cell has been executed, and check that nothing ugly is seen."""
    every = r"cells => cells.length && cells.every(cell => /\[\d+\]/.test(cell.innerText))"
    wait_for(lambda: page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", every) or complaints(page), seconds)
    assert complaints(page) == []


def complaints(page):
    """What a person would not want to see: error output, in red, and warnings, in whatever colour."""
    red = ", ".join(f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("stderr", "error"))
    texts = page.locator(".jp-OutputArea-output[data-mime-type]").all_inner_texts()
    return page.locator(red).all_inner_texts() + [text for text in texts if re.search(r"WARNING:|Warning:", text)]


def cell_with(page, text):
    """The code cell whose source holds a text."""
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea-editor", has_text=text)).first


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """The folder of the screenshots."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def picture_of(cell):
    """The picture below a cell, as its data; None where there is none yet."""
    return cell.evaluate("cell => { const image = cell.querySelector('img'); return image && image.src }")


def next_picture(page, cell, act, seconds=10, other=None):
    """Return how long it takes from the end of an action until the cell shows another picture, or the `other` one."""
    arguments = [cell.element_handle(), picture_of(cell), other]
    act()
    start = time.perf_counter()
    seen = "([cell, old, other]) => { const image = cell.querySelector('img');"
    seen += " return image && image.complete && (other ? image.src === other : image.src !== old) }"
    page.wait_for_function(seen, arg=arguments, timeout=1000 * seconds)
    return time.perf_counter() - start


def one_figure_below_the_bars(cell):
    """Check that a cell shows one figure at most, below its bars, which are wide enough to be seen."""
    bars, images = (cell.locator(selector).all() for selector in (BAR, "img"))
    boxes = [box for box in (bar.bounding_box() for bar in bars) if box]
    assert len(images) <= 1
    assert all(box["width"] > 80 for box in boxes), boxes
    if images and boxes and (figure := images[0].bounding_box()):
        assert figure["y"] > max(box["y"] for box in boxes)
    return len(boxes)


def watch_training(page, cell, shot, count=3, seconds=150):
    """Look at a training until its figure has changed so often; save a screenshot. Returns how many bars there were."""
    seen, bars = set(), set()

    def changed():
        bars.add(one_figure_below_the_bars(cell))
        seen.add(picture_of(cell))
        return len(seen - {None}) >= count or complaints(page)

    wait_for(changed, seconds)
    assert complaints(page) == []
    cell.screenshot(path=shot)
    return max(bars)


# ------------------------------------------------------------------------------------------ what a person does


def test_sliders_draw_at_once_without_dataset_or_training(opened, shots):
    part = ("generator = keras.saving.load_model(records.find(part", "def noise_vectors", "utils.play(")
    page = opened("play", "gan_synthetic_images", {"RUN": "gan_long"}, lambda source: any(text in source for text in part))
    run_all(page)
    finished(page)
    cell = cell_with(page, "utils.play(show_class")
    menu = next_picture(page, cell, lambda: cell.locator("select").select_option(label="sunflower"))
    pictures = [picture_of(cell)]
    cell.locator(".noUi-handle").first.focus()
    times = []
    for _ in range(7):
        times.append(next_picture(page, cell, lambda: page.keyboard.press("ArrowRight")))
        pictures.append(picture_of(cell))
    assert len(set(pictures)) == 8
    assert cell.locator(".widget-readout").inner_text() == "7"
    cell.screenshot(path=shots / "play-class.png")

    def in_haste():
        for _ in range(30):
            page.keyboard.press("ArrowRight")
            time.sleep(0.03)  # as often as a key repeats that is held down
        page.keyboard.press("Home")

    haste = next_picture(page, cell, in_haste, other=pictures[0])  # the sliders alone decide what is drawn
    print(f"\nfrom a key to the picture: {statistics.median(times):.2f} s (median of 7), at most {max(times):.2f} s; ", end="")
    print(f"from the menu {menu:.2f} s; after thirty keys in a second {haste:.2f} s")
    assert statistics.median(times) < 1
    assert haste < 2
    for name in ("walk", "noise"):
        other = cell_with(page, f"utils.play(show_{name}")
        next_picture(page, other, lambda other=other: other.locator("select").select_option(label="sunflower"))
        other.screenshot(path=shots / f"play-{name}.png")
    assert complaints(page) == []


def test_a_gan_trains_before_one_s_eyes(opened, shots):
    page = opened("gan", "gan_synthetic_images", STAND_IN | {"EPOCHS": 3})
    run_all(page)
    training = cell_with(page, "gan.compile(two_rates")
    assert watch_training(page, training, shots / "gan-training.png", count=2) == 2
    finished(page)
    assert one_figure_below_the_bars(training) == 1
    training.screenshot(path=shots / "gan-trained.png")
    page.locator(".jp-Notebook").screenshot(path=shots / "gan-notebook.png")


def test_curves_grow_while_a_network_trains_and_a_picture_is_named(opened, shots, copy):
    page = opened("picture", "vgg16_with_gan", PLAIN)
    run_all(page)
    training = cell_with(page, TRAINING)
    assert watch_training(page, training, shots / "vgg16-training.png", count=4) == 2
    finished(page)
    assert one_figure_below_the_bars(training) == 1
    assert "8/8" in training.inner_text()
    training.screenshot(path=shots / "vgg16-trained.png")
    first, second = cell_with(page, "picture = pictures.read(PICTURE)"), cell_with(page, "of_test, of_picture")
    first.screenshot(path=shots / "picture-ours.png")
    before = picture_of(first)
    Image.new("RGB", (300, 200), "blue").save(copy / "notebooks" / "mine.png")
    first.locator(".cm-content").click()
    page.keyboard.press("Control+Home")
    page.keyboard.type('PICTURE = "mine.png"\n')
    page.keyboard.press("Control+End")
    page.keyboard.type("\nprint(figure.get_suptitle(), len(right.patches))")
    run_cell(page, first)
    run_cell(page, second)
    assert before != picture_of(first)
    assert "mine.png 5" in first.locator(".jp-OutputArea").first.inner_text()  # the title, and five bars
    assert second.inner_text().count("Nearest test images:") == 2  # in the source, and once below it
    first.screenshot(path=shots / "picture-mine.png")
    assert complaints(page) == []


def test_a_training_that_is_stopped_goes_on_when_its_cell_is_run_again(opened, shots):
    page = opened("stopped", "vgg16_with_gan", PLAIN | {"RUN": "vgg16_stopped"}, lambda source: "picture" not in source)
    run_all(page)
    training = cell_with(page, TRAINING)
    watch_training(page, training, shots / "stopping.png", count=3)
    stop_button(page)
    wait_for(lambda: "KeyboardInterrupt: training stopped. Run it again" in training.inner_text(), 30)
    training.screenshot(path=shots / "stopped.png")
    assert "keras/src" not in training.inner_text()  # no pages of Keras's own lines
    training.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    found = wait_for(lambda: re.search(r"\d+ s of training found in vgg16_stopped: (\d+) epochs", training.inner_text()), 60)
    bar = wait_for(lambda: re.search(r"(\d+)/8\s+\[", training.inner_text()), 30)
    assert int(bar[1]) == int(found[1]) > 0  # the bar stands where the training does
    training.screenshot(path=shots / "again.png")
    wait_for(lambda: number(training), 60)
    assert complaints(page) == []
    assert "8/8" in training.inner_text()
    training.screenshot(path=shots / "again-finished.png")
