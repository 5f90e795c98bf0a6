"""The verdicts on the claims: a board as one picture, a page with every test, the same as CSV and LaTeX."""

import textwrap

import matplotlib
import pandas as pd

from ..config import PROFILES
from ..evidence import verdicts
from ..evidence.contrasts import METRICS
from ..evidence.hypotheses import MARKS, PAIRS
from . import formats, show_figure, show_table, tables
from .style import STYLE, canvas, footer

LEFT, WIDTH = 8.0, 3.6  # inches of words before the first profile; of a profile
ROOM = 44  # characters in a cell
SHADES = {"supported": "#b7d4ea", "contradicted": "#f5c6a5", "negligible": "#e6e0b8", "undecided": "#eeeeee",
          "uninformative": "#eeeeee", "not run": "#ffffff"}  # fmt: skip
READING = (
    "We compare networks trained with the same seed and report the mean paired difference with its 95 % t interval. A verdict "
    f"needs {PAIRS} pairs or more (one violation is enough against S2). Every run that ended counts; one that diverged counts "
    "with its random init, whose zero head predicts the image mean. Whether a network is trained is decided per setting, over "
    "its seeds and by validation values: the probe is above random init (one-sided paired t test) and on average above raw "
    "pixels; the PSNR is on average above the mean of visible neighbours. A contrast asks it only of its reference, the "
    "networks that are said to be better or are left as they are. **Supported**: every deciding test holds at the 5 % level; "
    "none is corrected, as all must hold; where any one suffices (P3) or seven effects are looked at (F1), after Holm's "
    "correction. **Contradicted**: a deciding test shows an effect on the other side of its margin, after Holm's correction "
    "over the tests of that row. **Negligible**: the effect is shown to lie within the margin around 0 (two one-sided tests). "
    "**Undecided**: none of these; the detectable effect (80 % power) says what this many pairs could have seen. "
    "**Uninformative**: the reference is not trained. Tests are two-sided t tests, except equivalence and non-inferiority, "
    "which are one-sided, and the permutation tests of L3 and L4; p is given for and against. The exact sign-flip p is a check "
    "that assumes less; with five pairs it cannot fall below .0625. The bootstrap draws seeds and test images, whole groups of "
    "them where crops of one tile or placements of one digit are not independent; with few seeds its interval is too narrow. "
    "The last columns are a sensitivity analysis: the same tests after dropping every run that is below a floor by test "
    "values, which also removes networks that fail because of what is being tested. Nothing is corrected across rows: of all "
    "rows, about one in twenty of those without an effect is decided wrongly."
)


def board(found):
    """Claims down, profiles across: verdict, effect of the key test and n as one picture."""
    rows = list(dict.fromkeys((f.claim, f.metric, f.row) for f in found))
    columns = list(dict.fromkeys(column(found, f) for f in found))
    figure, (ax,) = canvas(LEFT + WIDTH * len(columns), 0.34 * len(rows) + 1.3)
    for y, (claim, metric, row) in enumerate(rows):
        if y == 0 or rows[y - 1][0] is not claim:
            ax.text(0, y, claim.id, weight="bold", va="center", fontsize=9)
            words = f"{claim.text} {row}".strip()
            ax.text(0.28, y, textwrap.shorten(words, 100, placeholder=" …"), va="center", fontsize=8)
            ax.axhline(y - 0.5, color="0.85", linewidth=0.6)
        elif row:
            ax.text(0.5, y, row, va="center", fontsize=8, color="0.35")
        ax.text(6.1, y, METRICS[metric].name, va="center", fontsize=8, color="0.35")
    for f in found:
        cell(ax, LEFT + WIDTH * columns.index(column(found, f)), rows.index((f.claim, f.metric, f.row)), f)
    for x, (profile, evidence) in enumerate(columns):
        left, about = LEFT + WIDTH * x, PROFILES[profile]["about"].split(",")[0]
        ax.text(left, -1.15, f"{profile} {evidence}".strip(), weight="bold", va="center", fontsize=9)
        ax.text(left, -0.72, about, va="center", fontsize=8, color="0.35")
    ax.set(xlim=(0, LEFT + WIDTH * len(columns)), ylim=(len(rows) - 0.4, -1.5))
    ax.grid(False)
    ax.set_axis_off()
    counts = [f"{mark} {sum(f.verdict == verdict for f in found)} {verdict}" for verdict, mark in MARKS.items()]
    footer(figure, f"{', '.join(counts)}; effect with 95 % interval of the test that the verdict hangs on, n paired seeds")
    return figure


def column(found, f):
    """The column of a finding: its profile, and its sweep where several of a profile speak to the same claim and metric."""
    same = (f.claim, f.metric, f.row, f.profile)
    alike = [g for g in found if (g.claim, g.metric, g.row, g.profile) == same]
    return f.profile, f.evidence if len(alike) > 1 else ""


def cell(ax, x, y, f):
    ax.add_patch(matplotlib.patches.Rectangle((x, y - 0.46), 3.5, 0.92, color=SHADES[f.verdict], linewidth=0))
    ax.text(x + 0.06, y, f"{MARKS[f.verdict]} {f.verdict}", va="center", fontsize=8, weight="bold")
    words = f.why if f.verdict == "not run" else f"{f.effect}, n {f.n}"
    if len(words) > ROOM and f.verdict != "not run":  # without the name of the test
        words = f"{f.effect.rpartition(': ')[2]}, n {f.n}"
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
                  "interval | n | why | without runs below their floors |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for f in found:
            if f.profile == profile:
                text = f"{f.claim.text} *{f.row}*" if f.row else f.claim.text
                lines.append(
                    f"| [{f.claim.id}](#{f.claim.id.lower()}) | {text} | {METRICS[f.metric].name} "
                    f"| {MARKS[f.verdict]} **{f.verdict}** | {f.effect} | {f.n} | {f.why} | {f.earlier or '—'} |"
                )
        lines.append("")
    for claim in dict.fromkeys(f.claim for f in found):
        baselines = "; ".join(dict.fromkeys(METRICS[metric].baseline or "none" for metric in claim.metrics))
        where = ", ".join(f"[{name}](../notebooks/{name}.ipynb)" for name in claim.notebooks)
        lines += [f"### {claim.id}", "", f"**{claim.text}** Source: {claim.source}.", ""]
        lines += [f"Rule: {claim.rule}. Trained: {baselines}. Runs: {where}.", ""]
        for f in found:
            line = f"In {f.evidence}, {METRICS[f.metric].name}: {f.notes}.\n"
            if f.claim is claim and f.notes and line not in lines:
                lines.append(line)
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
            "p for": digits(t.p),
            "p against": digits(t.p_against),
            "p negligible": digits(t.p_negligible),
            "p for, against, after Holm": f"{digits(t.p_adjusted)}, {digits(t.p_against_adjusted)}" if t.decides else "—",
            "sign-flip p": digits(t.p_sign_flip),
            "bootstrap": between(t.bootstrap_low, t.bootstrap_high),
            "detectable": digits(t.detectable),
            "reference": t.reference,
            "verdict": t.verdict or "—",
            "without runs below their floors": f"{digits(t.mean_dropped)}, n {t.n_dropped}, p {digits(t.p_dropped)}"
            + (f", {t.verdict_dropped}" if t.decides else ""),
        }
        for t in part.itertuples()
    ]
    return pd.DataFrame(rows)


def write(found, folder):
    """Write claims.md, .csv, .tex and the board to a folder. Returns the paths."""
    with matplotlib.rc_context({**STYLE, "savefig.dpi": 80, "svg.fonttype": "none"}):
        paths = tables.write(folder / "claims", formats(board(found)))
    every = verdicts.tests(found)
    csv = every.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    tex = tables.latex(verdicts.summary(found), "Claims and verdicts", "claims")
    return paths + tables.write(folder / "claims", {".md": page(found, every), ".csv": csv, ".tex": tex})
