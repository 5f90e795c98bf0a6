"""The verdicts on the claims as a figure (the board), as a page with every test, and as CSV and LaTeX."""

import textwrap

import matplotlib
import numpy as np
import pandas as pd

from ..config import PROFILES
from ..evidence import verdicts
from ..evidence.contrasts import METRICS
from ..evidence.hypotheses import MARKS, PAIRS
from . import formats, show_figure, show_table, tables
from .style import STYLE, Picture, footer, title

LEFT, FOREST, WIDTH, NARROW = 4.0, 1.1, 3.5, 1.1  # inches: claims, forest plot, profile with forest plot, other profile
FITS = 38  # characters of an effect
COLOURS = {"supported": "#1a7f37", "contradicted": "#b3261e", "negligible": "#7a5c00"}  # other verdicts are grey
SHORT = {"loss": "loss, reversed", "probe": "probe, mean", "probe_best": "probe, best layer", "distance": "mixing distance"}
READING = (
    "We compare networks trained with the same seed and report the mean paired difference with its 95 % t interval. A verdict "
    f"needs {PAIRS} pairs or more (one violation is enough against S2). Every run that ended counts; one that diverged counts "
    "with its random init, whose zero head predicts the image mean. Whether a network is trained is decided per setting, over "
    "its seeds and by validation values: the probe is above random init (one-sided paired t test) and on average above raw "
    "pixels; the PSNR is on average above the mean of visible neighbours. A contrast asks it only of its reference, the "
    "networks that are said to be better or are left as they are; if the reference is a mean over several settings, the mean "
    "is compared. **Supported**: every deciding test holds at the 5 % level; none is corrected, as all must hold; where any "
    "one suffices (P3) or seven effects are looked at (F1), after Holm's correction. **Contradicted**: a deciding test shows "
    "an effect on the other side of its margin, after Holm's correction over the tests of that row. **Negligible**: the effect "
    "is shown to lie within the margin around 0 (two one-sided tests), even if it is also shown to differ from 0; of two "
    "effects of equal size, the one with the wider interval may therefore be supported and the other negligible. "
    "**Undecided**: none of these; the detectable effect (80 % power) says what this many pairs could have seen. "
    "**Uninformative**: the reference is not trained. Tests are two-sided t tests, except equivalence and non-inferiority, "
    "which are one-sided, and the permutation tests of L3 and L4; p is given for and against. The exact sign-flip p is a check "
    "that assumes less; with five pairs it cannot fall below .0625. The bootstrap draws seeds and test images, whole groups of "
    "them where crops of one tile or placements of one digit are not independent; with few seeds its interval is too narrow. "
    "The last columns are a sensitivity analysis: the same tests after dropping every run that does not exceed its baselines "
    "by test values, which also removes networks that fail because of what is being tested; where the verdict changes, the "
    "dropped runs are named. The linear probe is a logistic regression on whitened features, averaged over tokens, with the "
    "best of eight penalties by validation; k-NN has k = 20 and cosine similarities with temperature 0.07; both are means over "
    "layers 1 to L unless a single layer is named. Nothing is corrected across rows: of all rows, about one in twenty of those "
    "without an effect is decided wrongly."
)


def board(found):
    """Draw a forest plot with a row per claim and metric: the effects of the profile that decides most claims, and the verdicts
    of all other profiles. For a claim with several rows the least favourable row is drawn."""
    rows, decided = {}, {}
    for f in found:
        rows.setdefault((f.claim, f.metric), {}).setdefault(column(found, f), []).append(f)
        decided[column(found, f)] = decided.get(column(found, f), 0) + (f.verdict in COLOURS)
    places = sorted(decided, key=decided.get, reverse=True)
    claims, width = list(dict.fromkeys(claim for claim, _ in rows)), LEFT + WIDTH + NARROW * (len(places) - 1)
    lefts = [LEFT, *(LEFT + WIDTH + NARROW * i for i in range(len(places) - 1))]
    figure = Picture(figsize=(width, 0.36 * len(rows) + 1.2), layout="constrained")
    ax = figure.subplots()
    for y, ((claim, metric), cells) in enumerate(rows.items()):
        if claims.index(claim) % 2:
            ax.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0)
        metrics = [one for other, one in rows if other is claim]
        if metric == metrics[0]:
            middle = y + (len(metrics) - 1) / 2
            ax.text(0.05, middle, claim.id, weight="bold", va="center", fontsize=8)
            ax.text(0.42, middle, textwrap.fill(claim.text, 43), va="center", fontsize=7.5, linespacing=1.05)
        ax.text(LEFT - 0.85, y, SHORT.get(metric, METRICS[metric].name), va="center", fontsize=7.5, color="0.3")
        for place, findings in cells.items():
            cell(ax, lefts[places.index(place)], y, findings, place == places[0])
    for x, (profile, evidence) in zip(lefts, places, strict=True):
        ax.text(x, -1.4, f"{profile} {evidence}".strip(), weight="bold", va="center", fontsize=8.5)
    about = PROFILES[places[0][0]]["about"].split(",")[0]
    ax.text(LEFT + FOREST + 0.1, -1.4, textwrap.shorten(about, 40), va="center", fontsize=7.5, color="0.3")
    ax.text(LEFT + FOREST / 2, -0.8, "← against    for →", va="center", ha="center", fontsize=7.5, color="0.3")
    ax.vlines(LEFT + FOREST / 2, -0.5, len(rows) - 0.5, color="0.6", linewidth=0.7)
    ax.set(xlim=(0, width), ylim=(len(rows) - 0.4, -1.9))
    ax.set_axis_off()
    counts = pd.Series([f.verdict for f in found]).value_counts()
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if verdict in counts)
    title(figure, f"{len(found)} verdicts on {len(claims)} claims: {words}")
    words = "dot and line: the effect that the verdict hangs on, mean and 95 % t interval over n paired seeds, each row in its "
    words += "own units, turned so that the claim is right of the line; open: one seed; tick or band: the margin of the rule; "
    footer(figure, words + "of a claim with several rows the worst is drawn, and claims.md has all")
    return figure


def cell(ax, x, y, findings, whole):
    """Draw the least favourable finding on a claim and metric: its verdict and, if `whole`, its interval and the number of
    supported findings."""
    f = verdicts.worst(findings)
    colour, strong = COLOURS.get(f.verdict, "0.5"), f.verdict in COLOURS
    if not whole:
        ax.text(x, y, f"{MARKS[f.verdict]} {f.verdict}", va="center", fontsize=7.5, color=colour)
        return
    if f.key_test and f.n and not f.key_test.goal.startswith("all"):
        forest(ax, x, y, f.key_test, colour)
    said = f"{MARKS[f.verdict]} {f.verdict}" + (f", n {f.n}" if f.n else "")
    if len(findings) > 1 and f.verdict != "not run":
        said += f"; {sum(one.verdict == 'supported' for one in findings)} of {len(findings)} hold"
    ax.text(x + FOREST + 0.1, y - 0.2, said, va="center", fontsize=7.5, weight="bold", color=colour if strong else "0.4")
    words = f.why if f.verdict == "not run" else f.effect if len(f.effect) < FITS else f.effect.rpartition(": ")[2]
    ax.text(x + FOREST + 0.1, y + 0.23, textwrap.shorten(words, FITS, placeholder=" …"), va="center", fontsize=7.5,
            color="0.15" if strong else "0.45")  # fmt: skip


def forest(ax, x, y, test, colour):
    """Draw the effect of a test, positive in favour of the claim, scaled so that its interval and margin fit the column."""
    mean, low, high, *_ = test.effect
    ends = [value for value in (mean, low, high, test.margin) if not np.isnan(value)]
    turn = -1 if test.goal in ("below", "at most") else 1
    scale = turn * (FOREST / 2 - 0.08) / max(*map(abs, ends), 1e-12) / (1 if test.n > 1 else 2)
    zero, margin = x + FOREST / 2, abs(scale) * test.margin
    if test.goal in ("within", "differs"):
        ax.fill_betweenx([y - 0.3, y + 0.3], zero - margin, zero + margin, color="0.85", linewidth=0)
    elif margin:
        ax.plot([zero + scale * test.margin] * 2, [y - 0.25, y + 0.25], color="0.4", linewidth=1)
    ax.plot([zero + scale * low, zero + scale * high], [y, y], color=colour, linewidth=1.6)
    ax.plot(zero + scale * mean, y, "o", color=colour, markersize=4.5,
            markerfacecolor=colour if test.n > 1 else "white")  # fmt: skip


def column(found, f):
    """Return the column (profile, sweep) of a finding; sweep is "" unless several of the profile test its claim and metric."""
    same = (f.claim, f.metric, f.row, f.profile)
    alike = [g for g in found if (g.claim, g.metric, g.row, g.profile) == same]
    return f.profile, f.evidence if len(alike) > 1 else ""


def draw(found):
    """Return the board for display."""
    with matplotlib.rc_context(STYLE):
        figure = board(found)
        figure.draw_without_rendering()
    return figure


def table(found):
    """Return a table with one row per finding, for display without truncation."""
    from IPython.display import Markdown

    return Markdown(verdicts.summary(found).to_markdown(index=False))


def chapter(store, notebook, found):
    """Yield the results of a notebook for display: tables and figures that its sweeps name, then the verdicts of its claims.
    Raises StoreError for an unknown name and for a broken record."""
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
    """Return all findings as Markdown: a table per profile, then every claim with its rule and its tests (of frame `every`)."""
    lines = ["# Claims and their evidence", "", "![Verdicts](claims.png)", "", READING, ""]
    for profile in dict.fromkeys(f.profile for f in found):
        lines += [f"## {profile}: {PROFILES[profile]['about']}", "", "| claim | statement | metric | verdict | effect and 95 % "
                  f"interval | n | why | {verdicts.STRICTLY} |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for f in found:
            if f.profile == profile:
                text = f"{f.claim.text} *{f.row}*" if f.row else f.claim.text
                verdict = f"{MARKS[f.verdict]} **{f.verdict}** | {f.effect} | {f.n} | {f.why} | {f.sensitivity or '—'}"
                lines.append(f"| [{f.claim.id}](#{f.claim.id.lower()}) | {text} | {METRICS[f.metric].name} | {verdict} |")
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
    """Return a table of text with a row per test of a claim."""
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
            verdicts.STRICTLY: f"{digits(t.mean_dropped)}, n {t.n_dropped}, p {digits(t.p_dropped)}"
            + (f", {t.verdict_dropped}" if t.decides else ""),
        }
        for t in part.itertuples()
    ]
    return pd.DataFrame(rows)


def write(found, folder):
    """Write claims.md, claims.csv, claims.tex and the board to a folder. Returns the paths."""
    with matplotlib.rc_context({**STYLE, "savefig.dpi": 110, "svg.fonttype": "none"}):
        paths = tables.write(folder / "claims", formats(board(found)))
    every = verdicts.tests(found)
    csv = every.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    tex = tables.latex(verdicts.summary(found), "Claims and verdicts", "claims")
    return paths + tables.write(folder / "claims", {".md": page(found, every), ".csv": csv, ".tex": tex})
