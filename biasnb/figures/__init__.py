"""From records to figures and tables, each made by its name for any sweep. `lines`, `dots`, `effects` and `pictures` each draw
one kind of figure, `tables` makes the tables, `board` draws the verdicts on the claims, and `style` defines the common style.
Imports `evidence`, `records`, the configuration and the table of operators, but not torch."""

import io
from functools import partial

import matplotlib

from ..records.files import write_atomic
from . import dots, effects, lines, pictures, tables
from .style import STYLE, Picture
from .tables import TABLES, write_tables

__all__ = ["FIGURES", "TABLES", "show_figure", "show_table", "write_card", "write_figures", "write_tables"]

# Name -> function of a sweep that returns (figure, its numbers as a data frame). In place of the figure it returns None if the
# sweep has no such data, or text that says why the figure is not drawn.
FIGURES = {
    "rows": pictures.reconstructions,
    "errors": pictures.absolute_errors,
    "steps": lines.psnr_by_step,
    "curves": lines.learning_curves,
    "layers": lines.probe_by_layer,
    "depth": lines.by_depth,
    "levels": lines.levels,
    "mask_rate": partial(lines.levels, only=("mask_rate",)),
    "sample_size": partial(lines.levels, only=("images", "labelled")),
    "switch": lines.switch,
    "effects": effects.effects,
    "interactions": effects.interactions,
    "psnr_probe": dots.psnr_probe,
    "loss_probe": dots.loss_probe,
    "distance": dots.distance,
    "symmetry": dots.symmetry,
}
# Metadata left out of the files, so that equal records give equal bytes.
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def show_figure(name, sweep):
    """Return a figure for display in a notebook: an image, a line that says why it is not drawn, or None if the sweep has no
    such data. A figure of the user's runs is also written to runs/PROFILE/figures. Raises StoreError for a name that is not in
    FIGURES and for a broken record."""
    from IPython.display import Image, Markdown

    with matplotlib.rc_context(STYLE):
        figure, _ = draw(name, sweep)
        if not isinstance(figure, Picture):
            return figure and Markdown(f"*{figure}*")
        content = encoded(figure, "png")
    if sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "figures" / f"{sweep.name}-{name}.png", content)
    alternative = f"{name}: {figure.heading()}"  # read by screen readers
    return Image(content, width=round(figure.get_figwidth() * STYLE["figure.dpi"]), alt=alternative)


def show_table(name, sweep):
    """Return a table of a sweep for display, whose caption has the settings of its runs and the protocol of the probe. A table
    of the user's runs is also written to runs/PROFILE/tables. Raises StoreError for a name that is not in TABLES, a broken
    record or a wrong entry in results/reported.toml."""
    table = tables.make(name, sweep)
    if sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "tables" / f"{sweep.name}-{name}.md", tables.markdown(sweep, table))
    return table.style.hide(axis="index").set_caption(tables.heading(sweep, table))


def write_figures(sweep, folder):
    """Write the figures that a sweep names to a folder as PNG, SVG and PDF, and their numbers as NAME-numbers.csv (NAME.csv is
    the table of the same name). Figures that are not drawn are left out. Returns the paths. Raises StoreError for a name that
    is not in FIGURES and for a broken record."""
    paths = []
    for name in sweep.content.get("figures", ()):
        with matplotlib.rc_context(STYLE):
            figure, numbers = draw(name, sweep)
            if isinstance(figure, Picture):
                csv = numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g")
                paths += tables.write(folder / f"{sweep.name}-{name}", {**formats(figure), "-numbers.csv": csv})
    return paths


def write_card(sweeps, folder):
    """Write card.png, the picture of the front page, from the last of these sweeps with reconstructions. Returns the paths."""
    with matplotlib.rc_context(STYLE):
        for sweep in reversed(sweeps):
            if card := pictures.card(sweep):
                return tables.write(folder / "card", {".png": encoded(card, "png")})
    return []


def draw(name, sweep):
    """Return the value of FIGURES[name] for a sweep. The caller must set the style STYLE."""
    tables.known("figure", [name], FIGURES)
    return FIGURES[name](sweep)


def formats(figure):
    """Return {suffix: bytes} of a figure as PNG, SVG and PDF. The caller must set the style STYLE."""
    return {f".{kind}": encoded(figure, kind) for kind in UNDATED}


def encoded(figure, kind):
    """Return the bytes of a figure, with its title as metadata, as png, svg or pdf. The layout of the first format is kept for
    the others."""
    buffer, title = io.BytesIO(), {"Title": figure.heading()} if figure.heading() else {}
    figure.savefig(buffer, format=kind, metadata=UNDATED[kind] | title)
    figure.set_layout_engine(None)
    return buffer.getvalue()
