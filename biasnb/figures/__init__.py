"""From records to pictures and tables, each drawn by its name for any sweep. `lines`, `dots`, `effects` and `pictures` have a
kind of figure each, `tables` the tables, `board` the picture of the claims, `style` the one look of all. Imports `evidence`,
`records`, the configuration and the table of operators, and no torch."""

import io
from functools import partial

import matplotlib

from ..records.files import write_atomic
from . import dots, effects, lines, pictures, tables
from .style import STYLE, Picture
from .tables import TABLES, write_tables

__all__ = ["FIGURES", "TABLES", "show_figure", "show_table", "write_figures", "write_tables"]

# Name -> function of a sweep that gives its numbers as a frame, and before them the figure, None where the sweep has nothing of
# the kind, or words that say why it is not drawn.
FIGURES = {
    "rows": pictures.reconstructions,
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
# Metadata that is left out, so that the same records give the same bytes.
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def show_figure(name, sweep):
    """What a notebook displays of a figure: the picture, a line that says why there is none, or None where the sweep has
    nothing of the kind. That of your own runs is also written to runs/PROFILE/figures. Raises StoreError for a name that is
    not in FIGURES and for a broken record."""
    from IPython.display import Image, Markdown

    with matplotlib.rc_context(STYLE):
        figure, _ = draw(name, sweep)
        if not isinstance(figure, Picture):
            return figure and Markdown(f"*{figure}*")
        content = encoded(figure, "png")
    if sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "figures" / f"{sweep.name}-{name}.png", content)
    alternative = f"{name}: {' '.join(figure.get_suptitle().split())}"  # for those who do not see it
    return Image(content, width=round(figure.get_figwidth() * STYLE["figure.dpi"]), alt=alternative)


def show_table(name, sweep):
    """A table of a sweep as a frame. That of your own runs is also written to runs/PROFILE/tables. Raises StoreError for a
    name that is not in TABLES, a broken record or a wrong entry in results/reported.toml."""
    table = tables.make(name, sweep)
    if sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "tables" / f"{sweep.name}-{name}.md", tables.markdown(sweep, table))
    return table


def write_figures(sweep, folder):
    """Write the figures that a sweep names as PNG, SVG and PDF to a folder, their numbers beside them as NAME-numbers.csv, as a
    table of the same name has a CSV file too; a figure that is not drawn is left out. Returns the paths. Raises
    StoreError for a name that is not in FIGURES and for a broken record."""
    paths = []
    for name in sweep.content.get("figures", ()):
        with matplotlib.rc_context(STYLE):
            figure, numbers = draw(name, sweep)
            if isinstance(figure, Picture):
                csv = numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g")
                paths += tables.write(folder / f"{sweep.name}-{name}", {**formats(figure), "-numbers.csv": csv})
    return paths


def draw(name, sweep):
    """The figure of this name, or what stands in its place, and its numbers. To be called within the suite's style."""
    tables.known("figure", [name], FIGURES)
    return FIGURES[name](sweep)


def formats(figure):
    """Suffix -> the bytes of a figure as PNG, SVG and PDF. To be called within the suite's style."""
    return {f".{kind}": encoded(figure, kind) for kind in UNDATED}


def encoded(figure, kind):
    """The bytes of a figure as png, svg or pdf. It is laid out once, for all formats."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=UNDATED[kind])
    figure.set_layout_engine(None)
    return buffer.getvalue()
