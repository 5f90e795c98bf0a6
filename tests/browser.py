"""JupyterLab on a free port, driven in headless Chromium as a person would: menu, keyboard, mouse."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CANVAS = ".jupyter-matplotlib-canvas-div canvas"  # of the playground
ENOUGH = 240  # seconds that nothing here should take on a busy machine
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},  # asks nothing that hides a corner
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell can be looked at
}


@contextlib.contextmanager
def lab(top, env=None):
    """JupyterLab on `top`/notebooks as `make lab` starts it; yields the address of a notebook to fill in, with its token."""
    runtime, token = top / "jupyter", secrets.token_hex(16)
    for name in ("runtime", "config/labconfig"):
        (runtime / name).mkdir(parents=True, exist_ok=True)
    (runtime / "config/labconfig/default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    own = {
        "JUPYTER_RUNTIME_DIR": str(runtime / "runtime"),
        "JUPYTER_CONFIG_DIR": str(runtime / "config"),
        "JUPYTER_TOKEN": token,
        "BIASNB_ROOT": str(top),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0"]
    command += ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0) + ["--LabApp.default_url=/lab/tree/notebooks"]
    with open(runtime / "log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **own, **(env or {})}, stdout=log, stderr=log, cwd=top)
        try:
            yield address(runtime / "runtime", server) + f"lab/tree/notebooks/{{}}?reset&token={token}"
        finally:
            server.terminate()
            server.wait(60)


def address(folder, server):
    deadline = time.monotonic() + ENOUGH
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(StopIteration, ValueError, KeyError):
            return json.loads(next(folder.glob("jpserver-*.json")).read_text())["url"]
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start, see {folder.parent / 'log'}")


@contextlib.contextmanager
def chromium(width=1440, height=1000):
    """A page of a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * ENOUGH)
        yield page
        browser.close()


def open_notebook(page, lab, name):
    """Open a notebook and wait for its kernel."""
    page.goto(lab.format(f"{name}.ipynb"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector("text=/Python 3 .*Idle/")


def run_all(page):
    """Run > Run All Cells, and wait until all have been, or one has failed."""
    start_all(page)
    wait_done(page)


def start_all(page):
    page.click('.lm-MenuBar-item:has-text("Run")')
    page.click('.lm-Menu-item[data-command="runmenu:run-all"]')


def wait_done(page):
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
    page.wait_for_function(f"{prompts}.some(p => /\\d/.test(p)) && !{prompts}.some(p => p.includes('*'))")
    page.wait_for_timeout(500)


def saved(page, path):
    """Save the notebook; the outputs of its code cells as they are on disk."""
    before = path.stat().st_mtime_ns
    page.click('.lm-MenuBar-item:has-text("File")')
    page.click('.lm-Menu-item[data-command="docmanager:save"]')
    deadline = time.monotonic() + 30
    while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return cells, [output for cell in cells for output in cell["outputs"]]


def show(page, selector, last=True):
    """Scroll to an element, in the middle of the window where that can be."""
    found = page.locator(selector)
    element = found.last if last else found.first
    element.evaluate("e => e.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(500)
    return element


def checkout(top, source, **changes):
    """Copies of notebooks in `top`, with texts of their cells changed: old=new, as JSON has them. Returns `top`."""
    (top / "notebooks").mkdir(parents=True)
    for path in Path(source).glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            text = text.replace(old, new)
        (top / "notebooks" / path.name).write_text(text, encoding="utf-8")
    return top
