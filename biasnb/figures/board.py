"""The verdicts on the claims: a board as one picture, a page with every test, the same as CSV and LaTeX."""

import textwrap

import matplotlib
import pandas as pd

from ..config import PROFILES
from ..evidence import verdicts
from ..evidence.contrasts import MARKS, METRICS, PAIRS
from . import formats, show_figure, show_table, tables
from .style import STYLE, canvas, footer

LEFT, WIDTH = 8.0, 3.6  # inches of words before the first profile; of a profile
ROOM = 44  # characters in a cell
SHADES = {"supported": "#b7d4ea", "contradicted": "#f5c6a5", "undecided": "#eeeeee", "not run": "#ffffff"}
READING = (
    f"The unit is the seed; seeds are paired across networks. A verdict needs {PAIRS} pairs or more (one violation is enough "
    "against S2), all of whose runs are above their baselines: a probe above the same network at random init and above raw "
    "pixels, a PSNR above the mean of visible neighbours. Runs that are not above their baselines are left out and counted. "
    "That also removes networks that fail because of what is being tested, so the effect over all finished runs is shown too. "
    "An effect in brackets is of all finished runs because no pair is complete. **Supported**: every deciding test holds at "
    "the 5 % level after Holm's correction over the deciding tests of that row. **Contradicted**: one of them holds the other "
    "way round. **Undecided**: neither; the detectable effect (80 % power) says what this many pairs could have seen. Tests "
    "are two-sided t tests, except equivalence, non-inferiority and the permutation tests of P3 and L5, which are one-sided. "
    "The exact sign-flip p is a check that assumes less; with five pairs it cannot fall below .0625. The "
    "bootstrap draws seeds and test images, whole groups of them where crops of one tile or placements of one digit are not "
    "independent; with few seeds its interval is too narrow. Nothing is corrected across rows: of all rows, about one in "
    "twenty of those without an effect is decided wrongly."
)


def board(found):
    """Claims down, profiles across: verdict, effect of the key test and n as one picture."""
    rows = list(dict.fromkeys((f.claim, f.metric) for f in found))
    columns = list(dict.fromkeys(column(found, f) for f in found))
    figure, (ax,) = canvas(LEFT + WIDTH * len(columns), 0.34 * len(rows) + 1.3)
    for y, (claim, metric) in enumerate(rows):
        if y == 0 or rows[y - 1][0] is not claim:
            ax.text(0, y, claim.id, weight="bold", va="center", fontsize=9)
            ax.text(0.28, y, textwrap.shorten(claim.text, 100, placeholder=" …"), va="center", fontsize=8)
            ax.axhline(y - 0.5, color="0.85", linewidth=0.6)
        ax.text(6.1, y, METRICS[metric].name, va="center", fontsize=8, color="0.35")
    for f in found:
        cell(ax, LEFT + WIDTH * columns.index(column(found, f)), rows.index((f.claim, f.metric)), f)
    for x, (profile, evidence) in enumerate(columns):
        left, about = LEFT + WIDTH * x, PROFILES[profile]["about"].split(",")[0]
        ax.text(left, -1.15, f"{profile} {evidence}".strip(), weight="bold", va="center", fontsize=9)
        ax.text(left, -0.72, about, va="center", fontsize=8, color="0.35")
    ax.set(xlim=(0, LEFT + WIDTH * len(columns)), ylim=(len(rows) - 0.4, -1.5))
    ax.grid(False)
    ax.set_axis_off()
    counts = [f"{mark} {sum(f.verdict == verdict for f in found)} {verdict}" for verdict, mark in MARKS.items()]
    footer(figure, f"{', '.join(counts)}; effect with 95 % interval of the test that the verdict hangs on, n paired seeds; in "
           "brackets: of all finished runs, as no pair has all its runs above their baselines")  # fmt: skip
    return figure


def column(found, f):
    """The column of a finding: its profile, and its sweep where several of a profile speak to the same claim and metric."""
    alike = [g for g in found if (g.claim, g.metric, g.profile) == (f.claim, f.metric, f.profile)]
    return f.profile, f.evidence if len(alike) > 1 else ""


def cell(ax, x, y, f):
    ax.add_patch(matplotlib.patches.Rectangle((x, y - 0.46), 3.5, 0.92, color=SHADES[f.verdict], linewidth=0))
    ax.text(x + 0.06, y, f"{MARKS[f.verdict]} {f.verdict}", va="center", fontsize=8, weight="bold")
    words = f.why if f.verdict == "not run" else f"{f.effect}, n {f.n}"
    if len(words) > ROOM and f.verdict != "not run":  # without the name of the test
        opened = "(" if f.effect.startswith("(") else ""
        words = f"{opened}{f.effect.rpartition(': ')[2]}, n {f.n}"
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

    return Markdown(verdicts.summary(found).to_markdown(index=False))


def chapter(store, notebook, found):
    """Everything of one notebook, for display: the tables and figures that its sweeps name, then the verdicts of its claims.
    Raises StoreError for a name that is not known and for a broken record."""
    from IPython.display import Markdown

    sweeps = [sweep for sweep in store.sweeps() if sweep.content["notebook"] == notebook]
    if not sweeps:
        yield Markdown(f"*Not run: `biasnb notebook {notebook} --profile {store.profile}` makes it.*")
    for sweep in sweeps:
        yield Markdown(f"**{sweep.name}**: {sweep.caption()}")
        for name in sweep.content.get("tables", ()):
            yield from (Markdown(f"*{name}*"), show_table(name, sweep))
        pictures = [show_figure(name, sweep) for name in sweep.content.get("figures", ())]
        yield from (picture for picture in pictures if picture)
    decided = [f for f in found if notebook in f.claim.notebooks]
    if decided:
        yield from (Markdown("**Claims**"), table(decided))


def page(found, every):
    """All findings as Markdown: a table per profile, then every claim with its rule and its part of `every` test."""
    lines = ["# Claims and their evidence", "", "![Verdicts](claims.png)", "", READING, ""]
    for profile in dict.fromkeys(f.profile for f in found):
        lines += [f"## {profile}: {PROFILES[profile]['about']}", "", "| claim | statement | metric | verdict | effect and 95 % "
                  "interval | n | why |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for f in found:
            if f.profile == profile:
                lines.append(f"| [{f.claim.id}](#{f.claim.id.lower()}) | {f.claim.text} | {METRICS[f.metric].name} "
                             f"| {MARKS[f.verdict]} **{f.verdict}** | {f.effect} | {f.n} | {f.why} |")  # fmt: skip
        lines.append("")
    for claim in dict.fromkeys(f.claim for f in found):
        baselines = "; ".join(dict.fromkeys(METRICS[metric].baseline or "none" for metric in claim.metrics))
        where = ", ".join(f"[{name}](../notebooks/{name}.ipynb)" for name in claim.notebooks)
        lines += [f"### {claim.id}", "", f"**{claim.text}** Source: {claim.source}.", ""]
        lines += [f"Rule: {claim.rule}. Baselines: {baselines}. Runs: {where}.", ""]
        for f in found:
            if f.claim is claim and f.left_out:
                lines.append(f"Left out in {f.evidence}, {METRICS[f.metric].name}: {f.left_out}.\n")
        part = every[every.claim == claim.id] if len(every) else every
        if len(part):
            lines += [tests_in_words(part).to_markdown(index=False), ""]
    lines += ["Every number of every test: [claims.csv](claims.csv).", ""]
    return "\n".join(lines)


def digits(value):
    return "—" if pd.isna(value) else f"{value:.3g}".replace("-", "−")


def between(low, high):
    return "—" if pd.isna(low) else f"[{digits(low)}, {digits(high)}]"


def tests_in_words(part):
    """The tests of a claim, a row each."""
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
        paths = tables.write(folder / "claims", formats(board(found)))
    every = verdicts.tests(found)
    csv = every.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    tex = tables.latex(verdicts.summary(found), "Claims and verdicts", "claims")
    return paths + tables.write(folder / "claims", {".md": page(found, every), ".csv": csv, ".tex": tex})
