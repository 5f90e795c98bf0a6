"""The cube local x shared x dynamic: effects of the factorial design and their controls, and the underlying pairs of cells."""

import pandas as pd

from ..evidence import claims
from ..evidence.contrasts import Absent, Evidence, runs_of
from ..evidence.stats import AXES, mean_interval
from ..evidence.verdicts import find
from ..operators import CUBE, MIXERS
from .lines import METRICS, NAMES, at_base, done_runs, percent, with_values
from .style import GREY, KEY, canvas, caption, look, name_ends, signed, span, title

POINTS = {"psnr": "dB", "probe": "points"}
DIGITS = {"psnr": 2, "probe": 1}  # decimals of differences
WORDS = {"local": "locality", "shared": "weight sharing", "dynamic": "input dependence"}
EFFECT_COLUMNS = ["metric", "effect", "mean", "low", "high", "n", "margin", "verdict"]
STATES = {"local": ("global", "local"), "shared": ("free", "shared"), "dynamic": ("static", "dynamic")}


def tests_of(sweep, metric):
    """Return the tests of claim F1: the seven effects, then input dependence per pair of cells, and per global pair against
    static weights with attention's softmax. Raises Absent for a sweep without the cube."""
    f1 = next(claim for claim in claims.CLAIMS if claim.id == "F1")
    found = find(f1, Evidence(sweep, metric, runs_of(sweep)))
    every = [test for finding in found for test in finding.tests]
    return [test for test in every if test.decides] + [test for test in every if not test.decides]


def effect_name(label):
    """Return, for example, 'locality × weight sharing' for 'local x shared'. Tests of pairs of cells keep their label."""
    if "," in label:
        return label
    return " × ".join(WORDS[axis] for axis in label.split(" x "))


def effect_table(sweep):
    """Return a frame with EFFECT_COLUMNS, in which only the deciding tests have a verdict. Raises Absent."""
    rows = []
    for metric in METRICS:
        for test in tests_of(sweep, metric):
            row = (metric, effect_name(test.label), *test.effect[:3], test.n, test.margin, test.verdict if test.decides else "")
            rows.append(row)
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def effects(sweep):
    """Draw main effects and interactions of the three biases with their margins, and input dependence per pair of cells and
    against static weights with attention's softmax."""
    try:
        table = effect_table(sweep)
    except Absent as reason:
        return f"Not drawn: {reason}.", pd.DataFrame(columns=EFFECT_COLUMNS)
    metrics = [metric for metric in METRICS if table[table.metric == metric]["mean"].notna().any()]
    if not metrics:
        return None, table[:0]
    names = list(dict.fromkeys(table.effect))
    figure, (axes,) = canvas(3.2 + 3.6 * len(metrics), 1.5 + 0.27 * len(names), 1, len(metrics), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        part = table[table.metric == metric]
        margin = part.margin.iloc[0]
        ax.axvspan(-margin, margin, color="0.9", linewidth=0, zorder=0)
        ax.axvline(0, color="0.3", linewidth=0.8)
        for y, test in enumerate(part.itertuples()):
            ax.plot([test.low, test.high], [y, y], color="0.25", linewidth=1.4)
            fill = {"supported": "0.25", "negligible": "0.7"}.get(test.verdict, "white")
            ax.plot(test.mean, y, "o" if test.verdict else "D", color="0.25", markerfacecolor=fill, markersize=6)
        for y in (2.5, 6.5, 10.5):
            ax.axhline(y, color="0.8", linewidth=0.7)
        ax.grid(visible=False)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(f"effect on {METRICS[metric].replace('%', 'points')}")
    title(figure, "; ".join(main_effects(table[table.metric == metric], metric) for metric in metrics))
    words = "Values right of 0 mean that networks with the bias are better (for an interaction: with both biases or neither). "
    words += "The grey band is negligible; black markers are significantly outside it, grey ones inside, open ones undecided. "
    words += "Diamonds do not enter the verdict: they show input dependence in each pair of cells, and in the global cells "
    words += "what attention's softmax gives without it. Mean and 95 % t interval over n = "
    caption(figure, sweep, f"{words}{span(table.n)} paired seeds", spread="")
    return figure, table


def main_effects(part, metric):
    """Return, for example, 'PSNR: locality −0.14, weight sharing +1.20, input dependence −0.98 dB'."""
    values = part.set_index("effect")["mean"]
    found = ", ".join(f"{name} {signed(values[name], DIGITS[metric])}" for name in WORDS.values() if not pd.isna(values[name]))
    return f"{NAMES[metric]}: {found} {POINTS[metric]}"


def interactions(sweep):
    """Draw the eight cells for the first pretext in three columns, one per bias (locality, weight sharing, input dependence),
    with a line and the paired difference for every pair of cells that differ only in this bias."""
    runs = at_base(sweep, done_runs(sweep))
    runs = runs[runs.mixer.isin(CUBE)]
    rows, table = percent(runs), runs[["mixer", "seed", "psnr", "probe"]]
    pairs = {axis: pairs_along(axis, set(runs.mixer)) for axis in AXES}
    pairs = {axis: found for axis, found in pairs.items() if found}
    metrics = with_values(rows)
    if not (pairs and metrics):
        return None, table[:0]
    figure, axes = canvas(1.0 + 4.3 * len(pairs), 0.9 + 3.3 * len(metrics), len(metrics), len(pairs), sharey="row")
    said = {metric: [] for metric in metrics}
    for line, metric in zip(axes, metrics, strict=True):
        values = rows.pivot_table(index="seed", columns="mixer", values=metric)
        line[0].set_ylabel(METRICS[metric])
        every_end = []
        for ax, axis in zip(line, pairs, strict=True):
            ends = []
            for i, pair in enumerate(pairs[axis]):
                mean, half, n = mean_interval(values[pair[1]] - values[pair[0]])
                words = f"{' → '.join(pair)}: {signed(mean, DIGITS[metric])}"
                spread = f" ± {half:.{DIGITS[metric]}f}" if n > 1 else ""
                ends.append((*pair_line(ax, values, pair, 0.04 * i), words + spread, "0.25"))
                said[metric] += [words] if axis == list(pairs)[-1] else []
            every_end.append(ends)
            ax.set_xticks((0.06, 1.06), STATES[axis])
            ax.set_title(WORDS[axis] if metric == metrics[0] else "")
        for ax, ends in zip(line, every_end, strict=True):
            name_ends(ax, ends)
    by_metric = "; ".join(f"{NAMES[metric]}, {', '.join(said[metric])} {POINTS[metric]}" for metric in metrics)
    title(figure, f"{WORDS[list(pairs)[-1]].capitalize()} by pair: {by_metric}")
    words = f"the same eight cells in every column; parallel lines: no interaction; numbers: paired difference; {KEY}; "
    n = span(table.groupby("mixer").seed.nunique())
    caption(figure, sweep, f"{words}mean and 95 % t interval over n = {n} paired seeds", spread="")
    return figure, table


def pairs_along(axis, cells):
    """Return [(cell without, cell with)] for the cells that differ only in this bias."""
    others = [other for other in AXES if other != axis]
    alike = [(a, b) for a in CUBE for b in CUBE if all(getattr(MIXERS[a], o) == getattr(MIXERS[b], o) for o in others)]
    return [(a, b) for a, b in alike if not getattr(MIXERS[a], axis) and getattr(MIXERS[b], axis) and {a, b} <= cells]


def pair_line(ax, values, pair, shift):
    """Draw a line between two cells, each with its own marker, shifted horizontally by `shift`. Returns its end (x, y)."""
    found = [mean_interval(values[mixer]) for mixer in pair]
    ax.plot((shift, 1 + shift), [mean for mean, *_ in found], color=GREY, linewidth=1, zorder=1)
    for x, mixer, (mean, half, n) in zip((shift, 1 + shift), pair, found, strict=True):
        ax.errorbar(x, mean, half if n > 1 else None, **look(mixer), elinewidth=1, capsize=2)
    return 1 + shift, found[1][0]
