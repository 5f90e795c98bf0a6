import json
import os
from itertools import pairwise

import numpy as np
import pytest
from forked import python
from PIL import Image
from synthetic import NO_TORCH, record_of, run_record, saved_sweep

from biasnb.config import Config
from biasnb.figures import FIGURES, TABLES, curves, levels, show_figure, show_table, style, tables, write_figures, write_tables
from biasnb.figures.style import BASELINES
from biasnb.operators import CUBE
from biasnb.records import places, store
from biasnb.records.store import Store, StoreError

CHECKOUT = places.CHECKOUT
STUDIES = [path.stem for path in sorted((CHECKOUT / "results/quick/sweeps").glob("*.json"))]


def test_summary_shows_mean_interval_n_and_baselines(root):
    table = tables.summary(saved_sweep(Store("smoke"), seed=[0, 1, 2]))
    assert table["n"].tolist() == [3] * 6
    assert table["masked PSNR, dB"].str.fullmatch(r"(24|22|20|23|21|19)\.\d\d ± 0\.\d\d \(3\)").all()
    assert table["neighbour mean, dB"].tolist() == ["21.70"] * 6
    assert table["raw pixels, %"].tolist() == ["42.0"] * 6
    assert "accuracy, %" not in table


@pytest.mark.fault("F11")
def test_missing_failed_and_diverged_runs_are_counted_and_never_averaged(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2, 3])
    before = tables.summary(g)
    keys = [run["key"] for run in g.content["runs"] if run["mixer"] == "igpt" and run["depth"] == 1]
    for key in (keys[0], keys[3]):
        g.store.path(key).unlink()
    g.store.path(keys[3], ".error").write_text("MemoryError")
    g.store.save(run_record("igpt", 1, 1, status="diverged"))
    row = tables.summary(g).set_index(["network", "depth"]).loc[("iGPT (attention)", "1")]
    assert (row["n"], row["diverged"], row["failed"], row["missing"]) == (1, 1, 1, 1)
    assert g.frame().set_index("key").status[keys].tolist() == ["missing", "diverged", "done", "failed"]
    left = g.store.load(keys[2])["psnr"]["test"]
    assert row["masked PSNR, dB"] == f"{left:.2f} (1)"
    assert before.set_index(["network", "depth"]).loc[("iGPT (attention)", "1"), "n"] == 4
    cells = tables.depths(g)
    assert all(cell.endswith("(1)") for cell in cells[cells.network == "iGPT (attention)"]["depth 1"])
    for key in keys:
        g.store.path(key).unlink(missing_ok=True)
    gaps = tables.differences(g)
    gaps = gaps[gaps.difference.str.contains("iGPT") & (gaps.depth == 1)]
    assert gaps["masked PSNR, dB"].tolist() == gaps["probe, points"].tolist() == ["—"] * 2


def test_differences_are_paired_by_seed(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    frame = g.frame().pivot(index=["depth", "seed"], columns="mixer", values="psnr").loc[2]
    row = tables.differences(g).set_index(["difference", "depth"]).loc[("iGPT (attention) − ConvMixer (convolution)", 2)]
    assert row["masked PSNR, dB"] == tables.plus_minus(frame["igpt"] - frame["convmixer"], 2)
    assert row["n"] == 3
    assert len(tables.differences(g)) == 3 * 2


def test_effects_of_the_cube_are_those_of_the_design_over_complete_seeds(root):
    """PSNR falls by 2 dB from cell to cell in the order of the cube, so the effects are known up to the noise of 0.1 dB."""
    g = saved_sweep(Store("smoke"), "21_cube", pretext="bert")
    table = tables.effects(g).set_index("effect")
    assert table["n"].tolist() == [2] * 7
    known = {"local": 1 * 2, "shared": 2 * 2, "dynamic": -4 * 2, "local x shared": 0, "local x shared x dynamic": 0}
    for effect, value in known.items():
        assert float(table.loc[effect, "PSNR, dB"].split(" ± ")[0]) == pytest.approx(value, abs=0.3), effect
    assert table.loc["local", "probe, points"] == "0.0 ± 0.0 (2)"
    g.store.path(next(run["key"] for run in g.runs if run["mixer"] == "attn" and run["seed"] == 1)).unlink()
    assert tables.effects(g)["n"].tolist() == [1] * 7


def broken(g):
    """One run of the sweep diverged and, where there are more, the first missing and the last failed: their numbers."""
    first, middle, last = (g.runs[i] for i in (0, len(g.runs) // 2, -1))
    g.store.save(
        record_of(
            Config(**{name: middle[name] for name in middle if name not in ("key", "baseline", "init")}), status="diverged"
        )
    )
    lost = {first["key"], last["key"]} - {middle["key"]}
    for key in lost:
        g.store.path(key).unlink()
    failed = last["key"] in lost
    if failed:
        g.store.path(last["key"], ".error").write_text("MemoryError")
    return {"n": len(g.runs) - 1 - len(lost), "diverged": 1, "failed": failed, "missing": len(lost) - failed}


def test_every_figure_and_table_is_shown_by_a_committed_sweep():
    shown = [json.loads((CHECKOUT / f"results/quick/sweeps/{study}.json").read_text()) for study in STUDIES]
    assert {name for names in shown for name in names["figures"]} == set(FIGURES)
    assert {name for names in shown for name in names["tables"]} == set(TABLES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_all_that_a_study_shows_is_written_and_drawn_again_alike(root, monkeypatch, study):
    """SVG and PDF take long and are left empty here; the next test but one has them."""
    monkeypatch.setitem(style.STYLE, "savefig.dpi", 60)
    save = style.Picture.savefig
    monkeypatch.setattr(style.Picture, "savefig", lambda *a, format, **k: format == "png" and save(*a, format=format, **k))
    g = saved_sweep(Store("smoke"), study)
    paths = write_figures(g, root / "all") + write_tables(g, root / "all")
    pictures = [f"{study}-{n}{s}" for n in g.content["figures"] for s in (".png", ".svg", ".pdf", "-numbers.csv")]
    pages = [f"{study}-{n}{s}" for n in g.content["tables"] for s in (".md", ".csv", ".tex")]
    assert [path.name for path in paths] == pictures + pages
    assert len(set(paths)) == len(paths), "a figure and a table in one file"
    assert all(path.read_text().count("\n") > 1 for path in paths if path.suffix in (".csv", ".md"))
    again = write_figures(g, root / "again") + write_tables(g, root / "again")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        if one.suffix == ".tex":
            latex_is_whole(one.read_bytes().decode("ascii"))


def latex_is_whole(text):
    """As many cells in every row, and balanced braces."""
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}") and bare.replace(r"\$", "").count("$") % 2 == 0
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0].replace("\\midrule\n", "").splitlines()
    columns = len(text.split(r"\begin{tabular}{")[1].split("}")[0])
    assert [line.replace(r"\&", "").count("&") + 1 for line in body] == [columns] * len(body)
    assert all(line.endswith(r" \\") for line in body)


def rows(table):
    """What the rows of a table are of, but for the baselines."""
    first = table.iloc[:, :2].astype(str).agg(" ".join, axis=1)
    return [row for row in first if not row.startswith(tuple(BASELINES.values()))]


def tables_of(g):
    return {name: TABLES[name](g) for name in g.content["tables"]}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_with_gaps_is_drawn_and_its_tables_count_them(root, study):
    g = saved_sweep(Store("smoke"), study)
    whole = {name: rows(table) for name, table in tables_of(g).items()}
    states, runs = broken(g), len(g.runs)
    for name, table in tables_of(g).items():
        assert rows(table) == whole[name], name
        if "missing" in table:
            assert {state: table[state].sum() for state in states} == states, name
    for name in g.content["figures"]:
        show_figure(name, g)
    for path in g.store.folder.glob("*.json"):
        path.unlink()
    for name, table in tables_of(g).items():
        assert rows(table) == whole[name], name
        assert "missing" not in table or table["missing"].sum() == runs - states["failed"], name
        assert "n" not in table or table["n"].sum() == 0, name
    for name in g.content["figures"]:
        show_figure(name, g)
    assert write_tables(g, root / "tables")


def test_a_notebook_shows_what_is_written_and_that_of_your_own_runs_is_kept(root):
    g = saved_sweep(Store("smoke"), "40_reconstructions")
    picture, kept = show_figure("rows", g), root / "runs/smoke/figures/40_reconstructions-rows.png"
    assert picture.data == kept.read_bytes() and picture.width == pytest.approx(10.5 * style.STYLE["figure.dpi"], abs=1)
    assert show_figure("rows", g).data == picture.data
    written = write_figures(g, root / "all")
    assert {path.suffix for path in written} == {".png", ".svg", ".pdf", ".csv"} and written[0].read_bytes() == picture.data
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(written, write_figures(g, root / "b"), strict=True))
    table = show_table("reconstruction", g)
    assert "masked PSNR, dB" in table and "paper" in table
    page = root / "runs/smoke/tables/40_reconstructions-reconstruction.md"
    assert page.read_text() == write_tables(g, root / "all")[0].read_text()
    os.symlink(CHECKOUT / "results", root / "results")
    reference = next(sweep for sweep in Store("quick", "results").sweeps() if sweep.name == "40_reconstructions")
    assert show_figure("rows", reference).data != picture.data and len(show_table("reconstruction", reference))
    assert {path.name for path in (root / "runs").glob("*/*/*.*")} == {kept.name, page.name}


def test_names_are_for_any_sweep_and_an_unknown_one_names_the_nearest(root):
    g = saved_sweep(Store("smoke"), "25_skip")
    assert show_figure("curves", g) and show_figure("mask_rate", g) is None and len(show_table("depths", g))
    for show, what, name, nearest in ((show_figure, "figure", "levls", "levels"), (show_table, "table", "sumary", "summary")):
        with pytest.raises(StoreError) as refused:
            show(name, g)
        assert str(refused.value) == f"{what}: {name!r} is not known; did you mean {nearest!r}?"
    for name in FIGURES:  # none needs a sweep that was made for it
        show_figure(name, g)
    for name in TABLES:
        show_table(name, g)
    g.content["figures"] = ["curvs"]
    with pytest.raises(StoreError, match="figure: 'curvs' is not known; did you mean 'curves'"):
        write_figures(g, root / "all")


@pytest.mark.parametrize("pretext", ["ar", "supervised", "none"])
def test_a_notebook_under_another_pretext_is_drawn(root, pretext):
    """No PSNR under the last two, no loss curve under 'none'."""
    g = saved_sweep(Store("smoke"), "20_trio", pretext=pretext, seed=[0], depth=[1])
    for name in g.content["figures"]:
        show_figure(name, g)
    assert tables.differences(g)["n"].tolist() == [1] * 3
    assert len(tables.cost(g)) == 3
    row = tables.summary(g).iloc[0]
    assert ("PSNR, dB" in row, "accuracy, %" in row, "loss" in row) == {
        "ar": (True, False, True), "supervised": (False, True, True), "none": (False, False, False)}[pretext]  # fmt: skip
    assert "masked PSNR, dB" not in row and "neighbour mean, dB" not in row


# Put before a script: at its end the CPU seconds that it and its processes have spent.
SPENT = """
import atexit, os
atexit.register(lambda: print(sum(os.times()[:4]), flush=True))
"""
ONLY_PNG = """
from biasnb.figures import style
save = style.Picture.savefig
style.Picture.savefig = lambda *given, format, **more: format == "png" and save(*given, format=format, **more)
"""


def test_committed_figures_are_drawn_from_committed_records_fast_without_torch(tmp_path):
    """`figures/` shows what `results/` gives, drawn anew in another time zone and locale, torch barred. SVG and PDF, which are
    half of the work, are left empty here: of them it is only looked whether they are there."""
    for name in ("results", "figures"):
        assert (CHECKOUT / name).is_dir()
    os.symlink(CHECKOUT / "results", tmp_path / "results")
    script = NO_TORCH + ONLY_PNG + "from biasnb.suite.commands import main; sys.exit(main(['figures']))"
    said = python(tmp_path, "-c", SPENT + script, TZ="Asia/Tokyo", LC_ALL="C")
    assert float(said.split()[-1]) < 60
    drawn = {p.relative_to(tmp_path / "figures") for p in (tmp_path / "figures").rglob("*") if p.is_file()}
    committed = {p.relative_to(CHECKOUT / "figures") for p in (CHECKOUT / "figures").rglob("*") if p.is_file()}
    assert drawn and drawn == committed
    for path in drawn:
        one, other = tmp_path / "figures" / path, CHECKOUT / "figures" / path
        if path.suffix in (".md", ".csv", ".tex"):
            assert one.read_bytes() == other.read_bytes(), path
        elif path.suffix == ".png":  # another matplotlib may set a few pixels otherwise
            a, b = (np.asarray(Image.open(p).convert("RGB"), int) for p in (one, other))
            assert a.shape == b.shape and (np.abs(a - b).max(2) > 32).mean() < 0.01, path


def test_committed_records_validate_and_hold_no_path():
    for folder in sorted(path for path in (CHECKOUT / "results").glob("*") if path.is_dir()):
        reference = Store(folder.name, "results")
        assert reference.sweeps()
        for g in reference.sweeps():
            assert not g.missing(), g.name
            for key in g.keys:
                assert "arrays" not in reference.load(key) or reference.arrays(key)
        for path in (*folder.rglob("*.json"), folder / "records.jsonl"):
            assert '"/' not in path.read_text(), path


def test_light_commands_import_no_torch(tmp_path):
    script = "from biasnb.suite.commands import main\nfor words in ('--help', 'list', 'status --profile smoke'):\n"
    python(tmp_path, "-c", NO_TORCH + script + "    assert not main(words.split())")


def test_every_operator_is_in_every_panel_of_a_factor_that_it_reads(root):
    """An operator that does not read one factor of a sweep is still compared on the others."""
    g = saved_sweep(Store("smoke"), "24_geometry")
    runs = levels.done_runs(g)
    for name in g.factors():
        shown = levels.at_base(g, runs, name)
        for mixer in ("convmixer", "mixer", "igpt"):
            count = shown[shown.mixer == mixer][name].dropna().nunique()
            assert count >= 2 or (name == "kernel" and mixer != "convmixer"), (name, mixer)


def test_the_base_of_a_sweep_is_the_point_that_it_varies_around(root):
    assert saved_sweep(Store("smoke"), "24_geometry").base() == {
        "depth": 1, "width": 8, "patch": 2, "kernel": 3, "mask_rate": 0.5, "budget": "steps", "steps": 4}  # fmt: skip
    assert saved_sweep(Store("smoke"), "21_cube").base() == {"pretext": "bert", "kernel": 3, "rank": 2}


# ---- curves -------------------------------------------------------------------------------------------------------------


def test_the_gap_is_that_of_networks_of_one_seed_and_depth(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    figure, table = curves.gap(g)
    known = g.frame().pivot(index=["depth", "seed"], columns="mixer", values="psnr")
    for row in table.itertuples():
        assert row.psnr == pytest.approx(known.loc[(row.depth, row.seed), row.mixer] - known.loc[(row.depth, row.seed), "igpt"])
    assert len(table) == 2 * 2 * 3 and len(figure.axes) == 2
    g.store.path(next(run["key"] for run in g.runs if (run["mixer"], run["depth"], run["seed"]) == ("igpt", 1, 2))).unlink()
    assert len(curves.gap(g)[1]) == 12 - 2


def test_the_interaction_plot_shows_the_eight_cells_under_the_first_pretext(root):
    g = saved_sweep(Store("smoke"), "21_cube")
    figure, table = FIGURES["interactions"](g)
    assert table.groupby("mixer").size().to_dict() == dict.fromkeys(CUBE, 2)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"●● local, shared\nconv → lattn", "●○ local\nlc → lattn_abs", "○● shared\ngconv → gattn",
            "○○ neither\nfull → attn"} < set(words)  # fmt: skip
    assert "n = 2 paired seeds" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("plain", ["leaves", "digits"])
def test_the_switch_is_between_the_data_set_and_the_twin_that_were_asked_for(root, plain):
    g = saved_sweep(Store("smoke"), "30_symmetry", fields=[plain, f"{plain}_coded"])
    figure, table = FIGURES["switch"](g)
    for ax in figure.axes:
        assert [label.get_text().split("\n")[0] for label in ax.get_xticklabels()] == [plain, "twin with a code by place"]
    assert table.groupby("dataset").size().to_dict() == {plain: 4, f"{plain}_coded": 4}


def test_losses_are_compared_with_probes_only_where_the_task_is_the_same(root):
    g = saved_sweep(Store("smoke"), "24_geometry")
    frame = g.frame()
    same = (frame.patch == 2) & (frame.mask_rate == 0.5) & (frame.budget == "steps") & (frame.steps == 4)
    assert 0 < len(curves.loss_probe(g)[1]) == same.sum() < len(frame)


def test_sizes_are_the_numbers_of_images_and_equal_runs_count_once(root):
    """All images asked for by name or as 0 are the same run of a seed."""
    g = saved_sweep(Store("smoke"), "27_sample_size")
    for run in g.runs:
        record = g.store.load(run["key"])
        record["data"] |= {"pool": min(run["images"] or 64, 64), "train": run["labelled"]}
        g.store.save(record, g.store.arrays(run["key"]))
    figure, table = curves.sample_size(g)
    assert set(table.n_images) == {64} and set(table.n_labelled) == {100, 200}
    labels = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes]
    assert labels == [["64\n(all)"], ["64\n(all)"], ["100", "200"]]
    dots = [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "."]
    assert dots == [1, 1, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("study", "name", "overrides", "panels"),
    [
        ("20_trio", "gap", {"seed": 0, "depth": 1}, 2),
        ("20_trio", "gap", {"mixer": ["mixer", "igpt"], "pretext": "supervised"}, 1),
        ("20_trio", "gap", {"mixer": ["mixer", "convmixer"]}, None),
        ("20_trio", "gap", {"mixer": "igpt"}, None),
        ("21_cube", "interactions", {"mixer": ["conv", "lattn"], "pretext": "ar"}, 2),
        ("21_cube", "interactions", {"mixer": ["conv", "full"]}, None),
        ("24_geometry", "mask_rate", {"mask_rate": 0.75}, None),
        ("24_geometry", "mask_rate", {"mixer": "conv"}, 2),
        ("24_geometry", "loss_probe", {"mixer": "conv", "depth": 1, "width": 8, "kernel": 3}, 1),
        ("24_geometry", "loss_probe", {"pretext": "none"}, None),
        ("27_sample_size", "sample_size", {"images": 0}, 1),
        ("27_sample_size", "sample_size", {"images": 0, "labelled": 100}, None),
        ("27_sample_size", "sample_size", {"pretext": "supervised"}, 1),
    ],
)
def test_a_restricted_sweep_is_drawn_as_far_as_it_compares_anything(root, study, name, overrides, panels):
    g = saved_sweep(Store("smoke"), study, **overrides)
    make = FIGURES[name]
    figure, table = make(g)
    assert (figure and len(figure.axes)) == panels and "probe" in table
    assert figure or table.empty
    assert (show_figure(name, g) is None) == (panels is None)
    for path in g.store.folder.glob("*.json"):
        path.unlink()
    nothing, none = make(g)
    assert nothing is None and none.empty and list(none) == list(table)


def test_names_of_lines_stay_apart_in_order_and_inside_the_panel():
    figure, (ax,) = style.canvas(6, 4)
    ax.plot([0, 1], [0, 10])
    levels = [0.0, 0.01, 0.02, 5.0, 9.99, 10.0, float("nan")]
    curves.name_ends(ax, [curves.end(level, f"line {i}\nmore", "conv") for i, level in enumerate(levels)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text()[5] for text in ax.texts] == list("012345")
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    panel = ax.get_window_extent()
    assert panel.y0 <= boxes[0].y0 and boxes[-1].y1 <= panel.y1
    assert abs((boxes[3].y0 + boxes[3].y1 - panel.y0 - panel.y1) / panel.height) < 0.05


# ---- tables -------------------------------------------------------------------------------------------------------------


def test_the_table_of_depths_holds_the_numbers_of_the_summary_and_the_baselines(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    pivoted, rows = tables.depths(g).set_index(["network", "metric"]), tables.summary(g)
    for row in rows.to_dict("records"):
        for metric in ("masked PSNR, dB", "probe, %", "probe at random init, %"):
            assert pivoted.loc[(row["network"], metric), f"depth {row['depth']}"] == row[metric]
    assert pivoted.loc[("visible-neighbour mean", "masked PSNR, dB")].tolist() == ["21.70"] * 2
    assert pivoted.loc[("raw pixels", "probe, %")].tolist() == ["42.0"] * 2


def test_latex_writes_every_character():
    table = tables.pd.DataFrame({"a_b & 50 %": ["-1.5 ± 0.2 (3)", "cifar10-jpeg {x} ~^\\$#<é"]})
    text = tables.latex(table, "50 % of a_b", "20_trio-été")
    assert r"a\_b \& 50 \%" in text and r"$-$1.5 $\pm$ 0.2 (3)" in text and r"\caption{50 \% of a\_b}" in text
    assert r"cifar10-jpeg \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}\$\#$<$\symbol{233}" in text
    assert r"\label{tab:20-trio-t-}" in text and text.isascii()


ENTRY = """[[reported]]
table = "20_trio-summary"
row = { network = "iGPT (attention)", depth = "1" }
value = "44.1 % probe"
source = "Table 1"
"""


def enter(root, text):
    store.write_atomic(root / "results" / "reported.toml", text)


def test_a_number_of_the_paper_stands_in_its_row_of_its_table(root):
    g = saved_sweep(Store("smoke"))
    assert set(tables.make("summary", g).paper) == {"—"}
    other = ENTRY.replace("trio-summary", "trio-differences").replace("iGPT (attention)", "x").replace("network", "difference")
    enter(root, ENTRY + ENTRY.replace("44.1 % probe", "5 dB") + ENTRY.replace('"1"', '"16"'))
    table = tables.make("summary", g)
    assert list(table)[-1] == "paper"
    shown = table[table.paper != "—"]
    assert shown[["network", "depth", "paper"]].values.tolist() == [
        ["iGPT (attention)", "1", "44.1 % probe (Table 1); 5 dB (Table 1)"]]  # fmt: skip
    assert set(tables.make("cost", g).paper) == {"—"}
    assert "44.1 % probe (Table 1)" in next(p for p in write_tables(g, root) if p.name == "20_trio-summary.csv").read_text()
    enter(root, other)
    with pytest.raises(StoreError, match=r"entry 1: difference: 'x' is not known; did you mean"):
        tables.make("differences", g)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value =", "valve =", "entry 1: key: 'valve' is not known; did you mean 'value'?"),
        ('source = "Table 1"\n', "", "entry 1: source: None, expected text"),
        ('"44.1 % probe"', "44.1", "entry 1: value: 44.1, expected text"),
        ("trio-summary", "trio-sumary", "entry 1: table: '20_trio-sumary' is not known; did you mean '20_trio-summary'?"),
        ("trio-summary", "tiro-summary", "entry 1: table: '20_tiro-summary' is not known; did you mean '20_trio-summary'?"),
        ("row = {", "row = { neighbor = 1,", "entry 1: column: 'neighbor' is not known; did you mean 'neighbour mean, dB'?"),
        ("iGPT (att", "iGTP (att", "entry 1: network: 'iGTP (attention)' is not known; did you mean 'iGPT (attention)'?"),
        (', depth = "1"', "", "entry 1: row: fits 2 rows of 20_trio-summary"),
        ("[[reported]]", "[[reporter]]", "key: 'reporter' is not known; did you mean 'reported'?"),
        ("[[reported]]", "[reported]", "reported: not a list of entries"),
        ("}", "", "not readable as TOML"),
    ],
)
def test_an_entry_that_no_table_can_take_is_refused_in_one_line(root, old, new, said):
    g = saved_sweep(Store("smoke"))
    enter(root, ENTRY.replace(old, new))
    with pytest.raises(StoreError) as refused:
        tables.make("summary", g)
    assert said in str(refused.value) and str(root / "results" / "reported.toml") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_shipped_file_of_reported_numbers_has_an_example_and_no_entry(root):
    text = (CHECKOUT / "results" / "reported.toml").read_text()
    enter(root, text)
    assert tables.reported() == []
    enter(root, text[text.index("# [[reported]]") :].replace("# ", ""))
    assert [entry["table"] for _, entry in tables.reported()] == ["20_trio-summary"]
