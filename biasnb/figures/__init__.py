"""From records to pictures and tables, each drawn by its name for any sweep. `curves`, `levels`, `cube` and `features` have a
kind of figure each, `tables` the tables, `board` the picture of the claims, `style` the parts that figures share. Imports
`evidence`, `records`, the configuration and the table of operators, and no torch. Notebooks import `show_figure` and
`show_table` from here."""

import io
import struct

import matplotlib

from ..records.files import write_atomic
from . import cube, curves, features, levels, tables
from .style import STYLE
from .tables import TABLES, write_tables

__all__ = ["FIGURES", "TABLES", "show_figure", "show_table", "write_figures", "write_tables"]

# Name -> function of a sweep that gives the figure and its numbers as a frame; no figure (None) where the sweep has nothing
# of the kind.
FIGURES = {
    "curves": curves.learning_curves,
    "layers": curves.probe_by_layer,
    "psnr": curves.psnr_by_depth,
    "gap": curves.gap,
    "probe": curves.probe_by_depth,
    "mask_rate": curves.mask_rate,
    "sample_size": curves.sample_size,
    "loss_probe": curves.loss_probe,
    "levels": levels.levels,
    "combinations": levels.combinations,
    "cube": cube.cube,
    "effects": cube.effects,
    "interactions": cube.interactions,
    "rows": features.reconstructions,
    "completions": features.completions,
    "symmetry": features.symmetry,
    "switch": features.switch,
    "spectrum": features.spectrum,
    "fields": features.fields,
    "distance": features.distance,
    "similarity": features.similarity,
}
# Metadata that is left out, so that the same records give the same bytes.
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def show_figure(name, sweep):
    """What a notebook displays of a figure, or None where the sweep has nothing of the kind. That of your own runs is also
    written to runs/PROFILE/figures. Raises StoreError for a name that is not in FIGURES and for a broken record."""
    with matplotlib.rc_context(STYLE):
        figure, _ = draw(name, sweep)
        content = encoded(figure, "png") if figure else None
    if figure and sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "figures" / f"{sweep.name}-{name}.png", content)
    return displayed(content) if figure else None


def show_table(name, sweep):
    """A table of a sweep as a frame. That of your own runs is also written to runs/PROFILE/tables. Raises StoreError for a
    name that is not in TABLES, a broken record or a wrong entry in results/reported.toml."""
    table = tables.make(name, sweep)
    if sweep.store.base == "runs":
        write_atomic(sweep.store.folder / "tables" / f"{sweep.name}-{name}.md", tables.markdown(sweep, table))
    return table


def write_figures(sweep, folder):
    """Write the figures that a sweep names as PNG, SVG and PDF to a folder, their numbers beside them as NAME-numbers.csv, as a
    table of the same name has a CSV file too; a figure that the sweep has nothing for is left out. Returns the paths. Raises
    StoreError for a name that is not in FIGURES and for a broken record."""
    paths = []
    for name in sweep.content.get("figures", ()):
        stem = folder / f"{sweep.name}-{name}"
        with matplotlib.rc_context(STYLE):
            figure, numbers = draw(name, sweep)
            if figure is None:
                continue
            paths += save(figure, stem)
        paths.append(stem.with_name(f"{stem.name}-numbers.csv"))
        write_atomic(paths[-1], numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    return paths


def draw(name, sweep):
    """The figure of this name, or None, and its numbers. To be called within the suite's style."""
    tables.known("figure", [name], FIGURES)
    return FIGURES[name](sweep)


def save(figure, stem):
    """Write a figure as PNG, SVG and PDF; returns the paths. To be called within the suite's style."""
    paths = []
    for kind in UNDATED:
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomic(paths[-1], encoded(figure, kind))
    return paths


def encoded(figure, kind):
    """The bytes of a figure as png, svg or pdf. It is laid out once, for all formats."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=UNDATED[kind])
    figure.set_layout_engine(None)
    return buffer.getvalue()


def displayed(png):
    """A picture for display, in the size of a figure on the screen."""
    from IPython.display import Image

    (width,) = struct.unpack(">I", png[16:20])
    return Image(png, width=round(width * STYLE["figure.dpi"] / STYLE["savefig.dpi"]))
