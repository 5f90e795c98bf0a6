import base64
import io
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import unquote, urljoin

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import BROWSER
from bs4 import BeautifulSoup
from forked import environment
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from synthetic import NO_TORCH, run_record, saved_sweep

from biasnb.records import places, store
from biasnb.records.store import Store, StoreError
from biasnb.suite import notebooks, report
from biasnb.sweep import manifest

CHECKOUT = places.CHECKOUT
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"
CHANGED = {"profile": "smoke", "depths": [3], "settings": {"lr": 0.1, "data_dir": "/secret"}}


def png(colour):
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), colour, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(colour):
    data = {"image/png": base64.b64encode(png(colour)).decode() + "\n", "text/plain": "<Figure>"}
    return new_output("display_data", data)


def executed(first, *outputs):
    """A notebook as Papermill leaves it: first cell, parameters, a heading, code with these outputs."""
    cells = [new_markdown_cell(first), new_markdown_cell("## Parameters"), new_code_cell("steps = 1"),
             new_code_cell("steps = 2"), new_markdown_cell("## Figure: the curves"),
             new_code_cell("print('<b>')", outputs=list(outputs))]  # fmt: skip
    return new_notebook(cells=cells, metadata={"papermill": {"parameters": {**manifest.declared("20_trio"), **CHANGED}}})


def finding(name, verdict="supported", text="Attention is worse.", **fields):
    claim = SimpleNamespace(id=fields.pop("id", "P1"), text=text, notebooks=(name,))
    fields = {"metric": "psnr", "evidence": "", "why": "5 pairs", "effect": "-0.33 [-0.5, -0.1] dB", "n": 5, **fields}
    return SimpleNamespace(claim=claim, verdict=verdict, **fields)


FINDINGS = [
    finding("20_trio", evidence="20_trio-leaves-ab12cd"),
    finding("20_trio", "undecided", metric="roll_error"),
    finding("21_cube", "not run", id="P2", text=EVIL, why=EVIL, effect=EVIL),
    finding("00_start_here", "contradicted", id="P3"),
]


@pytest.fixture
def site(root):
    """A checkout with executed notebooks: two, one of them also with changed settings, one failed, one at work."""
    shutil.copytree(CHECKOUT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, content in {"docs/operators.md": b"# Operators", "figures/quick/a.png": png(90), "README.md": b""}.items():
        store.write_atomic(root / name, content)
    links = (
        "[trio](20_trio.ipynb) [its figure](20_trio.ipynb#Figure:-the-curves) [cube](21_cube.ipynb) [up](#Figure:-the-curves) "
        "[operators](../docs/operators.md) [gone](../docs/gone.md) [secret](../../../../../../etc/hostname) "
        "[script](javascript:alert(1)) [paper](https://arxiv.org/abs/2105.14077)"
    )
    pictures = "![a figure](../figures/quick/a.png) ![elsewhere](https://example.org/a.png)"
    start = f"# 00 · Start\n\n**Question.** Why?\n\n**Answer in a sentence.** It *fills* [holes](20_trio.ipynb). {EVIL}\n"
    table = pd.DataFrame({"network": ["conv", "attn"], "PSNR": [20.5, -1.25], "what": ["<i>", "±"]})._repr_html_()
    outputs = [
        new_output("stream", text="8 runs <b>\n"),
        picture((250, 0, 0)),
        picture((0, 0, 250)),
        new_output("execute_result", {"text/html": table + EVIL + '<p style="background: url(http://x/y.png)">'}),
        new_output("display_data", {"text/markdown": "### Shown: more", "text/plain": ""}),
        new_output("display_data", {"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'}),
        new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "no script"}),
    ]
    trio = executed("# 20 · Trio\n\n**Answer in a sentence.** Convolution is `best`.", *outputs)
    copies = {
        "00_start_here": executed(f"{start}\n{links}\n\n{pictures}", new_output("stream", text="nothing drawn")),
        "20_trio": trio,
        "20_trio-leaves-ab12cd": trio,
        "21_cube.failed": executed("# failed"),
        "20_trio-leaves-ffffff.failed": executed("# failed"),
        ".22_representation.77": executed("# at work"),
    }
    smoke = Store("smoke")
    (smoke.folder / "notebooks").mkdir(parents=True)
    for name, notebook in copies.items():
        nbformat.write(notebook, smoke.folder / "notebooks" / f"{name}.ipynb")
    stamp = {"commit": "c" * 40, "dirty": False, "cpu": "CPU of the test", "gpu": None, "system": "Linux", "python": "3.11",
             "packages": {"torch": "2.99"}}  # fmt: skip
    for seed in (0, 1):
        smoke.save({**run_record("igpt", 1, seed), "environment": stamp})
    (smoke.folder / "0123456789abcdef.json").write_text("{")
    return smoke


def pages(index):
    return {path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in index.parent.glob("*.html")}


def test_there_is_a_page_for_every_executed_notebook_and_an_index_of_all(site):
    index = report.write(site, FINDINGS)
    assert index == site.folder / "report" / "index.html"
    found = pages(index)
    assert set(found) == {"index.html", "00_start_here.html", "20_trio.html", "20_trio-leaves-ab12cd.html"}
    assert sorted(path.name for path in index.parent.iterdir()) == sorted(found)
    order = [article["id"] for article in found["index.html"]("article")]
    assert order == sorted([*manifest.names(), "20_trio-leaves-ab12cd"])
    nav = found["20_trio.html"].nav
    assert [a["href"] for a in nav("a")] == ["index.html", "00_start_here.html", "20_trio-leaves-ab12cd.html"]
    assert found["20_trio.html"].title.get_text() == "20 · Trio · biasnb smoke"
    facts = found["index.html"].dl.get_text(" ")
    assert "broken: 1" in facts and "runs: 2" in facts and "c" * 10 in facts and "CPU of the test" in facts


def test_the_index_shows_question_answer_figure_and_verdicts_of_a_notebook(site):
    index = pages(report.write(site, FINDINGS))["index.html"]
    trio, changed = index.find(id="20_trio"), index.find(id="20_trio-leaves-ab12cd")
    assert manifest.question("20_trio") in trio.h3.get_text()
    assert "Convolution is <code>best</code>." in str(trio)
    assert trio.img["src"] == "data:image/png;base64," + base64.b64encode(png((250, 0, 0))).decode()
    assert trio.img.parent["href"] == "20_trio.html" and trio.img["alt"] == "Figure: the curves"
    chips = [chip.get_text() for chip in trio(class_="verdict")]
    assert chips == ["✓ P1 PSNR supported", "? P1 roll error undecided"]
    assert "depths [3], lr 0.1" in changed.get_text() and "depths" not in trio.get_text()
    assert "secret" not in changed.get_text() and "seeds" not in changed.get_text()
    start = index.find(id="00_start_here")
    assert not start("img") and "<em>fills</em>" in str(start) and start.find("a", string="holes")["href"] == "20_trio.html"
    rows = index.table.tbody("tr")
    assert [row.find(class_="verdict").get_text() for row in rows] == [
        "✓ supported", "? undecided", "– not run", "✗ contradicted"]  # fmt: skip
    assert [row("a")[-1]["href"] for row in rows] == [
        "20_trio-leaves-ab12cd.html", "20_trio.html", "#21_cube", "00_start_here.html"]  # fmt: skip


def test_a_notebook_that_was_not_run_is_shown_with_its_command(site):
    index = pages(report.write(site))["index.html"]
    cube = index.find(id="21_cube")
    assert "not run" in cube.get_text() and cube.code.get_text() == "biasnb notebook 21_cube --profile smoke"
    assert not cube("a") and "Claims" not in index.get_text()
    with pytest.raises(StoreError, match=r"no executed notebook to report on; run `biasnb reproduce --profile quick` first"):
        report.write(Store("quick"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_every_link_of_every_page_resolves(site, root, elsewhere):
    index = report.write(site, FINDINGS, folder=root / "else where" / "page" if elsewhere else None)
    found = pages(index)
    for name, soup in found.items():
        for link in soup("a"):
            if link["href"].startswith("https://arxiv.org/"):
                continue
            target, _, anchor = link["href"].partition("#")
            assert ":" not in target and (index.parent / unquote(target)).exists(), (name, link)
            assert not anchor or found[target or name].find(id=unquote(anchor)) or found[target or name].find(id=anchor), link
    start = found["00_start_here.html"]
    text = {link.get_text(): link["href"] for link in start.main("a")}
    assert text["trio"] == "20_trio.html" and text["cube"] == "index.html#21_cube"
    assert (index.parent / unquote(text["operators"])).resolve() == root / "docs" / "operators.md"
    assert not {"gone", "secret", "script"} & set(text) and "gone secret script" in start.get_text()


def test_pages_load_nothing_and_run_nothing(site):
    for name, soup in pages(report.write(site, FINDINGS)).items():
        assert not soup(["script", "link", "iframe", "object", "base", "form"]), name
        assert len(soup("style")) == 1 and "url(" not in soup.style.get_text() and "@import" not in soup.style.get_text()
        for tag in soup(True):
            assert not [a for a in tag.attrs if a.startswith("on") or a in ("style", "srcset", "background")], tag
            assert tag.get("src", "data:image/").startswith("data:image/"), tag
            assert tag.name == "a" or "href" not in tag.attrs, tag
        assert soup.html["lang"] == "en" and len(soup("h1")) == 1 and soup.title.get_text()


def test_tables_of_the_probe_say_how_it_was_measured(site):
    """k and temperature of k-NN, and the penalties and layers of the probe, as they are in the records."""
    saved_sweep(site, "20_trio").save()
    table = pd.DataFrame({"network": ["conv"], "probe, %": [50.0], "k-NN, %": [40.0]})._repr_html_()
    notebook = executed("# 20 · Trio", new_output("execute_result", {"text/html": table}))
    nbformat.write(notebook, site.folder / "notebooks" / "20_trio.ipynb")
    found = pages(report.write(site))
    (note,) = found["20_trio.html"]("p", class_="soft", string=re.compile("^Probe"))
    assert note.find_previous("table").find("th", string="k-NN, %")
    for words in ("logistic regression on frozen features", "penalties from", "layers 1 to L", "k = 20", "similarity / 0.07"):
        assert words in note.get_text()
    assert "Probe: multinomial" not in found["20_trio-leaves-ab12cd.html"].get_text()  # which shows no such table
    (site.folder / "sweeps" / "20_trio.json").write_text("{")
    assert "Probe: multinomial" not in pages(report.write(site))["20_trio.html"].get_text()


def test_what_a_claim_says_is_text_not_markup(site):
    index = report.write(site, FINDINGS)
    soup = pages(index)["index.html"]
    assert soup.get_text().count("<script>alert(1)</script>") == 3
    assert "<script" not in index.read_text() and not soup("img", onerror=True)


def test_images_are_described_code_is_folded_and_numbers_stand_to_the_right(site):
    found = pages(report.write(site, FINDINGS))
    assert all(image["alt"] for soup in found.values() for image in soup("img"))
    trio = found["20_trio.html"]
    assert [image["alt"] for image in trio("img")] == ["Figure: the curves"] * 2 + ["Shown: more"]
    assert [image["alt"] for image in found["00_start_here.html"]("img")] == ["a figure"]
    path = site.folder / "notebooks" / "20_trio.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = 'show_figure("psnr", sweep)'
    notebook.cells[-1].outputs[2].metadata["image/png"] = {"alt": 'by "hand" <b>'}
    notebooks.describe_pictures(notebook)
    nbformat.write(notebook, path)
    trio = pages(report.write(site))["20_trio.html"]
    assert [image["alt"] for image in trio("img")] == ["Figure: the curves (psnr)", 'by "hand" <b>', "Shown: more"]
    assert "elsewhere" in found["00_start_here.html"].get_text()
    assert [summary.get_text() for summary in trio("summary")] == ["code: Parameters", "code"]
    assert [code.get_text().strip() for code in trio("details")[0](class_="highlight")] == ["steps = 1", "steps = 2"]
    assert not [code for code in trio(class_="highlight") if not code.find_parent("details")]
    rows = [[cell.get_text() for cell in row(["th", "td"])] for row in trio.table("tr")]
    assert rows == [["network", "PSNR", "what"], ["conv", "20.50", "<i>"], ["attn", "-1.25", "±"]]
    assert [cell.get_text() for cell in trio.table(class_="number")] == ["PSNR", "20.50", "-1.25"]
    assert trio.table.parent["role"] == "region" and trio.table.parent["aria-label"] == "Figure: the curves"
    assert "8 runs <b>" in trio.get_text() and "no script" in trio.get_text()


def test_written_again_elsewhere_without_torch_it_is_the_same(site, root):
    """In another process, hash seed, time zone and locale; importing the report does not import nbconvert."""
    first = {path.name: path.read_bytes() for path in report.write(site).parent.iterdir()}
    script = NO_TORCH + (
        "from biasnb.suite import report; from biasnb.records.store import Store\n"
        "assert not {'nbconvert', 'jinja2'} & set(sys.modules)\n"
        "report.write(Store('smoke'))"
    )
    shutil.rmtree(site.folder / "report")
    env = environment(root, PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {path.name: path.read_bytes() for path in (site.folder / "report").iterdir()} == first


def test_a_page_goes_with_its_notebook_and_other_files_stay(site):
    folder = report.write(site).parent
    (folder / "notes.html").write_text("mine")
    (site.folder / "notebooks" / "20_trio-leaves-ab12cd.ipynb").unlink()
    found = pages(report.write(site, FINDINGS))
    assert set(found) == {"index.html", "00_start_here.html", "20_trio.html", "notes.html"}
    assert found["index.html"].table.tbody.tr("a")[-1]["href"] == "20_trio.html"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"cells": [{}], "metadata": {}, "nbformat": 4}'])
def test_a_broken_notebook_is_named_and_the_earlier_report_stays(site, content):
    index = report.write(site)
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    (site.folder / "notebooks" / "20_trio.ipynb").write_bytes(content)
    with pytest.raises(StoreError, match=r"20_trio\.ipynb: not a readable notebook \(.+\)"):
        report.write(site)
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before


@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome on this machine")
@pytest.mark.parametrize("scripts", [True, False])
def test_a_browser_walks_through_all_pages_without_an_error(site, scripts):
    """Every page and link reachable from the index, from file://, with JavaScript on and off."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    index, trouble, seen = report.write(site, FINDINGS), [], {}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(java_script_enabled=scripts, viewport={"width": 400, "height": 800}).new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.append(request.url))
        waiting = [index.as_uri()]
        while waiting:
            url = waiting.pop().partition("#")[0]
            if url in seen or not url.endswith(".html"):
                continue
            page.goto(url)
            seen[url] = page.title()
            assert all(page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")), url
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, url
            links = page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
            waiting += [urljoin(url, link) for link in links if not link.startswith("https://")]
        page.goto(index.as_uri())
        page.locator("article h3 a").first.click()
        assert page.url == (index.parent / "00_start_here.html").as_uri()
        browser.close()
    assert not trouble and len(seen) == 4 and all(seen.values())
