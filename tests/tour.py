"""`make tour`: the screenshots of docs/tour.md, of a JupyterLab that starts without any run; only of the stations that are
named, if some are."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import browser

from biasnb.records.places import CHECKOUT as ROOT

PICTURES = ROOT / "docs" / "tour"


def main():
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        top = browser.checkout(Path(folder) / "biasnb", ROOT / "notebooks")
        (top / "results").symlink_to(ROOT / "results")
        with browser.lab(top, {"PYTHONPATH": str(ROOT)}) as lab, browser.chromium(1400, 900) as page:
            page.set_default_timeout(1_000_000)
            for take in (start, trio, changed, playground, operator, images):
                if take.__name__ not in (sys.argv[1:] or take.__name__):
                    continue
                page.set_viewport_size({"width": 1400, "height": HEIGHT.get(take, 900)})
                take(page, lambda name: browser.open_notebook(page, lab, name), top / "notebooks")
                print(f"{take.__name__} done", flush=True)


def shot(page, name):
    page.screenshot(path=PICTURES / f"{name}.png")


def start(page, opened, notebooks):
    opened("00_start_here")
    shot(page, "start")
    browser.run_all(page)
    browser.show(page, ".jp-OutputArea-output img")
    shot(page, "start-figure")


def trio(page, opened, notebooks):
    opened("20_trio")
    browser.run_all(page)
    browser.show(page, ".jp-OutputArea-output img", last=False)
    shot(page, "trio-figure")


def changed(page, opened, notebooks):
    path = notebooks / "20_trio.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('str = \\"cifar10\\"', 'str = \\"quick\\"').replace("depths: list = None", "depths: list = [1, 2]")
    )
    opened("20_trio")
    browser.start_all(page)
    browser.show(page, "text=/training: [3-9].*left/")
    page.wait_for_timeout(3000)
    shot(page, "trio-running")


def playground(page, opened, notebooks):
    opened("03_playground")
    browser.run_all(page)
    browser.show(page, browser.CANVAS)
    shot(page, "playground")
    page.locator('.widget-dropdown:has-text("mask") select').select_option("centre square")
    page.wait_for_timeout(1500)
    page.locator('.widget-slider:has-text("layer") .noUi-handle').press("ArrowRight")
    page.wait_for_timeout(1500)
    shot(page, "playground-moved")


def operator(page, opened, notebooks):
    opened("04_your_own_operator")
    browser.run_all(page)
    browser.show(page, ".jp-OutputArea-output table", last=False)
    shot(page, "operator")
    browser.show(page, ".jp-OutputArea-output table")
    shot(page, "operator-table")


def images(page, opened, notebooks):
    opened("05_your_own_images")
    browser.run_all(page)
    browser.show(page, ".jp-OutputArea-output img")
    shot(page, "images")


HEIGHT = {playground: 1100}  # so that the whole panel is seen

if __name__ == "__main__":
    main()
