"""What is shown of the findings: a board of verdicts, a page with every test, the same as CSV and LaTeX. Imports no torch."""

import textwrap

import matplotlib
import pandas as pd

from ..config import PROFILES
from ..evidence import claims
from ..evidence.contrasts import MARKS, METRICS, PAIRS
from ..records.files import write_atomic
from . import drawing as figures
from . import tables
from .style import STYLE, canvas, footer

LEFT = 8.0  # inches of words before the first profile
ROOM = 44  # characters in a cell
SHADES = {"supported": "#b7d4ea", "contradicted": "#f5c6a5", "undecided": "#eeeeee", "not run": "#ffffff"}
READING = (
    f"The unit is the seed; seeds are paired across networks. A verdict needs {PAIRS} pairs or more (one violation is enough "
    "against S2), all of whose runs are above their baselines: a probe above the same network at random init and above raw "
    "pixels, a PSNR above the mean of visible neighbours. Runs below are left out, with a count; that also removes networks "
    "that fail because of what is being tested, so an effect of all finished runs, baselines or not, stands beside. An effect "
    "in brackets is of all finished runs because no pair is complete. **Supported**: every deciding test holds at the 5 % "
    "level after Holm's correction over the deciding tests of that row. **Contradicted**: one of them holds the other way "
    "round. **Undecided**: neither; the detectable effect (80 % power) says what this many pairs could have seen. Tests are "
    "two-sided t tests, except equivalence, non-inferiority and the permutation tests of P3 and L5, which are one-sided. The exact "
    "sign-flip p is a check that assumes less; with five pairs it cannot fall below .0625. With few seeds the bootstrap's "
    "interval is too narrow. Nothing is corrected across rows: of all rows, about one in twenty of those without an effect is "
    "decided wrongly."
)


def board(found):
    """Claims down, profiles across: verdict, effect of the key test and n as one picture."""
    rows = list(dict.fromkeys((f.claim, f.metric) for f in found))
    columns = list(dict.fromkeys((f.profile, f.evidence if count(found, f) > 1 else "") for f in found))
    figure, (ax,) = canvas(LEFT + 3.6 * len(columns), 0.34 * len(rows) + 1.3)
    for y, (claim, metric) in enumerate(rows):
        first = y == 0 or rows[y - 1][0] is not claim
        ax.text(0, y, claim.id if first else "", weight="bold", va="center", fontsize=9)
        ax.text(0.28, y, textwrap.shorten(claim.text, 100, placeholder=" …") if first else "", va="center", fontsize=8)
        ax.text(6.1, y, METRICS[metric].name, va="center", fontsize=8, color="0.35")
        if first:
            ax.axhline(y - 0.5, color="0.85", linewidth=0.6)
        for x, column in enumerate(columns):
            here = [f for f in found if (f.claim, f.metric, f.profile) == (claim, metric, column[0])
                    and column[1] == (f.evidence if count(found, f) > 1 else "")]  # fmt: skip
            if here:
                cell(ax, LEFT + 3.6 * x, y, here[0])
    for x, (profile, evidence) in enumerate(columns):
        name = f"{profile} {evidence}".strip()
        ax.text(LEFT + 3.6 * x, -1.15, name, weight="bold", va="center", fontsize=9)
        ax.text(LEFT + 3.6 * x, -0.72, PROFILES[profile]["about"].split(",")[0], va="center", fontsize=8, color="0.35")
    ax.set(xlim=(0, LEFT + 3.6 * len(columns)), ylim=(len(rows) - 0.4, -1.5))
    ax.grid(False)
    ax.set_axis_off()
    counts = {mark: sum(f.verdict == verdict for f in found) for verdict, mark in MARKS.items()}
    words = ", ".join(f"{mark} {counts[mark]} {verdict}" for verdict, mark in MARKS.items())
    footer(figure, f"{words}; effect with 95 % interval of the test that the verdict hangs on, n paired seeds; in "
           "brackets: of all finished runs, as no pair has all its runs above their baselines")  # fmt: skip
    return figure


def count(found, f):
    """How many sweeps of a profile speak to the same claim and metric."""
    return sum((g.claim, g.metric, g.profile) == (f.claim, f.metric, f.profile) for g in found)


def cell(ax, x, y, f):
    ax.add_patch(matplotlib.patches.Rectangle((x, y - 0.46), 3.5, 0.92, color=SHADES[f.verdict], linewidth=0))
    ax.text(x + 0.06, y, f"{MARKS[f.verdict]} {f.verdict}", va="center", fontsize=8, weight="bold")
    words = f.why if f.verdict == "not run" else f"{f.effect}, n {f.n}"
    if len(words) > ROOM and f.verdict != "not run":
        words = f"{number(f)}, n {f.n}"
    ax.text(x + 1.12, y, textwrap.shorten(words, ROOM, placeholder=" …"), va="center", fontsize=7.2, color="0.25")


def draw(found):
    """The board, for display."""
    with matplotlib.rc_context(STYLE):
        figure = board(found)
        figure.draw_without_rendering()
    return figure


def table(found):
    """One row per finding, for display in full."""
    from IPython.display import Markdown

    return Markdown(claims.summary(found).to_markdown(index=False))


def chapter(store, experiment, found):
    """Everything of one notebook, for display: its sweeps' tables and figures, then the verdicts of its claims."""
    from IPython.display import Markdown

    own = [sweep for sweep in store.sweeps() if sweep.content["notebook"] == experiment]
    if not own:
        yield Markdown(f"*Not run: `biasnb notebook {experiment} --profile {store.profile}` makes it.*")
    for sweep in own:
        yield Markdown(f"**{sweep.name}**: {sweep.caption()}")
        for name in tables.TABLES.get(experiment, {}):
            yield from (Markdown(f"*{name}*"), tables.make(name, sweep))
        yield from (figure for name in figures.FIGURES.get(experiment, {}) if (figure := figures.show(name, sweep)))
    decided = [f for f in found if experiment in f.claim.notebooks]
    if decided:
        yield from (Markdown("**Claims**"), table(decided))


def number(f):
    """The effect without the name of its test."""
    opened = "(" if f.effect.startswith("(") else ""
    return opened + f.effect.rpartition(": ")[2]


def page(found, every):
    """All findings as Markdown: a table per profile, then every claim with its rule and its part of `every` test."""
    lines = ["# Claims and their evidence", "", "![Verdicts](claims.png)", "", READING, ""]
    for profile in dict.fromkeys(f.profile for f in found):
        lines += [f"## {profile}: {PROFILES[profile]['about']}", "", "| claim | statement | metric | verdict | effect and 95 % "
                  "interval | n | why |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for f in (f for f in found if f.profile == profile):
            lines.append(f"| [{f.claim.id}](#{f.claim.id.lower()}) | {f.claim.text} | {METRICS[f.metric].name} "
                         f"| {MARKS[f.verdict]} **{f.verdict}** | {f.effect} | {f.n} | {f.why} |")  # fmt: skip
        lines.append("")
    for claim in dict.fromkeys(f.claim for f in found):
        baselines = "; ".join(dict.fromkeys(METRICS[m].baseline or "none" for m in claim.metrics))
        where = ", ".join(f"[{name}](../notebooks/{name}.ipynb)" for name in claim.notebooks)
        lines += [f"### {claim.id}", "", f"**{claim.text}** Source: {claim.source}.", ""]
        lines += [f"Rule: {claim.rule}. Baselines: {baselines}. Runs: {where}.", ""]
        lines += [f"Left out in {f.evidence}, {METRICS[f.metric].name}: {f.left_out}.\n" for f in found
                  if f.claim is claim and f.left_out]  # fmt: skip
        part = every[every.claim == claim.id] if len(every) else every
        if len(part):
            lines += [shown(part).to_markdown(index=False), ""]
    lines += ["Every number of every test: [claims.csv](claims.csv).", ""]
    return "\n".join(lines)


def shown(part):
    """The tests of a claim in words."""
    digits = lambda value: "—" if pd.isna(value) else f"{value:.3g}".replace("-", "−")  # noqa: E731
    between = lambda low, high: "—" if pd.isna(low) else f"[{digits(low)}, {digits(high)}]"  # noqa: E731
    rows = [
        {
            "sweep": f"{t.profile}, {t.sweep}",
            "metric": METRICS[t.metric].name,
            "test": t.test + ("" if t.decides else " (shown only)"),
            "hypothesis": t.hypothesis,
            "mean and 95 % interval": f"{digits(t.mean)} {between(t.low, t.high)}",
            "n": t.n,
            "p": digits(t.p),
            "p, after Holm": digits(t.p_adjusted),
            "sign-flip p": digits(t.p_sign_flip),
            "bootstrap": between(t.bootstrap_low, t.bootstrap_high),
            "detectable": digits(t.detectable),
            "all runs": f"{digits(t.mean_all_runs)} ({t.n_all_runs})",
            "verdict": t.verdict or "—",
        }
        for t in part.itertuples()
    ]
    return pd.DataFrame(rows)


def write(found, folder):
    """Write claims.md, .csv, .tex and the board to a folder. Returns the paths."""
    with matplotlib.rc_context({**STYLE, "savefig.dpi": 115}):
        paths = figures.save(board(found), folder / "claims")
    every = claims.tests(found)
    for suffix, content in (
        (".md", page(found, every)),
        (".csv", every.to_csv(index=False, lineterminator="\n", float_format="%.6g")),
        (".tex", tables.latex(claims.summary(found), "Claims and verdicts", "claims")),
    ):
        paths.append(folder / f"claims{suffix}")
        write_atomic(paths[-1], content)
    return paths
