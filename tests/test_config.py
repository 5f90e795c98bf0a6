import dataclasses

import pytest

from biasnb.config import PROFILES, Config, ConfigError, class_folders, configure
from biasnb.operators import CUBE, FAMILIES, MIXERS, TRIO, family
from biasnb.records.keys import TRAINING, baseline_key, key, key_fields


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"detph": 2}, ("detph", "2", "'depth'")),
        ({"mixer": "convmixr"}, ("mixer", "'convmixr'", "'convmixer'")),
        ({"patch": 3}, ("patch", "3", "nearest is 2")),
        ({"depth": 0}, ("depth", "0", "nearest is 1")),
        ({"depth": 2.0}, ("depth", "2.0", "whole number")),
        ({"depth": True}, ("depth", "True", "whole number")),
        ({"lr": "0.1"}, ("lr", "'0.1'", "number")),
        ({"lr": float("nan")}, ("lr", "nan", "finite")),
        ({"image_size": 18, "patch": 4}, ("patch", "4", "18", "[1, 2]")),
        ({"mixer": "igpt", "width": 30, "heads": 4}, ("heads", "4", "30", "nearest is 3")),
        ({"skip": "none", "mixer": "hyena"}, ("skip", "'none'", "'both' or 'spatial'")),
        ({"mixer": "hyena", "pretext": "ar", "position": "none"}, ("position", "'none'", "hyena", "'ar'", "choose 'learned'")),
        ({"mixer": "hyena_hybrid", "pretext": "ar", "position": "none"}, ("position", "'none'", "hyena_hybrid", "'learned'")),
        ({"mixer": "hyena", "hidden": "zero", "position": "none"}, ("hidden", "'zero'", "hyena", "choose hidden 'vector'")),
        ({"mixer": "hyena_hybrid", "hidden": "zero", "position": "none"}, ("hidden", "'zero'", "hyena_hybrid")),
        ({"permute": "in_patch", "patch": 1}, ("permute", "'in_patch'", "patch 2 or 4")),
        ({"pretext": "ar", "image_size": 4, "patch": 4}, ("patch", "4", "smaller")),
        ({"kernel": 4}, ("kernel", "4", "odd")),
        ({"dataset": "folder"}, ("data_dir",)),
        ({"batch": 1, "image_size": 4, "mask_rate": 0.05}, ("mask_rate", "0.05")),
        ({"pretext": "ar", "padding": "circular"}, ("padding", "'circular'", "'ar'", "choose padding 'zeros'")),
        ({"padding": "circular", "image_size": 8, "kernel": 5}, ("kernel", "5", "grid of 4", "at most 3")),
        ({"padding": "circular", "image_size": 10, "kernel": 7}, ("kernel", "7", "grid of 5", "at most 5")),
        (
            {"position": "relative", "mixer": "convmixer"},
            ("position", "'relative'", "'convmixer'", "not softmax", "'none'"),
        ),
        ({"position": "relative", "mixer": "gattn"}, ("position", "'relative'", "'gattn'", "table of positions", "'learned'")),
        ({"position": "relative", "mixer": "hyena_hybrid"}, ("position", "'relative'", "'hyena_hybrid'", "'none'")),
        ({"mixer": "conv_two_stream"}, ("mixer", "'conv_two_stream'", "'bert'", "choose 'ar'")),
        ({"mixer": "conv_two_stream", "pretext": "denoise"}, ("mixer", "'conv_two_stream'", "'denoise'", "choose 'ar'")),
        ({"mixer": "hyena_hybrid", "blocks": "repeated"}, ("mixer", "'hyena_hybrid'", "'repeated'", "blocks 'separate'")),
        ({"dataset": "leaves_coded", "augment": "flip"}, ("augment", "'flip'", "'leaves_coded'", "choose 'none'")),
        ({"dataset": "digits_coded", "augment": "crop"}, ("augment", "'crop'", "'digits_coded'", "choose 'none'")),
        ({"mixer": "attn_local_heads", "local_heads": 5}, ("local_heads", "5", "of 4 heads", "at most 4")),
        ({"mask_rate": 0.99}, ("mask_rate", "0.99", "nearest is 0.95")),
        ({"skip": "spacial"}, ("skip", "'spacial'", "'spatial'")),
        ({"images": -1}, ("images", "-1", "nearest is 0")),
    ],
)
def test_a_wrong_config_is_refused_in_one_line_naming_field_value_and_remedy(given, words):
    with pytest.raises(ConfigError) as caught:
        Config(**given)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("mixer", [name for name in MIXERS if "heads" in MIXERS[name].reads])
def test_heads_that_do_not_divide_the_width_are_refused_where_there_are_heads(mixer):
    with pytest.raises(ConfigError, match="heads: 4 does not divide width 30; the nearest is 3"):
        Config(mixer=mixer, width=30, heads=4)


@pytest.mark.parametrize("given", [
    {"mixer": "mixer", "width": 30, "heads": 4},
    {"mixer": "mixer", "padding": "circular", "image_size": 8, "kernel": 31},
    {"padding": "circular", "image_size": 8, "kernel": 3},
    {"padding": "circular", "image_size": 10, "kernel": 5},
    {"padding": "circular", "pretext": "denoise"},
    {"position": "relative", "mixer": "igpt"},
    {"mixer": "conv_two_stream", "pretext": "ar"},
    {"mixer": "conv_two_stream", "pretext": "none"},
    {"mixer": "hyena", "pretext": "ar", "position": "sinusoid"},
    {"mixer": "hyena", "pretext": "ar", "position": "none", "blocks": "repeated"},
    {"mixer": "hyena", "position": "none"},
    {"mixer": "hyena", "hidden": "zero"},
    {"mixer": "hyena_hybrid", "position": "none"},
    {"mixer": "igpt", "local_heads": 5},
    {"mixer": "attn_local_heads", "local_heads": 4},
    {"dataset": "leaves", "augment": "crop"},
    {"dataset": "leaves_coded"},
    {"pretext": "ar", "batch": 1, "image_size": 4, "mask_rate": 0.05},
])  # fmt: skip
def test_what_can_work_is_not_refused(given):
    assert all(getattr(Config(**given), name) == value for name, value in given.items())


def test_supervised_training_on_one_class_is_refused(tmp_path):
    given = {"dataset": "folder", "data_dir": str(tmp_path)}
    (tmp_path / "cat").mkdir()
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(ConfigError, match=r"pretext: 'supervised' needs two classes .* has 1; .* choose 'bert'"):
        Config(pretext="supervised", **given)
    assert Config(pretext="bert", **given).pretext == "bert"
    (tmp_path / "dog").mkdir()
    assert Config(pretext="supervised", **given).pretext == "supervised"
    for part in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / part).mkdir(parents=True)
    assert class_folders(tmp_path) == 2  # of the training split
    (tmp_path / "train/dog").rmdir()
    with pytest.raises(ConfigError, match="has 1"):
        Config(pretext="supervised", **given)


@pytest.mark.parametrize(("given", "form"), [
    ({"mixer": "convmixer"}, False),
    ({"mixer": "convmixer", "pretext": "ar"}, "entry"),
    ({"mixer": "igpt", "pretext": "ar"}, "shift"),
    ({"mixer": "attn", "pretext": "ar"}, "entry"),
    ({"mixer": "convmixer", "pretext": "ar", "blocks": "repeated"}, "shift"),
    ({"mixer": "conv_two_stream", "pretext": "none"}, "entry"),
    ({"mixer": "igpt", "pretext": "none"}, False),
])  # fmt: skip
def test_the_future_is_hidden_by_a_shift_or_at_the_entry_under_ar_only(given, form):
    assert Config(**given).causal == form


def test_families_hold_every_operator_once_and_its_fields_exist():
    assert list(MIXERS) == [name for kin in FAMILIES.values() for name in kin]
    assert len(MIXERS) == sum(len(kin) for kin in FAMILIES.values())
    assert family("trio") == TRIO and family("trio", "cell") == TRIO + CUBE
    traits = [(MIXERS[name].local, MIXERS[name].shared, MIXERS[name].dynamic) for name in CUBE]
    assert len(set(traits)) == 8
    assert {name for op in MIXERS.values() for name in op.reads} <= {f.name for f in dataclasses.fields(Config)}


def test_a_user_defined_operator_stands_beside_every_family(monkeypatch):
    mine = MIXERS["conv"]._replace(family="user")
    monkeypatch.setitem(MIXERS, "mine", mine)
    assert family("trio") == (*TRIO, "mine")
    assert key(Config(mixer="mine")) != key(Config(mixer="conv"))


def test_replace_validates_too():
    with pytest.raises(ConfigError, match="depth"):
        dataclasses.replace(Config(), depth=-1)
    with pytest.raises(ConfigError, match="depth"):
        dataclasses.replace(Config(), dpth=1)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().depth = 3


def test_whole_numbers_are_taken_for_numbers():
    assert key(Config(lr=1)) == key(Config(lr=1.0))


OTHERS = {"kernel": 3, "heads": 2, "token_ratio": 4, "colours": 8, "device": "cpu", "data_dir": "elsewhere", "seed": 7,
          "rank": 3, "padding": "circular", "local_heads": 3, "position": "relative", "skip": "none", "blocks": "repeated",
          "permute": "pixels", "images": 500, "labelled": 500, "budget": "flop"}  # fmt: skip
READ = {  # fields that matter to an operator; fields that do not
    "igpt": ("heads position skip blocks permute images labelled budget", "kernel padding local_heads"),
    "convmixer": ("kernel", "heads"),
    "mixer": ("token_ratio seed", "colours device data_dir"),
    "identity": ("", "token_ratio"),
    "lowrank": ("rank", ""),
    "lc": ("kernel", "rank"),
    "conv": ("padding", ""),
    "gattn": ("padding", ""),
    "hyena_hybrid": ("padding heads", "kernel"),
    "full": ("", "padding"),
    "gconv": ("", "kernel"),
    "mean": ("", "heads"),
    "attn_local_heads": ("local_heads", ""),
}


@pytest.mark.parametrize("mixer", READ)
def test_key_covers_exactly_the_fields_that_matter(mixer):
    cfg = Config(mixer=mixer)
    for same, fields in enumerate(READ[mixer]):
        for field in fields.split():
            assert (key(cfg) == key(dataclasses.replace(cfg, **{field: OTHERS[field]}))) is bool(same), field


CHANGED = {"augment": "flip", "batch": 32, "budget": "flop", "clip": 0.5, "lr": 1e-4, "precision": "bf16", "steps": 7,
           "optimizer": "muon", "warmup": 0.0, "weight_decay": 0.0, "mask_rate": 0.3, "hidden": "zero", "noise": 0.2,
           "target": "palette", "depth": 2, "images": 300, "labelled": 300, "input": "quantised", "skip": "none",
           "seed": 1}  # fmt: skip


@pytest.mark.parametrize(("pretext", "unread"), [
    ("bert", {"noise"}),
    ("ar", {"mask_rate", "hidden", "noise"}),
    ("denoise", {"mask_rate", "hidden"}),
    ("supervised", {"mask_rate", "hidden", "noise", "target", "images"}),
    ("none", {"mask_rate", "hidden", "noise", "target"} | TRAINING),
])  # fmt: skip
@pytest.mark.parametrize("field", CHANGED)
def test_key_covers_what_the_task_reads(pretext, unread, field):
    assert set(CHANGED) > TRAINING
    cfg = Config(pretext=pretext)
    assert (key(cfg) == key(dataclasses.replace(cfg, **{field: CHANGED[field]}))) is (field in unread)


@pytest.mark.parametrize(("pretext", "matter"), [("bert", True), ("ar", True), ("supervised", False), ("none", False)])
def test_colours_of_a_palette_target_matter_only_where_pixels_are_predicted(pretext, matter):
    one, other = (key(Config(pretext=pretext, target="palette", colours=k)) for k in (8, 16))
    assert (one != other) is matter
    one, other = (key(Config(pretext=pretext, input="palette", colours=k)) for k in (8, 16))
    assert one != other


def test_baselines_depend_on_data_and_masks_alone():
    cfg = Config()
    for field, value in {"mixer": "igpt", "depth": 2, "seed": 3, "pretext": "ar", "steps": 7, "input": "quantised"}.items():
        assert baseline_key(cfg) == baseline_key(dataclasses.replace(cfg, **{field: value}))
    for field, value in {"mask_rate": 0.3, "permute": "pixels", "labelled": 200, "patch": 4, "dataset": "leaves"}.items():
        assert baseline_key(cfg) != baseline_key(dataclasses.replace(cfg, **{field: value}))


def test_key_does_not_depend_on_the_order_of_fields():
    assert key(Config(depth=2, width=32)) == key(Config(width=32, depth=2))


def test_a_missing_folder_is_named():
    with pytest.raises(ConfigError, match="nowhere"):
        key(Config(dataset="folder", data_dir="nowhere"))


def test_every_profile_makes_a_config():
    for name in PROFILES:
        assert key_fields(configure(name))["seed"] == 0
    with pytest.raises(ConfigError, match="quick"):
        configure("quik")
