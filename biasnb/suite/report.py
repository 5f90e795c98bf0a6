"""The report: executed notebooks and the verdicts on the claims as HTML pages, which need neither network nor scripts. Their
templates and style are in templates/."""

import base64
import contextlib
import mimetypes
import os
import re
from collections import Counter
from functools import partial
from itertools import chain, groupby, takewhile
from pathlib import Path
from urllib.parse import quote, unquote

from ..evidence.contrasts import METRICS
from ..evidence.hypotheses import MARKS
from ..records import places
from ..records.files import StoreError, write_atomic
from ..records.sweep import PROBED
from ..sweep import manifest

TEMPLATES = Path(__file__).with_name("templates")

HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
NUMBER = re.compile(r"[-−+±]?\d|[-–—]?$|nan$")
# Tags with active content or styling are removed from the HTML of notebooks; of the attributes only those in KEPT remain.
REMOVED = "script, style, link, meta, base, title, iframe, object, embed, template, form, svg, video, audio, a.anchor-link"
SPANS = ["colspan", "rowspan"]
KEPT = {"a": ["href"], "img": ["src", "alt", "width"], "th": SPANS, "td": SPANS, **{heading: ["id"] for heading in HEADINGS}}
SHOWN = {"display_data_priority": ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]}


def write(store, findings=(), folder=None):
    """Write index.html and a page per executed notebook of a store to `runs/<profile>/report` or another folder, and remove the
    pages of notebooks that no longer exist. `findings` are the verdicts on the claims. Returns the path of the index.

    Raises StoreError if there is no executed notebook, or naming one that cannot be read."""
    folder, findings, known = Path(folder or store.folder / "report"), list(findings), manifest.names()
    paths = {path.stem: path for path in (store.folder / "notebooks").glob("*.ipynb") if executed(path.stem, known)}
    if not paths:
        again = f"run `biasnb reproduce --profile {store.profile}` first"
        raise StoreError(f"{store.folder / 'notebooks'}: no executed notebook to report on; {again}")
    exporter = cells_exporter()
    protocols = protocols_of(store)
    pages = {name: convert(path, paths, folder, exporter, protocols.get(name)) for name, path in paths.items()}
    names = sorted({*known, *pages}, key=lambda name: (name.partition("-")[0], name))
    belonging = {name: [f for f in findings if name in (*f.claim.notebooks, f.evidence)] for name in names}
    render = renderer(store.profile, pages)
    done = [name for name in names if name in pages]
    for before, name, after in zip(["", *done[:-1]], done, [*done[1:], ""], strict=True):
        text = render("page.j2", page=pages[name], found=belonging[name], before=before, name=name, after=after)
        write_atomic(folder / f"{name}.html", text)
    for path in folder.glob("*.html"):
        if executed(path.stem, known) and path.stem not in pages:
            path.unlink(missing_ok=True)  # another process may have removed it
    cards = [(name, manifest.question(name.partition("-")[0]), pages.get(name), belonging[name]) for name in names]
    claims = [list(group) for _, group in groupby(findings, lambda finding: finding.claim.id)]
    verdicts = Counter(finding.verdict for finding in findings)
    counts = [(verdict, verdicts[verdict]) for verdict in MARKS if verdict in verdicts]
    write_atomic(folder / "index.html", render("index.j2", cards=cards, claims=claims, counts=counts, facts=facts(store)))
    return folder / "index.html"


def protocols_of(store):
    """Return {name of a sweep: description of its probe protocol} for the sweeps that can be read."""
    found = {}
    with contextlib.suppress(StoreError):
        for sweep in store.sweeps():
            with contextlib.suppress(StoreError):
                found[sweep.name] = sweep.protocol()
    return found


def executed(name, known):
    """Return whether `name` is that of an executed notebook, possibly with changed settings, that has not failed."""
    return name.partition("-")[0] in known and not name.endswith(".failed")


def cells_exporter():
    """Return the exporter that converts the cells of a notebook to HTML."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    cells = (TEMPLATES / "cells.j2").read_text(encoding="utf-8")
    return HTMLExporter(raw_template=cells, template_name="basic", config=Config(NbConvertBase=SHOWN))


def renderer(profile, pages):
    """Return a function (template, **fields) -> HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined, loader=FileSystemLoader(TEMPLATES))
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    place = partial(places_of, pages=pages)
    environment.globals |= {"profile": profile, "style": style, "metrics": METRICS, "symbols": MARKS, "place": place}
    return lambda template, **fields: environment.get_template(template).render(**fields)


def places_of(finding, pages):
    """Return [(notebook, link)] of the notebooks that show the runs of a finding."""
    names = [finding.evidence] if finding.evidence in pages else finding.claim.notebooks
    return [(name, f"{quote(name)}.html" if name in pages else f"#{quote(name)}") for name in names]


def facts(store):
    """Return the provenance of the records of a store as [(label, text)]."""
    records, broken = [], 0
    for key in store:
        try:
            records.append(store.load(key))
        except StoreError:
            broken += 1
    kinds = Counter("diverged" if record["status"] == "diverged" else record["kind"] + "s" for record in records)
    kinds |= {"broken": broken} if broken else {}
    made = [record["environment"] for record in records if record.get("environment")]
    found = {
        "records": {f"{kind}: {n}" for kind, n in kinds.items()},
        "data": {record["data"]["name"] for record in records if "data" in record},
        "commit": {one["commit"][:10] + " with changes" * bool(one["dirty"]) for one in made if one["commit"]},
        "machine": {f"{one['gpu'] or one['cpu']} ({one['system']})" for one in made},
        "versions": {f"Python {one['python']}, torch {one['packages']['torch']}" for one in made},
    }
    return [(label, "; ".join(sorted(texts, reverse=label == "records"))) for label, texts in found.items() if texts]


def convert(path, executed, folder, exporter, protocol=""):
    """Convert an executed notebook to a dict of the content of its page and of the index; `protocol` is added below tables with
    probe accuracies. Raises StoreError naming the file."""
    import nbformat
    from bs4 import BeautifulSoup
    from markupsafe import Markup

    try:
        notebook = nbformat.read(path, as_version=4)
        soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"{path}: not a readable notebook ({reason})") from None
    for tag in soup.select(REMOVED):
        tag.decompose()
    for tag in soup(True):
        tag.attrs = {name: value for name, value in tag.attrs.items() if name in ["class", *KEPT.get(tag.name, [])]}
    for link in soup("a"):
        link["href"] = target(link.get("href", ""), path.stem, executed, folder)
        if not link["href"]:
            link.unwrap()
    fold(soup)
    heading, first = path.stem, {}
    for tag in soup([*HEADINGS, "img", "table"]):
        box = soup.new_tag("div", attrs={"class": "wide", "role": "region", "tabindex": "0", "aria-label": heading})
        if tag.name == "table":
            tag.wrap(box)
            set_table(tag, soup)
            if protocol and PROBED.search(tag.get_text()):
                note = soup.new_tag("p", attrs={"class": "soft"})
                note.string = protocol
                box.append(note)
        elif tag.name == "img":
            tag["alt"], tag["src"] = tag.get("alt") or heading, embedded(tag.get("src", ""))
            if not tag["src"]:
                tag.replace_with(tag["alt"])
            elif tag.find_parent(class_="output"):
                first = first or tag
                box["class"] = "wide picture"
                tag.wrap(box)
        else:
            heading = tag.get_text()
    answer = soup.find("strong", string=re.compile("^Answer in a sentence"))
    if answer:
        answer.parent["class"] = "answer"
    given = notebook.metadata.get("papermill", {}).get("parameters", {}) if "-" in path.stem else {}
    return {
        "title": soup.h1.get_text() if soup.h1 else path.stem,
        "contents": [(tag["id"], tag.get_text()) for tag in soup(["h2", "h3"]) if tag.get("id")],
        "body": Markup(soup.decode()),
        "answer": Markup("".join(map(str, answer.next_siblings)) if answer else ""),
        "thumbnail": {name: first.get(name) for name in ("src", "alt")},
        "source": os.path.relpath(path, folder),
        "given": changed(path.stem.partition("-")[0], given),
    }


def changed(name, given):
    """Return a description of the parameters of an executed notebook that differ from the saved ones, without local folders."""
    usual = manifest.declared(name)
    found = {parameter: value for parameter, value in given.items() if value != usual.get(parameter)}
    found |= found.pop("settings", {})
    return ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("profile", "folder", "data_dir"))


def fold(soup):
    """Replace a heading that is followed by code only with a label of that code."""
    for heading in soup(HEADINGS):
        cells = list(takewhile(lambda tag: tag.name not in HEADINGS, heading.find_next_siblings()))
        if cells and all(tag.name == "details" for tag in cells):
            cells[0].summary.string = f"code: {heading.get_text()}"
            for cell in cells[1:]:
                cells[0].append(cell.div)
                cell.decompose()
            heading.decompose()


def set_table(table, soup):
    """Remove an index that only counts rows, align numbers to the right, and collapse a long list of runs."""
    rows = [cells for row in table("tr") if (cells := row(["th", "td"]))]
    heads = [row for row in rows if row[0].find_parent("thead")]
    body = rows[len(heads) :]
    if heads and [row[0].get_text() for row in rows] == [""] * len(heads) + [str(i) for i in range(len(body))]:
        for row in rows:
            row.pop(0).decompose()
    if len({len(row) for row in heads[-1:] + body}) == 1:
        for column in zip(*heads[-1:], *body, strict=True):
            if all(NUMBER.match(cell.get_text()) for cell in column[len(heads[-1:]) :]):
                for cell in column:
                    cell["class"] = "number"
    if len(body) > 10 and "status" in [cell.get_text() for cell in chain(*heads)]:
        details, summary = soup.new_tag("details"), soup.new_tag("summary")
        summary.string = f"{len(body)} runs"
        table.parent.wrap(details).insert(0, summary)


def target(link, name, executed, folder):
    """Return the target of a notebook's link in the report: a page, a file of the checkout or a web address; else None."""
    if re.match("(https?|mailto):", link):
        return link
    path, _, anchor = link.partition("#")
    other = Path(unquote(path)).stem if path.endswith(".ipynb") else name if anchor and not path else ""
    if other in executed:
        return f"{quote(other)}.html" + (f"#{anchor}" if anchor else "")
    if other in manifest.names():
        return f"index.html#{other}"
    return quote(os.path.relpath(file, folder)) if (file := checkout(path)) else None


def embedded(src):
    """Return an image of a notebook as a data URI; None if it is neither a data URI nor a file of the checkout."""
    if src.startswith("data:image/"):
        return src
    file = checkout(src)
    return file and f"data:{mimetypes.guess_type(file)[0]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def checkout(path):
    """Return the file of the checkout to which a relative path in a notebook refers, or None."""
    with contextlib.suppress(OSError, ValueError):
        folder = os.path.abspath(places.notebooks())
        file = Path(os.path.abspath(Path(folder) / unquote(path)))
        return file if file.is_file() and file.is_relative_to(os.path.dirname(folder)) else None
