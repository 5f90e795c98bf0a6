"""Factors, levels and runs: what a notebook's list of runs is made of."""

from functools import partial

import pytest
from synthetic import record_of, write_notebook

from biasnb.config import PROFILES, ConfigError, configure
from biasnb.operators import CUBE
from biasnb.records import places
from biasnb.records.keys import baseline_key, key
from biasnb.records.store import Store
from biasnb.sweep import Study, estimate, images_of, manifest
from biasnb.sweep.manifest import NotebookError


def study(settings=None, base="study", profile="smoke", **factors):
    return Study("20_trio", profile, settings, base, **factors)


def test_every_combination_varies_the_last_factor_fastest():
    runs = study(mixer=["conv", "attn"], depth=[1, 2]).every_combination("depth", "mixer")
    assert [(cfg.depth, cfg.mixer) for cfg in runs] == [(1, "conv"), (1, "attn"), (2, "conv"), (2, "attn")]


def test_fields_that_are_given_with_their_levels_are_varied_too():
    runs = study(seed=[0]).every_combination("seed", mixer=["lowrank"], rank=[1, 2])
    assert [(cfg.mixer, cfg.rank) for cfg in runs] == [("lowrank", 1), ("lowrank", 2)]


def test_one_factor_at_a_time_keeps_the_others_at_their_base():
    runs = study(mixer=["conv"], seed=[0], depth=[1, 2], width=[8, 16]).one_factor_at_a_time("depth", "width")
    assert [(cfg.depth, cfg.width) for cfg in runs] == [(1, 8), (2, 8), (1, 16)]


def test_a_factor_with_a_single_level_has_it_in_every_run():
    runs = study(mixer=["conv"], seed=[0], depth=[2], width=[8, 16]).one_factor_at_a_time("depth", "width")
    assert [(cfg.depth, cfg.width) for cfg in runs] == [(2, 8), (2, 16)]


def test_none_stands_for_the_levels_of_the_profile_and_those_of_the_notebook_come_first():
    assert study(depth=None).levels["depth"] == PROFILES["smoke"]["levels"]["depth"]
    assert study(base="trio", depth=None, profile="quick").levels["depth"] == [2]
    assert Study("25_skip", "smoke", depth=None).levels["depth"] == PROFILES["smoke"]["levels"]["25_skip"]["depth"]


def test_a_setting_fixes_a_factor_that_is_not_given():
    assert study({"depth": 4}, depth=None).levels["depth"] == [4]


@pytest.mark.parametrize(
    ("settings", "factors", "said"),
    [
        ({"dept": 2}, {}, "dept: no such setting .* did you mean 'depth'"),
        ({"depth": [1, 2]}, {}, "settings: depth: .* is a list"),
        ({"depth": 2}, {"depth": [1]}, "settings: depth is a factor of this notebook"),
        ({}, {"depth": 2}, r"depth: 2 is not a list of levels; give e.g. \[2\]"),
        ({}, {"depth": []}, "depth: .* is empty or names a level twice"),
        ({}, {"depth": [1, 1]}, "depth: .* is empty or names a level twice"),
        ({}, {"noise": None}, "noise: profile 'smoke' has no levels of it; give a list"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line_that_names_it(settings, factors, said):
    with pytest.raises(ConfigError, match=said) as error:
        study(settings, **factors)
    assert "\n" not in str(error.value)


def test_a_level_of_the_wrong_kind_is_refused_where_runs_are_built():
    with pytest.raises(ConfigError, match="depth: 'two' is str, expected a whole number"):
        study(depth=["two"]).every_combination("depth")


def test_positions_go_with_the_constraint_unless_a_setting_has_them():
    some = study(mixer=[*CUBE, "hyena"])
    placed = {cfg.mixer: cfg.position for cfg in some.with_positions(some.every_combination("mixer"))}
    assert {mixer for mixer, position in placed.items() if position == "none"} == {"conv", "gconv", "lattn", "gattn"}
    asked = study({"position": "sinusoid"}, mixer=["conv"])
    assert asked.with_positions(asked.every_combination("mixer"))[0].position == "sinusoid"


def test_a_plan_lists_each_run_once_with_its_key_and_baseline(root):
    some = study(mixer=["conv"], seed=[0, 1])
    runs = some.every_combination("seed", "mixer")
    sweep = some.plan(runs + runs)
    assert [run["key"] for run in sweep.runs] == [key(cfg) for cfg in runs]
    assert {run["baseline"] for run in sweep.runs} == {baseline_key(runs[0])}
    assert not list(root.iterdir()), "a plan writes nothing"


def test_a_plan_is_named_after_what_differs_from_the_notebook(root):
    def name(settings=None, **factors):
        own = {"mixer": ["convmixer", "mixer", "igpt"], "depth": None, "seed": None, **factors}
        some = study(settings, "trio", **own)
        return some.plan(some.every_combination("seed", "depth", "mixer")).name

    assert name() == name(depth=[1, 2]) == "20_trio"
    changed = [name({"steps": 5}), name(depth=[1]), name(mixer=["conv"]), name(seed=[3])]
    assert len(set(changed)) == 4 and all(other.startswith("20_trio-photographs-") for other in changed)


def test_a_plan_names_the_tables_and_figures_that_the_notebook_shows(root):
    assert manifest.plan("21_cube", {"profile": "smoke"}).content["figures"] == ["psnr_probe", "effects", "interactions"]


def test_the_overview_counts_saved_runs_by_level(root):
    some = study(mixer=["conv", "attn"], seed=[0, 1])
    runs = some.every_combination("seed", "mixer")
    Store("smoke").save(record_of(runs[0]))
    shown = some.plan(runs).overview()
    assert shown.data.set_index("factor").loc["mixer"].tolist() == ["conv, attn", "1 of 2, 0 of 2"]
    assert shown.caption.endswith(" steps; 4 runs: 1 saved, 3 missing") and "mask rate 0.5" in shown.caption


def test_own_images_are_asked_for_by_their_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert images_of("some") == {"dataset": "folder", "data_dir": str(tmp_path / "some"), "labelled": 0} and not images_of("")


# ---- notebooks ------------------------------------------------------------------------------------------------------


PARAMETERS = 'profile = "smoke"\nmixers = ["conv", "attn"]\nseeds = None\nsettings = {}'
RUNS = """from biasnb.sweep import Study
study = Study("99_mine", profile, settings, mixer=mixers, seed=seeds)
sweep = study.plan(study.every_combination("seed", "mixer"))"""


@pytest.fixture
def mine(root):
    """Makes notebooks/99_mine.ipynb."""
    return partial(write_notebook, root, "99_mine", parameters=[PARAMETERS], sweep=RUNS)


def test_a_new_notebook_is_a_new_study_without_a_line_in_the_package(mine):
    mine('show_figure("levels", sweep)\nshow_table("summary", sweep)')
    assert manifest.names() == ["99_mine"] and manifest.question("99_mine") == "Does it run?" and not manifest.lint()
    sweep = manifest.plan("99_mine", manifest.parameters("99_mine", {"mixers": "conv,lc,full"}))
    assert [run["mixer"] for run in sweep.runs] == ["conv", "lc", "full"]
    assert (sweep.content["figures"], sweep.content["tables"]) == (["levels"], ["summary"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seeds": "0,1"}, {"seeds": [0, 1]}),
        ({"seed": "0"}, {"seeds": [0]}),
        ({"mixer": "[conv, lc]"}, {"mixers": ["conv", "lc"]}),
        ({"seeds": "None"}, {"seeds": None}),
        ({"steps": "7"}, {"settings": {"steps": 7}}),
        ({"settings": '{"lr": 0.5}', "depth": 2}, {"settings": {"lr": 0.5, "depth": 2}}),
    ],
)
def test_parameters_are_typed_by_the_field_that_they_list(mine, given, expected):
    mine()
    assert manifest.parameters("99_mine", given).items() >= expected.items()


def test_settings_for_all_notebooks_go_where_they_can(mine):
    mine()
    given = {"profile": "smoke", "seed": "1,2", "steps": "3"}
    assert manifest.accepted(given) == {"99_mine": given}
    mine(parameters=['profile = "smoke"\nseeds = None'], sweep="")
    assert manifest.accepted(given) == {"99_mine": {"profile": "smoke", "seed": "1,2"}}, "it takes no further setting"
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        manifest.accepted({"stepz": "3"})


def test_a_list_of_runs_that_cannot_be_made_is_told_in_one_line(mine):
    mine(sweep="sweep = 1 / 0")
    with pytest.raises(NotebookError, match="99_mine: its list of runs cannot be made: ZeroDivisionError: division by zero"):
        manifest.plan("99_mine")


def test_the_committed_notebooks_have_one_cell_of_literal_parameters_a_question_and_a_study_of_their_name():
    assert not manifest.lint() and len(manifest.names()) > 20
    assert all(manifest.question(name).endswith("?") for name in manifest.names())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", manifest.names())
def test_every_notebook_has_runs_in_every_profile_under_its_own_name(name, profile, root):
    sweep = manifest.plan(name, manifest.parameters(name, {"profile": profile}))
    if sweep:
        assert sweep.name == name and sweep.runs and len({run["key"] for run in sweep.runs}) == len(sweep.runs)
        assert all(estimate.shape(cfg, 2, **estimate.identity(cfg)) for cfg in sweep.configs), "what `plan` times"


@pytest.mark.parametrize("profile", ["quick", "cifar10"])
def test_the_committed_records_are_those_that_the_notebooks_ask_for(root, monkeypatch, profile):
    """The keys of the committed records, which were computed when they were made."""
    monkeypatch.delenv("BIASNB_ROOT")
    for saved in Store(profile, "results").sweeps():
        asked = manifest.plan(saved.name, manifest.parameters(saved.name, {"profile": profile}))
        assert asked.content == saved.content, saved.name
    assert configure("quick").mixer == "convmixer" and places.CHECKOUT


def test_notebooks_that_are_left_to_saved_records_have_them_all(root, monkeypatch):
    monkeypatch.delenv("BIASNB_ROOT")
    for name in manifest.saved("quick"):
        values, sweep = manifest.asked(name)
        assert values["profile"] == "cifar10" and not sweep.missing(), name


def test_a_searched_rate_and_a_parameter_of_some_notebooks_are_accepted_for_all(root):
    taken = manifest.accepted({"profile": "smoke", "lr": "tuned", "depths": "1"})
    assert taken["20_trio"] == {"profile": "smoke", "lr": "tuned", "depths": "1"}
    assert taken["26_permutation"] == {"profile": "smoke", "lr": "tuned"}


def test_a_factor_that_is_given_twice_is_refused():
    for given in ({"depth": "1", "depths": "2"}, {"depths": "1", "depth": "2"}):
        with pytest.raises(ConfigError, match="depths is given twice"):
            manifest.parameters("20_trio", given)


def test_levels_are_checked_before_a_kernel_starts_where_the_runs_are_built_in_the_kernel_alone():
    with pytest.raises(ConfigError, match="depth: 0 is outside 1 to 64"):
        manifest.parameters("04_your_own_operator", {"depths": "0"})


@pytest.mark.parametrize("name", [name for name in manifest.names() if "settings" in manifest.declared(name)])
@pytest.mark.parametrize("settings", ["steps=3", [3], 7])
def test_settings_of_the_wrong_kind_by_plain_papermill_are_refused_in_one_line(name, settings, root):
    with pytest.raises(ConfigError, match=r"^settings: .* expected a dict"):
        manifest.plan(name, {"profile": "smoke", "settings": settings})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: study(mlp_rato=[1, 2]), "mlp_rato: no such factor .* did you mean 'mlp_ratio'"),
        (lambda: study(base="tri"), "tri: no such base of a study .* did you mean 'trio'"),
        (lambda: study(profile=["smoke"]), r"profile: \['smoke'\] is not one of"),
        (lambda: study(depth=[1]).every_combination("dept"), "dept: no such factor of this study .* did you mean 'depth'"),
    ],
)
def test_what_a_study_does_not_know_is_named(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_copy_under_another_name_is_refused_before_it_writes_into_its_sibling(mine):
    mine(sweep=RUNS.replace("99_mine", "98_other"))
    with pytest.raises(NotebookError, match="99_mine: its study is called '98_other'; give it the name of the file"):
        manifest.plan("99_mine")
