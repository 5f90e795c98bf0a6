import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from synthetic import NO_TORCH, grid, record_of, run_record

from biasnb import figures, store, studies, style, suite, tables
from biasnb.config import Config
from biasnb.store import Store
from biasnb.style import FLOORS

CHECKOUT = store.ROOT
DRAWN = sorted({*figures.FIGURES, *tables.TABLES})


def test_summary_shows_mean_interval_n_and_floors(root):
    table = tables.summary(grid(Store("smoke"), seed=[0, 1, 2]))
    assert table["n"].tolist() == [3] * 6
    assert table["masked PSNR, dB"].str.fullmatch(r"(24|22|20|23|21|19)\.\d\d ± 0\.\d\d").all()
    assert table["neighbour mean, dB"].tolist() == ["21.70"] * 6
    assert table["raw pixels, %"].tolist() == ["42.0"] * 6
    assert "accuracy, %" not in table


def test_missing_and_diverged_runs_are_counted_and_never_averaged(root):
    g = grid(Store("smoke"), seed=[0, 1, 2])
    before = tables.summary(g)
    keys = [run["key"] for run in g.content["runs"] if run["mixer"] == "igpt" and run["depth"] == 1]
    g.store.path(keys[0]).unlink()
    g.store.save(run_record("igpt", 1, 1, status="diverged"))
    row = tables.summary(g).set_index(["network", "depth"]).loc[("iGPT (attention)", "1")]
    assert (row["n"], row["diverged"], row["missing"]) == (1, 1, 1)
    left = g.store.load(keys[2])["psnr"]["test"]
    assert row["masked PSNR, dB"] == f"{left:.2f}"
    assert before.set_index(["network", "depth"]).loc[("iGPT (attention)", "1"), "n"] == 3


def test_differences_are_paired_by_seed(root):
    g = grid(Store("smoke"), seed=[0, 1, 2])
    frame = g.frame().pivot(index=["depth", "seed"], columns="mixer", values="psnr").loc[2]
    row = tables.differences(g).set_index(["difference", "depth"]).loc[("iGPT (attention) − ConvMixer (convolution)", 2)]
    assert row["masked PSNR, dB"] == tables.plus_minus(frame["igpt"] - frame["convmixer"], 2)
    assert row["n"] == 3
    assert len(tables.differences(g)) == 3 * 2


def test_effects_of_the_cube_are_those_of_the_design_over_complete_seeds(root):
    """PSNR falls by 2 dB from cell to cell in the order of the cube, so the effects are known up to the noise of 0.1 dB."""
    g = grid(Store("smoke"), "21_cube", pretext="bert")
    table = tables.effects(g).set_index("effect")
    assert table["n"].tolist() == [2] * 7
    known = {"local": 1 * 2, "shared": 2 * 2, "dynamic": -4 * 2, "local x shared": 0, "local x shared x dynamic": 0}
    for effect, value in known.items():
        assert float(table.loc[effect, "PSNR, dB"].split(" ± ")[0]) == pytest.approx(value, abs=0.3), effect
    assert table.loc["local", "probe, points"] == "0.0 ± 0.0"
    g.store.path(next(run["key"] for run in g.runs if run["mixer"] == "attn" and run["seed"] == 1)).unlink()
    assert tables.effects(g)["n"].tolist() == [1] * 7


def broken(g):
    """The grid with one run diverged and, where there are more, the first and the last missing: (missing, diverged)."""
    first, middle, last = (g.runs[i] for i in (0, len(g.runs) // 2, -1))
    g.store.save(
        record_of(Config(**{name: middle[name] for name in middle if name not in ("key", "floor")}), status="diverged")
    )
    lost = {first["key"], last["key"]} - {middle["key"]}
    for key in lost:
        g.store.path(key).unlink()
    return len(lost), 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("experiment", DRAWN)
def test_all_that_an_experiment_shows_is_written_and_drawn_again_alike(root, monkeypatch, experiment):
    """SVG and PDF take long and are left out of the second drawing; see the next test but one."""
    monkeypatch.setitem(style.STYLE, "savefig.dpi", 60)
    g = grid(Store("smoke"), experiment)
    pictures, written = figures.write(g, root / "figures"), tables.write(g, root / "tables")
    names = figures.FIGURES[experiment]
    assert not set(names) & set(tables.TABLES[experiment])
    assert [p.name for p in pictures] == [f"{experiment}-{n}{s}" for n in names for s in (".png", ".svg", ".pdf", ".csv")]
    assert [p.name for p in written] == [f"{experiment}-{n}{s}" for n in tables.TABLES[experiment] for s in (".md", ".csv")]
    assert all(p.read_text().count("\n") > 1 for p in (*pictures, *written) if p.suffix in (".csv", ".md"))
    save = style.Picture.savefig
    monkeypatch.setattr(style.Picture, "savefig", lambda *a, format, **k: format == "png" and save(*a, format=format, **k))
    again = figures.write(g, root / "again") + tables.write(g, root / "again")
    for one, other in zip((*pictures, *written), again, strict=True):
        assert one.suffix in (".svg", ".pdf") or one.read_bytes() == other.read_bytes(), one.name


def rows(table):
    """What the rows of a table are of, but for the floors."""
    first = table.iloc[:, :2].astype(str).agg(" ".join, axis=1)
    return [row for row in first if not row.startswith(tuple(FLOORS.values()))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("experiment", DRAWN)
def test_an_experiment_with_gaps_is_drawn_and_its_tables_count_them(root, experiment):
    g = grid(Store("smoke"), experiment)
    whole = {name: rows(make(g)) for name, make in tables.TABLES[experiment].items()}
    missing, diverged = broken(g)
    runs = len(g.runs)
    for name, make in tables.TABLES[experiment].items():
        table = make(g)
        assert rows(table) == whole[name], name
        if "missing" in table:
            counts = table["n"].sum(), table["diverged"].sum(), table["missing"].sum()
            assert counts == (runs - missing - diverged, diverged, missing), name
    for name in figures.FIGURES[experiment]:
        figures.draw(name, g)
    for path in g.store.folder.glob("*.json"):
        path.unlink()
    for name, make in tables.TABLES[experiment].items():
        table = make(g)
        assert rows(table) == whole[name], name
        assert "missing" not in table or table["missing"].sum() == runs, name
        assert "n" not in table or table["n"].sum() == 0, name
    for name in figures.FIGURES[experiment]:
        figures.draw(name, g)
    assert tables.write(g, root / "tables")


def test_rendering_twice_gives_identical_bytes(root):
    for experiment in ("27_sample_size", "40_reconstructions"):
        g = grid(Store("smoke"), experiment)
        g.save()
    one, other = suite.render(g.store, root / "one"), suite.render(g.store, root / "other")
    assert {p.suffix for p in one} == {".png", ".svg", ".pdf", ".md", ".csv"}
    assert [p.name for p in one] == [p.name for p in other]
    for a, b in zip(one, other, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize("pretext", ["ar", "supervised", "none"])
def test_a_notebook_under_another_pretext_is_drawn(root, pretext):
    """No PSNR under the last two, no loss curve under 'none'."""
    g = grid(Store("smoke"), "20_trio", pretext=pretext, seed=[0], depth=[1])
    for name in figures.FIGURES["20_trio"]:
        figures.draw(name, g)
    assert tables.differences(g)["n"].tolist() == [1] * 3
    assert len(tables.cost(g)) == 3
    row = tables.summary(g).iloc[0]
    assert ("PSNR, dB" in row, "accuracy, %" in row, "loss" in row) == {
        "ar": (True, False, True), "supervised": (False, True, True), "none": (False, False, False)}[pretext]  # fmt: skip
    assert "masked PSNR, dB" not in row and "neighbour mean, dB" not in row


def test_committed_figures_are_drawn_from_committed_records_fast_without_torch(tmp_path):
    """`figures/` shows what `results/` gives, drawn anew in another time zone and locale, in 20 s, with torch barred."""
    for name in ("results", "figures"):
        assert (CHECKOUT / name).is_dir()
    os.symlink(CHECKOUT / "results", tmp_path / "results")
    script = NO_TORCH + "from biasnb.__main__ import main; sys.exit(main(['figures']))"
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(CHECKOUT), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20
    drawn = {p.relative_to(tmp_path / "figures") for p in (tmp_path / "figures").rglob("*") if p.is_file()}
    committed = {p.relative_to(CHECKOUT / "figures") for p in (CHECKOUT / "figures").rglob("*") if p.is_file()}
    assert drawn and drawn == committed
    for path in drawn:
        one, other = tmp_path / "figures" / path, CHECKOUT / "figures" / path
        if path.suffix in (".md", ".csv"):
            assert one.read_bytes() == other.read_bytes(), path
        elif path.suffix == ".png":  # another matplotlib may set a few pixels otherwise
            a, b = (np.asarray(Image.open(p).convert("RGB"), int) for p in (one, other))
            assert a.shape == b.shape and (np.abs(a - b).max(2) > 32).mean() < 0.01, path


def test_committed_records_validate_and_hold_no_path():
    for folder in sorted((CHECKOUT / "results").glob("*")):
        reference = Store(folder.name, "results")
        assert reference.grids()
        for g in reference.grids():
            assert not g.missing(), g.name
            for key in g.keys:
                assert "arrays" not in reference.load(key) or reference.arrays(key)
        for path in folder.rglob("*.json"):
            assert '"/' not in path.read_text(), path


@pytest.mark.parametrize("words", [["--help"], ["list"], ["status", "--profile", "smoke"]])
def test_light_commands_import_no_torch(words, tmp_path):
    script = NO_TORCH + "from biasnb.__main__ import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", script, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_operator_is_in_every_panel_of_a_factor_that_it_reads(root):
    """An operator that does not read one factor of a grid is still compared on the others."""
    g = grid(Store("smoke"), "24_geometry")
    runs = studies.done_runs(g)
    for name in g.factors():
        shown = studies.at_base(g, runs, name)
        for mixer in ("convmixer", "mixer", "igpt"):
            levels = shown[shown.mixer == mixer][name].dropna().nunique()
            assert levels >= 2 or (name == "kernel" and mixer != "convmixer"), (name, mixer)
