"""JupyterLab as people use it: a real server, a real kernel, a real browser. Screenshots are kept in build/lab."""

import contextlib
import queue
import shutil
import sys
import time

import browser
import psutil
import pytest
from forked import environment, python, until, workers_of
from jupyter_client.manager import KernelManager

from biasnb.records.places import CHECKOUT as ROOT

KEPT = ROOT / "build" / "lab"
PICTURE = "canvas => canvas.toDataURL()"
needs_browser = pytest.mark.skipif(not browser.BROWSER, reason="no chromium, chromium-browser or google-chrome on this machine")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout whose notebooks have the profile `smoke`; the published networks are the committed ones."""
    top = tmp_path_factory.mktemp("lab") / "a checkout"
    smoke = 'profile: str = \\"smoke\\"'
    browser.checkout(top, ROOT / "notebooks", **{smoke.replace("smoke", name): smoke for name in ("quick", "cifar10")})
    (top / "results").symlink_to(ROOT / "results")
    KEPT.mkdir(parents=True, exist_ok=True)
    return top


@pytest.fixture(scope="module")
def page(place, cluster):
    """A function that opens a notebook of one JupyterLab; what its pages complain of is in `page.trouble`."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with browser.lab(place, {"PYTHONPATH": str(ROOT), "BIASNB_SCHEDULER": cluster}) as lab, browser.chromium() as page:
        page.trouble = []
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.notebook = lambda name: browser.open_notebook(page, lab, name)
        yield page


@needs_browser
def test_run_all_of_the_trio_ends_with_its_tables_and_figures(page, place):
    page.notebook("20_trio")
    browser.run_all(page)
    cells, outputs = browser.saved(page, place / "notebooks/20_trio.ipynb")
    assert all(cell["execution_count"] for cell in cells) and not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert sum("text/html" in o.get("data", {}) for o in outputs) >= 5  # tables
    progress = [o["data"]["text/plain"] for o in outputs if "training: " in str(o.get("data", {}).get("text/plain"))]
    assert len(progress) == 1 and "training: 25 records done in " in "".join(progress[0])
    browser.show(page, ".jp-OutputArea-output img", last=False)
    page.screenshot(path=KEPT / "20_trio.png")
    assert len(list((place / "runs/smoke").glob("*.json"))) == 25 and not page.trouble


@needs_browser
def test_a_study_opens_on_its_committed_results_and_trains_nothing(page, place):
    shutil.copy(ROOT / "notebooks" / "21_cube.ipynb", place / "notebooks")
    page.notebook("21_cube")
    browser.run_all(page)
    cells, outputs = browser.saved(page, place / "notebooks/21_cube.ipynb")
    assert all(cell["execution_count"] for cell in cells) and not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert not list((place / "runs/cifar10").glob("*.json"))


def click(page, element, x, y):
    """Click at a share of the width and height of an element, whatever lies over it."""
    box = element.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


@needs_browser
def test_a_control_of_the_playground_is_moved_and_its_picture_changes(page, place):
    page.notebook("03_playground")
    browser.run_all(page)
    browser.show(page, browser.CANVAS)
    canvas = page.locator(browser.CANVAS).first
    page.screenshot(path=KEPT / "03_playground-before.png")
    slider = page.locator('.widget-slider:has-text("shift down") .noUi-handle')
    dropdown = page.locator('.widget-dropdown:has-text("mask") select')
    moves = {
        "shift down": lambda: slider.press("ArrowRight"),
        "mask": lambda: dropdown.select_option("centre square"),
        "click": lambda: click(page, canvas, 0.7, 0.12),
    }
    for name, move in moves.items():
        before, start = canvas.evaluate(PICTURE), time.perf_counter()
        move()
        while canvas.evaluate(PICTURE) == before:
            assert time.perf_counter() - start < 30, f"{name}: the picture stays"
            page.wait_for_timeout(10)
        print(f"{name}: {time.perf_counter() - start:.2f} s")
        page.wait_for_timeout(500)
    page.screenshot(path=KEPT / "03_playground-after.png")
    _, outputs = browser.saved(page, place / "notebooks/03_playground.ipynb")
    (panel,) = [o["data"] for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert "image/png" in panel  # for who opens it where widgets do not live
    assert not [o for o in outputs if o["output_type"] == "error"] and not page.trouble


STUDY = """from biasnb.sweep import Study
study = Study("20_trio", "smoke", {"steps": 2000}, mixer=["igpt", "mixer"])
sweep = study.plan(study.every_combination("mixer"))"""


def execute(client, code, look=lambda: None):
    """Run code in a kernel; returns (status, name of the error). `look` is called again and again until it is done."""
    asked = client.execute(code)
    while True:
        look()
        with contextlib.suppress(queue.Empty):
            reply = client.get_shell_msg(timeout=0.05)
            if reply["parent_header"]["msg_id"] == asked:
                return reply["content"]["status"], reply["content"].get("ename")


def test_a_cell_that_is_interrupted_and_run_again_goes_on_and_leaves_no_process(place):
    store = place / "runs/smoke"
    env = environment(place, JPY_SESSION_NAME="20_trio.ipynb", BIASNB_CHECKPOINT_SECONDS="0.2", BIASNB_SCHEDULER=None)
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(env=env, cwd=str(place / "notebooks"))
    client, steps = kernel.client(), {}
    client.start_channels()

    def look():
        for path in store.glob("checkpoints/*/*-*.safetensors"):
            steps.setdefault(path.parent.name, set()).add(int(path.name[:8]))

    def interrupt_once_trained():
        look()
        if steps and not interrupted:
            interrupted.append(kernel.interrupt_kernel())

    try:
        client.wait_for_ready(60)
        assert execute(client, f"import sys; assert sys.executable == {sys.executable!r}") == ("ok", None)
        records, interrupted, mine = set(store.glob("*.json")), [], psutil.Process(kernel.provisioner.pid)
        cell = "\n".join([STUDY, "sweep.train()"])
        assert execute(client, cell, interrupt_once_trained) == ("error", "KeyboardInterrupt")
        until(lambda: not workers_of(mine), 10)
        look()
        done = {path.stem for path in set(store.glob("*.json")) - records}  # a run that was faster than the signal
        before = {key: max(found) for key, found in steps.items() if key not in done}
        assert before and len(done) <= 1
        steps.clear()
        assert execute(client, f"{cell}\nassert not sweep.missing()", look) == ("ok", None)
        for key, last in before.items():  # the two states that are kept, and none that is older
            assert len([step for step in steps[key] if step < last]) <= 1 and max(steps[key]) > last
        assert not workers_of(mine)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_nbconvert_executes_a_notebook_and_shows_the_panel_as_a_picture(place, tmp_path):
    words = ["-m", "nbconvert", "--execute", "--to", "html", "--output-dir", str(tmp_path)]
    python(place, *words, str(place / "notebooks/03_playground.ipynb"))
    page = (tmp_path / "03_playground.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64') == 1 and "widget-view" not in page.partition("<body")[2]
