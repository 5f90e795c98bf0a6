import dataclasses

import pytest

from biasnb.config import PROFILES, Config, ConfigError, configure, key, relevant


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
        ({"kernel": 4}, ("kernel", "4", "odd")),
        ({"dataset": "folder"}, ("data_dir",)),
        ({"batch": 1, "image_size": 4, "mask_rate": 0.05}, ("mask_rate", "0.05")),
    ],
)
def test_a_wrong_config_is_refused_in_one_line_naming_field_value_and_remedy(given, words):
    with pytest.raises(ConfigError) as caught:
        Config(**given)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


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


@pytest.mark.parametrize(
    ("mixer", "field", "value", "same"),
    [
        ("igpt", "kernel", 3, True),
        ("convmixer", "kernel", 3, False),
        ("convmixer", "heads", 2, True),
        ("igpt", "heads", 2, False),
        ("mixer", "token_ratio", 4, False),
        ("identity", "token_ratio", 4, True),
        ("mixer", "colours", 8, True),
        ("mixer", "device", "cpu", True),
        ("mixer", "data_dir", "elsewhere", True),
        ("mixer", "seed", 7, False),
    ],
)
def test_key_covers_exactly_the_fields_that_matter(mixer, field, value, same):
    cfg = Config(mixer=mixer)
    assert (key(cfg) == key(dataclasses.replace(cfg, **{field: value}))) is same


def test_colours_matter_once_a_palette_is_used():
    assert key(Config(input="palette", colours=8)) != key(Config(input="palette", colours=16))
    assert key(Config(target="palette", colours=8)) != key(Config(target="palette", colours=16))


def test_key_does_not_depend_on_the_order_of_fields():
    assert key(Config(depth=2, width=32)) == key(Config(width=32, depth=2))


def test_key_of_a_folder_changes_with_its_files(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    cfg = Config(dataset="folder", data_dir=str(tmp_path))
    before = key(cfg)
    assert key(cfg) == before
    (tmp_path / "b/2.png").write_bytes(b"x")
    assert key(cfg) != before


def test_a_missing_folder_is_named():
    with pytest.raises(ConfigError, match="nowhere"):
        key(Config(dataset="folder", data_dir="nowhere"))


def test_every_profile_makes_a_config():
    for name in PROFILES:
        assert relevant(configure(name))["seed"] == 0
    with pytest.raises(ConfigError, match="quick"):
        configure("quik")
