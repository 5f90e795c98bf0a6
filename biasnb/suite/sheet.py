"""Texts with numbers from the committed records: REPRODUCIBILITY.md, which is filled from a template, the findings in the
README, and the verdicts in the first cells of notebooks. Imports no torch."""

import ast
import json
import re
import statistics
from collections import Counter
from functools import partial, wraps
from itertools import chain
from string import Formatter
from typing import NamedTuple

from PIL import Image

from ..config import PROFILES, Config, fields_of, nearest
from ..evidence import claims
from ..evidence.contrasts import METRICS as MEASURED
from ..evidence.hypotheses import MARKS
from ..evidence.verdicts import STRICTLY
from ..records import places
from ..records.files import StoreError, write_atomic
from ..records.store import Store
from ..sweep import manifest
from .publish import METRICS, published

TEMPLATE, PAGE = "docs/reproducibility.in.md", "REPRODUCIBILITY.md"
DECIDED = ("supported", "contradicted", "negligible")
FEW = 4  # rows of a claim whose effects stand in the table of findings
COLUMNS = ("quick", "cifar10", "full")  # profiles whose settings are listed


class Published(NamedTuple):
    """The committed records of a profile: its sweeps, and the runs and learning-rate searches that they request."""

    profile: str
    sweeps: list
    runs: list
    searches: list
    missing: int


def read(profile):
    """Read the committed records of a profile. Raises StoreError for a broken record."""
    store = Store(profile, "results")
    sweeps, asked, searched = [sweep for sweep in store.sweeps() if sweep.runs], {}, {}
    for sweep in sweeps:
        asked |= dict.fromkeys(run["key"] for run in sweep.runs)
        searched |= dict.fromkeys(sweep.searches)
    runs = [store.load(key) for key in asked if store.has(key)]
    return Published(profile, sweeps, runs, [store.load(key) for key in searched], len(asked) - len(runs))


def fill():
    """Return the text of the page. Raises StoreError for a missing template, an unknown field in it, and a broken record."""
    path = places.root() / TEMPLATE
    try:
        text = path.read_text(encoding="utf-8")
        names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); restore it from the repository") from None
    except ValueError as error:
        raise StoreError(f"{path}: {error}; write {{name}} for a field and {{{{ for a brace") from None
    for name in sorted(names - set(FIELDS)):
        raise StoreError(f"{path}: no such field {name!r}; did you mean {nearest(name, FIELDS)!r}?")
    profiles = [read(profile) for profile in published()]
    return text.format(**{name: FIELDS[name](profiles) for name in names})


def write():
    """Write the page, and README and notebooks whose verdicts changed. Returns the paths. Raises StoreError as `fill` does."""
    texts = {places.root() / PAGE: fill(), **with_verdicts()}
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


# ---- verdicts in README and notebooks -----------------------------------------------------------------------------

README, STUDY_PAGE = "README.md", "docs/findings.md"
STUDY = "cifar10"  # profile of STUDY_PAGE
INTRODUCTION = (  # of figures/README.md
    "`make figures` draws all figures and tables from the committed records in [results/](../results) and trains nothing. "
    "[claims.md](claims.md) has the verdicts on the claims."
)
VERDICTS = re.compile("(<!-- verdicts: biasnb sheet -->).*?(<!-- end of the verdicts -->)", re.S)


def with_verdicts():
    """Return {path: new content} of README, docs/findings.md and notebooks whose verdicts differ from those of the committed
    records. Raises StoreError for a broken record."""
    found, texts = claims.findings([Store(profile, "results") for profile in published()]), {}
    for page, table in ((README, findings(found)), (STUDY_PAGE, study(found))):
        path = places.root() / page
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            filled = VERDICTS.sub(lambda marks, table=table: f"{marks[1]}\n\n{table}\n\n{marks[2]}", text)
            texts |= {path: filled} if filled != text else {}
    for name in manifest.names():
        path = manifest.path_of(name)
        content = json.loads(path.read_text(encoding="utf-8"))
        first = content["cells"][0]
        text, table = "".join(first["source"]), verdicts(name, found)
        filled = VERDICTS.sub(lambda marks, table=table: f"{marks[1]}\n\n{table}\n\n{marks[2]}", text)
        if filled != text:
            first["source"] = filled.splitlines(keepends=True)
            texts[path] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return texts


def findings(found):
    """The claims of which something is decided, and what each profile says by every metric (the loss only where there is no
    PSNR), the largest profile first; then the claims of which nothing is."""
    profiles = sorted({f.profile for f in found}, key=list(PROFILES).index, reverse=True)
    rows, others = [], []
    for claim in claims.CLAIMS:
        said, own = {profile: [] for profile in profiles}, [f for f in found if f.claim is claim]
        for metric in claim.metrics:
            for profile in profiles if metric != "loss" or "psnr" not in claim.metrics else ():
                verdict = verdict_of([f for f in own if (f.metric, f.profile) == (metric, profile)])
                said[profile] += [f"{MEASURED[metric].name.partition(',')[0]}: {verdict}"] if verdict else []
        if any(f.verdict in DECIDED for f in own):
            links = ", ".join(f"[{name}](notebooks/{name}.ipynb)" for name in claim.notebooks)
            cells = {profile: "<br>".join(lines) or "—" for profile, lines in said.items()}
            rows.append({"claim": f"**{claim.id}** {claim.text}", **cells, "notebook": links})
        else:
            others.append(claim.id)
    return f"{markdown(rows)}\n\nNot decided by the committed records: {', '.join(others) or 'none'}."


def verdict_of(findings):
    """What one profile says of a claim by one metric, in words: of several rows, which have which verdict, and of few rows also
    their effects. Of several sweeps that decide a row, the one with the most seeds is shown. "" without runs."""
    by_row = {}
    for f in findings:
        if f.row not in by_row or f.n > by_row[f.row].n:
            by_row[f.row] = f
    findings = list(by_row.values())
    if all(f.verdict == "not run" for f in findings):
        return ""
    if len(findings) == 1:
        (f,) = findings
        return f"{MARKS[f.verdict]} **{f.verdict}** {f.effect}, n = {f.n}"
    rows = {}
    for f in findings:
        either = f.verdict == "supported" and f.key_test and f.key_test.goal == "differs"  # an effect in either direction
        effect = f" {f.effect.rpartition(': ')[2]}" if len(findings) <= FEW else ""
        rows.setdefault(f.verdict, []).append(f.row + (effect or (f" {f.key_test.direction}" if either else "")))
    if len(findings) <= FEW:
        said = [f"{MARKS[verdict]} {verdict}: {', '.join(names)}" for verdict, names in rows.items()]
        return f"{'; '.join(said)}, n = {span([f.n for f in findings])}"
    if len(rows) == 1:
        rows = {verdict: ["all"] for verdict in rows}
    elif len(rows) > 1 and "undecided" in rows:
        rows.pop("undecided")
        rows["undecided"] = ["the others"]  # and last
    return "; ".join(f"{MARKS[verdict]} {verdict}: {', '.join(names)}" for verdict, names in rows.items())


def study(found):
    """Return a table of all findings of the study on natural images, with the reason if undecided, and the verdict without the
    runs whose test values do not exceed their baselines (the earlier rule)."""
    rows = []
    for f in found:
        if f.profile == STUDY:
            lacks = "" if f.verdict in DECIDED else f.why
            rows.append({**row(f), "what is open": lacks, STRICTLY: f.sensitivity})
    return markdown(rows)


def verdicts(name, found):
    """Return the findings from the runs of a notebook as a Markdown table, the largest profile first."""
    rows = []
    for f in sorted(found, key=lambda f: list(PROFILES).index(f.profile), reverse=True):
        if f.evidence == name and f.verdict != "not run":
            rows.append({**row(f), "profile": f.profile})
    return markdown(rows)


def gallery(folder):
    """Return a page in Markdown with the figures in a folder of figures and their titles: those of the largest profile first,
    each study under its question, with links to the vector graphics, the numbers and the tables."""
    lines = ["# Figures", "", INTRODUCTION]
    for profile in reversed(PROFILES):
        studies = [name for name in manifest.names() if any((folder / profile).glob(f"{name}-*"))]
        lines += ["", f"## Profile {profile}: {PROFILES[profile]['about']}"] if studies else []
        for name in studies:
            lines += ["", f"### [{name}](../notebooks/{name}.ipynb)", "", manifest.question(name), ""]
            for picture in sorted((folder / profile).glob(f"{name}-*.png")):
                file = f"{profile}/{picture.stem}"
                kind = picture.stem.removeprefix(f"{name}-").replace("_", " ")
                with Image.open(picture) as image:
                    title = image.text.get("Title", f"{kind} of {name}")
                lines += [f"**{kind}**: {title}.", "", f"![{title}]({file}.png)", ""]
                lines += [f"This figure as [SVG]({file}.svg) and [PDF]({file}.pdf), and [its numbers]({file}-numbers.csv).", ""]
            tables = sorted((folder / profile).glob(f"{name}-*.md"))
            links = [f"[{table.stem.removeprefix(f'{name}-')}]({profile}/{table.name})" for table in tables]
            lines += [f"Tables: {', '.join(links)}."] if links else []
    return "\n".join([*lines, ""])


def row(f):
    """Return the columns that all tables of findings share."""
    return {
        "claim": f"**{f.claim.id}** {f.claim.text}" + (f" *{f.row}*" if f.row else ""),
        "metric": MEASURED[f.metric].name,
        "verdict": f"{MARKS[f.verdict]} {f.verdict}",
        "effect and 95 % interval": f.effect,
        "seeds": f.n,
    }


# ---- fields: published profiles -> Markdown -----------------------------------------------------------------------


def markdown(rows):
    """Return rows with equal names as a Markdown table."""
    if not rows:
        return "None."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def span(values, digits=0):
    """Return 'lowest to highest', or the only value, or a dash."""
    return " to ".join(dict.fromkeys(f"{value:,.{digits}f}" for value in (min(values), max(values)))) if values else "—"


def levels(values):
    return ", ".join(f"{value:g}" for value in sorted(set(values)))


def counted(values):
    """Return the distinct values, with their counts if there are several."""
    found = Counter(values)
    return ", ".join(f"{value} ({n})" if len(found) > 1 else str(value) for value, n in found.most_common()) or "—"


def link(profile):
    return f"[{profile}](results/{profile})"


def table(rows_of):
    """Turn a function that yields rows for a profile into a field with the table of all profiles."""

    @wraps(rows_of)
    def field(profiles):
        return markdown(list(chain.from_iterable(map(rows_of, profiles))))

    return field


@table
def compute(one):
    """Yield the number of trained networks and their cost."""
    done = [run for run in one.runs if run["status"] == "done"]
    spent = [3 * run["flop_per_image_dense"] * run["steps"] * run["config"].get("batch", 0) for run in done]
    yield {
        "profile": link(one.profile),
        "networks": len(one.runs),
        "seeds": levels(run["config"]["seed"] for run in one.runs),
        "steps": levels(run["steps"] for run in done),
        "parameters": span([sum(run["parameters"].values()) for run in done]),
        "MFLOP per image": span([run["flop_per_image"] / 1e6 for run in done], 1),
        "training, TFLOP": f"{sum(spent) / 1e12:.0f}",
        "training, h": f"{sum(run['wall_seconds'] for run in done) / 3600:.2f}",
        "images/s, median": f"{statistics.median([run['images_per_second'] for run in done] or [0]):,.0f}",
        "diverged": len(one.runs) - len(done),
        "missing": one.missing,
    }


@table
def machines(one):
    """Yield machines, software versions and commits."""
    stamps = [run["environment"] for run in one.runs]
    yield {
        "profile": link(one.profile),
        "processor": counted(stamp["gpu"] or stamp["cpu"] for stamp in stamps),
        "threads per run": counted(stamp["threads"] for stamp in stamps),
        "system": counted(stamp["system"] for stamp in stamps),
        "Python": counted(stamp["python"] for stamp in stamps),
        "torch": counted(stamp["packages"]["torch"] for stamp in stamps),
        "commit": counted((stamp["commit"] or "unknown")[:7] for stamp in stamps),
        "from uncommitted code": sum(bool(stamp["dirty"]) for stamp in stamps),
    }


@table
def data(one):
    """Yield the data sets with the fingerprints of their pixels."""
    found = {}
    for run in one.runs:
        found.setdefault(run["data"]["fingerprint"], []).append(run["data"])
    for fingerprint, read in found.items():
        parts = {"images without labels": "pool", "labelled": "train", "validation": "val", "test": "test"}
        sizes = {words: span([sizes[part] for sizes in read]) for words, part in parts.items()}
        yield {"profile": link(one.profile), "data": read[0]["name"], "pixels": f"`{fingerprint}`", **sizes}


@table
def sweeps(one):
    """Yield the requested runs of every notebook and their number of seeds."""
    status = {run["key"]: run["status"] for run in one.runs}
    for sweep in one.sweeps:
        networks = Counter(network_of(run) for run in sweep.runs)
        changed = [f"{name} {listed(value)}" for name, value in sweep.content["changed"].items() if name != "files"]
        notebook = sweep.content["notebook"]
        yield {
            "profile": one.profile,
            "notebook": f"[{notebook}](notebooks/{notebook}.ipynb)",
            "runs": len(sweep.runs),
            "seeds per network": span(networks.values()),
            "diverged": sum(status.get(run["key"]) == "diverged" for run in sweep.runs),
            "missing": sum(run["key"] not in status for run in sweep.runs),
            "changed settings": ", ".join(changed) or "none",
        }


def network_of(run):
    """Return what the runs of one network share, which is everything but the seed, as text."""
    return str({name: value for name, value in run.items() if name not in ("key", "init", "seed")})


def listed(value):
    return "/".join(str(one) for one in value) if isinstance(value, list) else str(value)


@table
def searches(one):
    """Yield the number of learning-rate searches and of their runs, and the chosen rates."""
    tried = {}
    for search in one.searches:
        tried |= {rate["key"]: rate["lr"] for rate in search["rates"]}
    if tried:
        yield {
            "profile": link(one.profile),
            "searches": len(one.searches),
            "runs tried": len(tried),
            "of them published": sum(run["key"] in tried for run in one.runs),
            "rates tried": levels(tried.values()),
            "chosen": ", ".join(sorted(f"{search['config']['mixer']} {search['chosen']:g}" for search in one.searches)),
        }


def networks(profiles):
    """Return two cells of a table: whether weights are published, and where."""
    found = []
    for one in profiles:
        folder = f"results/{one.profile}/networks"
        if files := list((places.root() / folder).glob("*/model.safetensors")):
            size = sum(file.stat().st_size for file in files) / 1e6
            found.append(f"{len(files)} networks, {size:.1f} MB, in [{folder}]({folder})")
    return f"yes | {'; '.join(found)}" if found else "no | none are published"


def idle(profiles):
    """Return the profiles without committed records."""
    return ", ".join(f"`{name}`" for name in COLUMNS if name not in {one.profile for one in profiles}) or "none"


def deviations(profiles):
    """Return a table of the departures from sources that docstrings mark with '# DEVIATION:'."""
    rows = []
    for path in sorted(places.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "").partition("# DEVIATION: ")[2].split("\n\n")[0]
                if words:
                    where = f"[{path.stem}.{node.name}]({path.relative_to(places.PACKAGE.parent).as_posix()})"
                    rows.append({"where": where, "departure, and why": " ".join(words.split())})
    return markdown(rows)


def allowed(profiles):
    """Return a table of the allowed differences of a run on another machine."""
    allowed = {metric.name: metric.trained for metric in METRICS if metric.trained is not None}
    return markdown([{"metric": name, "allowed difference": f"± {most:g}"} for name, most in allowed.items()])


def setting(name, profiles):
    """Return cells of a table with the value of a setting in each profile, and its value in studies if that differs."""
    cells = []
    for profile in COLUMNS:
        sizes = PROFILES[profile]
        usual = sizes["config"].get(name, Config.__dataclass_fields__[name].default)
        main, study = (listed(sizes[part].get(name, usual)) for part in ("trio", "study"))
        cells.append(main if main == study else f"{main}; studies {study}")
    return " | ".join(cells)


FIELDS = {f.__name__: f for f in (compute, machines, data, sweeps, searches, networks, idle, deviations, allowed)}
FIELDS |= {name: partial(setting, name) for name in fields_of()}
