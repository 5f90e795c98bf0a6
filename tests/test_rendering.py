import json
import os
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from forked import python
from matplotlib.text import Text
from PIL import Image
from synthetic import NO_TORCH, record_of, run_record, saved_sweep

from biasnb.config import Config
from biasnb.evidence import claims, hypotheses
from biasnb.figures import (
    FIGURES,
    TABLES,
    board,
    dots,
    lines,
    pictures,
    show_figure,
    show_table,
    style,
    tables,
    write_card,
    write_figures,
    write_tables,
)
from biasnb.figures.style import BASELINES
from biasnb.operators import CUBE, MIXERS
from biasnb.records import places, store
from biasnb.records.store import Store, StoreError
from biasnb.training import evaluation

CHECKOUT = places.CHECKOUT
STUDIES = {path.stem: path for path in sorted(CHECKOUT.glob("results/*/sweeps/*.json"), key=lambda path: path.stem)}


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
    row = tables.summary(g).set_index(["network", "depth"]).loc[("attention (igpt)", "1")]
    assert (row["n"], row["diverged"], row["failed"], row["missing"]) == (1, 1, 1, 1)
    assert g.frame().set_index("key").status[keys].tolist() == ["missing", "diverged", "done", "failed"]
    left = g.store.load(keys[2])["psnr"]["test"]
    assert row["masked PSNR, dB"] == f"{left:.2f} (1)"
    assert before.set_index(["network", "depth"]).loc[("attention (igpt)", "1"), "n"] == 4
    cells = tables.depths(g)
    assert all(cell.endswith("(1)") for cell in cells[cells.network == "attention (igpt)"]["depth 1"])
    for key in keys:
        g.store.path(key).unlink(missing_ok=True)
    gaps = tables.differences(g)
    gaps = gaps[gaps.difference.str.contains("igpt") & (gaps.depth == 1)]
    assert gaps["masked PSNR, dB"].tolist() == gaps["probe, points"].tolist() == ["—"] * 2


def test_differences_are_paired_by_seed(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    frame = g.frame().pivot(index=["depth", "seed"], columns="mixer", values="psnr").loc[2]
    row = tables.differences(g).set_index(["difference", "depth"]).loc[("attention (igpt) − convolution (convmixer)", 2)]
    assert row["masked PSNR, dB"] == tables.plus_minus(frame["igpt"] - frame["convmixer"], 2)
    assert row["n"] == 3
    assert len(tables.differences(g)) == 3 * 2


def test_effects_of_the_cube_are_those_of_the_design_over_complete_seeds(root):
    """PSNR falls by 2 dB from cell to cell in the order of the cube, so the effects are known up to the noise of 0.1 dB."""
    g = saved_sweep(Store("smoke"), "21_cube", pretext="bert")
    table = tables.effects(g).set_index("effect")
    assert len(table) == 7 + 4 + 4 and table["PSNR, dB"][:11].str.endswith("(2)").all()
    known = {"locality": 1 * 2, "weight sharing": 2 * 2, "input dependence": -4 * 2, "locality × weight sharing": 0,
             "locality × weight sharing × input dependence": 0, "input dependence, attn − full": -4 * 2}  # fmt: skip
    for effect, value in known.items():
        assert float(table.loc[effect, "PSNR, dB"].split(" ± ")[0]) == pytest.approx(value, abs=0.3), effect
    assert table.loc["locality", "probe, points"] == "0.0 ± 0.0 (2)"
    g.store.path(next(run["key"] for run in g.runs if run["mixer"] == "attn" and run["seed"] == 1)).unlink()
    assert tables.effects(g)["PSNR, dB"][:7].str.endswith("(1)").all()
    assert tables.effects(saved_sweep(Store("smoke"))).empty


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
    shown = [json.loads(path.read_text()) for path in STUDIES.values()]
    assert {name for names in shown for name in names["figures"]} == set(FIGURES)
    assert {name for names in shown for name in names["tables"]} == set(TABLES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_all_that_a_study_shows_is_written(root, monkeypatch, study):
    """SVG and PDF take long and are left empty here; later tests have them, and that a drawing is the same each time."""
    monkeypatch.setitem(style.STYLE, "savefig.dpi", 60)
    save = style.Picture.savefig
    monkeypatch.setattr(style.Picture, "savefig", lambda *a, format, **k: format == "png" and save(*a, format=format, **k))
    g = saved_sweep(Store("smoke"), study, **({} if study == "10_one_run" else {"seed": [0, 1]}))
    if "steps" in g.content["figures"]:
        for run in g.runs:
            keep(g, run, psnr_by_step=[{"step": step, "psnr": 20.0 + step} for step in (1, 2, 4)])
    paths = write_figures(g, root / "all") + write_tables(g, root / "all")
    pictures = [f"{study}-{n}{s}" for n in g.content["figures"] for s in (".png", ".svg", ".pdf", "-numbers.csv")]
    pages = [f"{study}-{n}{s}" for n in g.content["tables"] for s in (".md", ".csv", ".tex")]
    assert [path.name for path in paths] == pictures + pages
    assert len(set(paths)) == len(paths), "a figure and a table in one file"
    assert all(path.read_text().count("\n") > 1 for path in paths if path.suffix in (".csv", ".md"))
    for path in paths:
        if path.suffix == ".tex":
            latex_is_whole(path.read_bytes().decode("ascii"))


def keep(g, run, **fields):
    """Save the record of a run with these fields."""
    g.store.save({**g.store.load(run["key"]), **fields}, g.store.arrays(run["key"]))


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
    first = table[[column for column in table.columns[:2] if "," not in column]].astype(str).agg(" ".join, axis=1)
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
    assert picture.data == kept.read_bytes() and picture.width == pytest.approx(9.6 * style.STYLE["figure.dpi"], abs=1)
    assert show_figure("rows", g).data == picture.data
    written = write_figures(g, root / "all")
    assert {path.suffix for path in written} == {".png", ".svg", ".pdf", ".csv"} and written[0].read_bytes() == picture.data
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(written, write_figures(g, root / "b"), strict=True))
    shown = show_table("depths", g)
    assert "depth 1" in shown.data and "paper" in shown.data and "k-NN: k = 20" in shown.to_html()
    page = root / "runs/smoke/tables/40_reconstructions-depths.md"
    assert page.read_text() == write_tables(g, root / "all")[0].read_text()
    os.symlink(CHECKOUT / "results", root / "results")
    reference = next(sweep for sweep in Store("cifar10", "results").sweeps() if sweep.name == "40_reconstructions")
    assert show_figure("rows", reference).data != picture.data and len(show_table("depths", reference).data)
    assert {path.name for path in (root / "runs").glob("*/*/*.*")} == {kept.name, page.name}


def test_a_caption_tells_images_of_the_same_names_apart(root):
    g = saved_sweep(Store("smoke"), "10_one_run")
    g.content.update({"data": "pets", "changed": {"dataset": "folder", "files": "3fa2c19b7c0d1e2f"}})
    assert g.caption().startswith("pets 8×8 (images 3fa2c1), ") and "3fa2c1" in show_table("summary", g).to_html()


def test_names_are_for_any_sweep_and_an_unknown_one_names_the_nearest(root):
    g = saved_sweep(Store("smoke"), "25_skip")
    assert show_figure("curves", g) and show_figure("mask_rate", g) is None and len(show_table("depths", g).data)
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
    runs = lines.done_runs(g)
    for name in g.factors():
        shown = lines.at_base(g, runs, name)
        for mixer in ("convmixer", "mixer", "igpt"):
            count = shown[shown.mixer == mixer][name].dropna().nunique()
            assert count >= 2 or (name == "kernel" and mixer != "convmixer"), (name, mixer)


def test_the_base_of_a_sweep_is_the_point_that_it_varies_around(root):
    assert saved_sweep(Store("smoke"), "24_geometry").base() == {
        "depth": 1, "width": 8, "patch": 2, "kernel": 3, "mask_rate": 0.5, "budget": "steps", "steps": 4}  # fmt: skip
    assert saved_sweep(Store("smoke"), "21_cube").base() == {"pretext": "bert", "kernel": 3, "rank": 2}


# ---- figures ------------------------------------------------------------------------------------------------------------


def test_the_look_is_that_of_family_traits_and_reach():
    looks = {mixer: style.look(mixer) for mixer in (*CUBE, "mixer", "identity")}
    assert looks["conv"]["color"] == looks["gconv"]["color"] != looks["lc"]["color"] == looks["full"]["color"]
    assert len({looks[mixer]["color"] for mixer in ("conv", "gattn", "lc", "mixer", "identity")}) == 5
    assert all((looks[mixer]["markerfacecolor"] == "white") != MIXERS[mixer].dynamic for mixer in looks)
    assert all((looks[mixer]["marker"] == "o") == MIXERS[mixer].local for mixer in looks)
    assert len({tuple(look.values()) for look in looks.values()}) == len(looks)


def test_psnr_by_step_leaves_out_records_that_lack_it_and_says_so(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    turned = {"convmixer": (20, 24), "mixer": (19, 22), "igpt": (18, 23)}
    for run in g.runs:
        start, end = turned[run["mixer"]]
        keep(g, run, psnr_by_step=[{"step": 1, "psnr": start}, {"step": 2, "psnr": start}, {"step": 4, "psnr": end}])
    figure, table = lines.psnr_by_step(g)
    assert len(table) == 2 * 3 * 3 * 3 and "left out" not in figure.get_supxlabel()
    orders = "convolution > token MLP > attention", "convolution > attention > token MLP"
    assert " ".join(figure.get_suptitle().split()) == f"PSNR at 1 steps: {orders[0]}; from 4 on: {orders[1]}"
    assert figure.axes[0].texts[0].get_text() == "image mean"
    keep(g, g.runs[0], psnr_by_step=None)
    figure, table = lines.psnr_by_step(g)
    assert len(table) == 51 and "1 of 18 runs have no PSNR by step and are left out" in figure.get_supxlabel()
    for run in g.runs:
        keep(g, run, psnr_by_step=None)
    assert lines.psnr_by_step(g)[1].empty and "no record has the PSNR by step" in show_figure("steps", g).data


def test_levels_of_one_seed_are_not_drawn_and_of_two_are(root):
    g = saved_sweep(Store("smoke"), "26_permutation")
    assert "one seed" in show_figure("levels", g).data and write_figures(g, root / "all") == []
    assert show_figure("levels", saved_sweep(Store("smoke"), "26_permutation", seed=[0, 1])).data.startswith(b"\x89PNG")


def test_the_interaction_plot_pairs_the_eight_cells_along_every_bias(root):
    g = saved_sweep(Store("smoke"), "21_cube")
    figure, table = FIGURES["interactions"](g)
    assert table.groupby("mixer").size().to_dict() == dict.fromkeys(CUBE, 2)
    pairs = [[text.get_text().split(":")[0] for text in ax.texts] for ax in figure.axes[:3]]
    assert set(pairs[2]) == {"conv → lattn", "lc → lattn_abs", "gconv → gattn", "full → attn"}
    assert set(pairs[0]) == {"gconv → conv", "full → lc", "gattn → lattn", "attn → lattn_abs"} and len(pairs[1]) == 4
    assert "n = 2 paired seeds" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("plain", ["leaves", "digits"])
def test_the_switch_is_between_the_data_set_and_the_twin_that_were_asked_for(root, plain):
    g = saved_sweep(Store("smoke"), "30_symmetry", fields=[plain, f"{plain}_coded"], seed=[0, 1])
    figure, table = FIGURES["switch"](g)
    for ax in figure.axes:
        assert [label.get_text() for label in ax.get_xticklabels()] == [plain, f"{plain}_coded"]
    assert table.groupby("dataset").size().to_dict() == {plain: 8, f"{plain}_coded": 8}


def test_measures_are_those_of_one_data_set_and_padding(root):
    g = saved_sweep(Store("smoke"), "30_symmetry")
    assert dots.symmetry(g)[1].groupby("mixer").size().to_dict() == dict.fromkeys(CUBE, 2)
    assert tables.measures(g)["n"].tolist() == [1] * 8


def test_losses_are_compared_with_probes_only_where_the_task_is_the_same(root):
    g = saved_sweep(Store("smoke"), "24_geometry")
    frame = g.frame()
    same = (frame.patch == 2) & (frame.mask_rate == 0.5) & (frame.budget == "steps") & (frame.steps == 4)
    assert 0 < len(dots.loss_probe(g)[1]) == same.sum() < len(frame)


def test_levels_ascend_and_all_images_come_last(root):
    figure, _ = FIGURES["sample_size"](saved_sweep(Store("smoke"), "27_sample_size", images=[0, 64], seed=[0, 1]))
    labels = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes]
    assert labels == [["64", "all"]] * 2 + [["100", "200"]] * 2


def test_the_title_names_the_best_network_of_each_level():
    values = {("convmixer", 0): [20, 22], ("igpt", 0): [20.5, 20.5], ("convmixer", 1): [18, 18], ("igpt", 1): [19, np.nan]}
    rows = [{"mixer": mixer, "x": x, "psnr": value} for (mixer, x), seeds in values.items() for value in seeds]
    table, names = tables.pd.DataFrame(rows), ["bert", "ar\nrgb"]
    words = "PSNR: "
    assert lines.best_by_level(table, "psnr", names) == f"{words}convolution (bert); attention (ar, rgb)"
    assert lines.best_by_level(table[table.x == 1], "psnr", names) == f"{words}attention at every level"
    many = tables.pd.concat([table.assign(x=table.x + 2 * i) for i in range(3)])
    assert lines.best_by_level(many, "psnr", names * 3) == f"{words}convolution at 3 of 6 levels, attention at 3 of 6 levels"
    alone = tables.pd.DataFrame([{"mixer": "igpt", "x": 2, "psnr": 30.0}])
    more = tables.pd.concat([table, alone])
    assert lines.best_by_level(more, "psnr", [*names, "none"]) == f"{words}convolution (bert); attention (ar, rgb)"
    assert lines.best_by_level(alone, "psnr", [*names, "none"]) == f"{words}attention at every level"
    two = table.replace("igpt", "conv")
    assert lines.best_by_level(two, "psnr", names) == f"{words}convmixer (bert); conv (ar, rgb)", "both are convolutions"


def test_titles_and_captions_stay_inside_the_figure():
    figure, _ = style.canvas(6, 3)
    style.title(figure, "weight sharing × input dependence: WWWW mmmm; " * 4)
    style.footer(figure, "one line", "Values right of 0 mean that networks with MORE WEIGHTS are better. " * 4)
    figure.draw_without_rendering()
    for text in (figure._suptitle, figure._supxlabel):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and "\n" in text.get_text()


@pytest.mark.parametrize(("draw", "column", "above"), [
    (pictures.reconstructions, "psnr", ["original", "masked"]), (pictures.absolute_errors, "error", ["original"])])  # fmt: skip
def test_reconstructions_and_their_errors_show_two_depths_with_a_number_for_each_image(root, draw, column, above):
    g = saved_sweep(Store("smoke"), "40_reconstructions")
    figure, table = draw(g)
    assert table.groupby(["depth", "mixer"]).size().to_dict() == {
        (depth, mixer): 10 for depth in (1, 2) for mixer in ("convmixer", "mixer", "igpt")}  # fmt: skip
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[: len(names) - 6] == [*above, "mean of visible neighbours"] and len(figure.axes[0].texts) == 70
    first, network = (
        g.store.arrays(next(run["key"] for run in g.runs if (run["mixer"], run["depth"]) == (mixer, 1)))
        for mixer in ("convmixer", "igpt")
    )
    hidden = (first["input"] == 128).all(-1)
    hidden = hidden if hidden.any() else np.ones_like(hidden)
    wrong = (first["images"][0].astype(float) - network["reconstruction"][0])[hidden[0]]
    expected = 10 * np.log10(255**2 / (wrong**2).mean()) if column == "psnr" else 100 * np.abs(wrong).mean() / 255
    assert table[(table.mixer == "igpt") & (table.depth == 1)][column].iloc[0] == pytest.approx(expected)


def test_the_card_shows_the_shallowest_networks_and_is_twice_as_wide_as_high(root):
    g = saved_sweep(Store("smoke"), "40_reconstructions")
    names = [label.get_text().partition("\n")[0] for label in pictures.card(g).axes[0].get_yticklabels()]
    assert names == ["original", "masked", "convolution", "token MLP", "attention"]
    (path,) = write_card([g], root)
    assert Image.open(path).size == (1280, 640)
    assert write_card([], root) == []


def test_the_mean_of_visible_neighbours_is_that_of_the_baseline():
    rng = np.random.default_rng(0)
    images, hidden = rng.integers(0, 256, (3, 8, 8, 3), np.uint8), rng.random((3, 8, 8)) < 0.7
    expected = evaluation.neighbour_mean(torch.from_numpy(images).float(), torch.from_numpy(hidden))
    assert np.abs(pictures.neighbour_mean(images, hidden).astype(int) - expected.numpy()).max() <= 0.51


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("study", "name", "overrides", "panels"),
    [
        ("20_trio", "depth", {"seed": 0, "depth": 1}, 2),
        ("20_trio", "depth", {"mixer": ["mixer", "igpt"], "pretext": "supervised"}, 1),
        ("21_cube", "interactions", {"mixer": ["conv", "lattn"], "pretext": "ar"}, 2),
        ("21_cube", "interactions", {"mixer": ["conv", "attn"]}, None),
        ("21_cube", "psnr_probe", {"mixer": ["conv", "mixer"], "seed": [0, 1]}, 1),
        ("21_cube", "psnr_probe", {"pretext": "supervised"}, None),
        ("24_geometry", "mask_rate", {"mask_rate": 0.75}, None),
        ("24_geometry", "mask_rate", {"mixer": "conv", "seed": [0, 1]}, 2),
        ("24_geometry", "loss_probe", {"mixer": "conv", "depth": 1, "width": 8, "kernel": 3}, 1),
        ("24_geometry", "loss_probe", {"pretext": "none"}, None),
        ("27_sample_size", "sample_size", {"images": 0, "seed": [0, 1]}, 2),
        ("27_sample_size", "sample_size", {"images": 0, "labelled": 100}, None),
        ("27_sample_size", "sample_size", {"pretext": "supervised", "seed": [0, 1]}, 1),
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
    figure, ((ax,),) = style.canvas(6, 4)
    ax.plot([0, 1], [0, 10])
    levels = [0.0, 0.01, 0.02, 5.0, 9.99, 10.0, float("nan")]
    style.name_ends(ax, [(1, level, f"line {i}\nmore", "red") for i, level in enumerate(levels)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without their leader lines
    assert [text.get_text()[5] for text in ax.texts] == list("012345")
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    panel = ax.get_window_extent()
    assert panel.y0 <= boxes[0].y0 and boxes[-1].y1 <= panel.y1
    assert abs((boxes[3].y0 + boxes[3].y1 - panel.y0 - panel.y1) / panel.height) < 0.05


def test_names_of_dots_overlap_no_other_name():
    figure, ((ax,),) = style.canvas(9, 6)
    rng = np.random.default_rng(0)
    places = {mixer: tuple(rng.random(2)) for mixer in list(MIXERS)[:20]}
    ax.plot(*zip(*places.values(), strict=True), "o")
    dots.label_dots(ax, places)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 20 and sum(a.overlaps(b) for a, b in combinations(boxes, 2)) == 0


def test_the_board_has_a_row_per_claim_and_metric_and_the_worst_of_its_findings(root):
    """Six seeds in one profile decide something, two in another nothing."""
    for profile, seeds in (("quick", [0, 1]), ("smoke", range(6))):
        saved_sweep(Store(profile), seed=list(seeds)).save()
    found = claims.findings([Store("quick"), Store("smoke")])
    words = [text.get_text() for text in board.board(found).axes[0].texts]
    rows = dict.fromkeys((f.claim.id, f.metric) for f in found)
    verdicts = [word for word in words if word[:1] in hypotheses.MARKS.values() and word[1:2] == " "]
    assert len(verdicts) == 2 * len(rows)
    assert words.index("smoke") < words.index("quick"), "what decides most comes first"
    at = words.index("P1a")
    assert words[at + 3] == "? undecided" and "✓ supported, n 6" in words[at : at + 9]
    assert any(word.startswith("? undecided, n 6; 0 of 2 hold") for word in words)


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
row = { network = "attention (igpt)", depth = "1" }
value = "44.1 % probe"
source = "Table 1"
"""


def enter(root, text):
    store.write_atomic(root / "results" / "reported.toml", text)


def test_a_number_of_the_paper_stands_in_its_row_of_its_table(root):
    g = saved_sweep(Store("smoke"))
    assert set(tables.make("summary", g).paper) == {"—"}
    other = ENTRY.replace("trio-summary", "trio-differences").replace("attention (igpt)", "x").replace("network", "difference")
    enter(root, ENTRY + ENTRY.replace("44.1 % probe", "5 dB") + ENTRY.replace('"1"', '"16"'))
    table = tables.make("summary", g)
    assert list(table)[-1] == "paper"
    shown = table[table.paper != "—"]
    assert shown[["network", "depth", "paper"]].values.tolist() == [
        ["attention (igpt)", "1", "44.1 % probe (Table 1); 5 dB (Table 1)"]]  # fmt: skip
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
        ("tion (igpt", "tion (itgp", "entry 1: network: 'attention (itgp)' is not known; did you mean 'attention (igpt)'?"),
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


def test_tables_that_show_the_probe_say_how_it_was_measured_and_pictures_what_is_seen(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1])
    for name, probed in {"summary": True, "depths": True, "differences": True, "cost": False}.items():
        table = tables.make(name, g)
        assert ("k-NN: k = 20" in tables.heading(g, table)) == probed and ("k-NN: k" in tables.markdown(g, table)) == probed
    assert re.match(r"depth: Depth 2: .* dB", show_figure("depth", g).alt)
