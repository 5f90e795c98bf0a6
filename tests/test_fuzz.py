"""Any value for any setting is taken and trains, or is refused in one line that names it."""

import contextlib
import io
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biasnb.config import DATASETS, MAX_TOKENS, PROFILES, BiasnbError, Config, ConfigError, fields_of, short
from biasnb.data import datasets as data
from biasnb.data import palette
from biasnb.operators import MIXERS
from biasnb.suite import commands
from biasnb.sweep import manifest
from biasnb.training import run
from biasnb.training.loop import Diverged, pretrain
from biasnb.training.pretext import evaluate

FIELDS = fields(Config)
LONGEST = 1000  # characters of a message; the longest lists all operators
FUZZ = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def one_line(error, *names):
    message = str(error)
    assert len(message.splitlines()) == 1 and message.isprintable(), repr(message)
    assert len(message) <= LONGEST
    assert message.startswith(tuple(f"{name}:" for name in names)), message
    return message


# ---- any value for any field --------------------------------------------------------------------------------------

ODD = ["", "\0", "\ud800", "a\nb", "\x85", "\u2028", "../x", "~nobody/x", "x" * 10_000, f"{'x' * 10_000}\n"]
TEXT = st.text() | st.sampled_from(ODD)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary(), st.complex_numbers(),
    st.sampled_from((19, 400, 5000)).map(lambda digits: 10**digits),
    st.sampled_from([ math.nan, math.inf, -0.0, b"x" * 10_000, object(), int, Config]),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner) | st.tuples(inner), max_leaves=5)
NAMES = st.sampled_from([f.name for f in FIELDS])
MISSPELT = st.one_of(TEXT, NAMES.map(lambda name: name[1:]), NAMES.map(str.upper), NAMES.map(lambda name: f"{name} "))


def near(f):
    """Values of the right type for a field, inside and outside of its range."""
    low, high = f.metadata["low"], f.metadata["high"]
    if f.metadata["choices"]:
        return st.sampled_from(list(f.metadata["choices"]))
    if f.type is str:
        return TEXT
    edges = [low, high, low - 1, high + 1, math.nextafter(high, math.inf), 0, -1]
    return st.sampled_from(edges) | (st.integers(low, high) if f.type is int else st.floats(low, high))


@given(given=st.sampled_from(FIELDS).flatmap(lambda f: st.fixed_dictionaries({f.name: VALUES | near(f)})))
@settings(max_examples=600, **FUZZ)
def test_any_value_of_a_field_is_kept_or_refused_in_one_line_naming_it(given):
    ((name, value),) = given.items()
    try:
        cfg = Config(**given)
    except ConfigError as error:
        # of two fields that do not fit together the line names one and may begin with the other
        assert name in one_line(error, *fields_of())
    else:
        assert getattr(cfg, name) == (str(Path(value).expanduser().resolve()) if name == "data_dir" and value else value)
        assert type(getattr(cfg, name)) is fields_of()[name]


@given(name=MISSPELT.filter(lambda name: name not in fields_of()), value=VALUES)
@settings(max_examples=300, **FUZZ)
def test_any_name_that_is_no_field_is_refused_in_one_line(name, value):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    plain = name.isprintable() and 0 < len(name) <= 80
    assert "no such field" in one_line(caught.value, name if plain else short(name))


# ---- too many tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch", "remedy"), [
    (128, 1, "choose patch 2 or image_size 64"),
    (66, 1, "choose patch 2 or image_size 64"),
    (65, 1, "choose image_size 64"),
    (256, 1, "choose patch 4 or image_size 64"),
    (130, 2, "choose image_size 128"),
    (256, 2, "choose patch 4 or image_size 128"),
])  # fmt: skip
def test_a_grid_of_too_many_tokens_is_refused_with_a_remedy_that_works(size, patch, remedy):
    with pytest.raises(ConfigError) as caught:
        Config(image_size=size, patch=patch)
    message = one_line(caught.value, "patch")
    assert f"patch: {patch} on {size} pixels gives {(size // patch) ** 2} tokens, more than 4096; {remedy}" == message
    for word in message.partition("choose ")[2].split(" or "):
        name, value = word.split()
        cfg = Config(**{"image_size": size, "patch": patch, name: int(value)})
        assert cfg.grid**2 <= MAX_TOKENS


@pytest.mark.parametrize(("size", "patch"), [(64, 1), (128, 2), (256, 4)])
def test_the_largest_grid_is_taken(size, patch):
    assert Config(image_size=size, patch=patch).grid ** 2 == MAX_TOKENS


# ---- any combination ----------------------------------------------------------------------------------------------

SMALL = {
    "image_size": st.integers(4, 12),
    "images": st.just(0) | st.integers(1, 40),
    "labelled": st.just(0) | st.integers(1, 40),
    "colours": st.integers(2, 8),
    "depth": st.integers(1, 2),
    "width": st.sampled_from((4, 6, 8, 12, 16)) | st.integers(4, 16),
    "heads": st.sampled_from((1, 1, 2, 2, 3, 4)),
    "kernel": st.sampled_from((1, 3, 3, 5, 7, 31)) | st.integers(1, 31),
    "rank": st.integers(1, 4),
    "local_heads": st.integers(0, 4),
    "token_ratio": st.integers(1, 3),
    "mlp_ratio": st.integers(1, 3),
    "steps": st.integers(1, 2),
    "batch": st.integers(1, 16),
    "dataset": st.sampled_from([name for name in DATASETS if name != "folder"]),
    "device": st.sampled_from(("cpu", "cpu", "cpu", "auto", "cuda")),
    "data_dir": st.just(""),
}  # fmt: skip


def choice(f):
    """A value that a field takes: from its range where it is small enough to train, and often its default."""
    if f.name in SMALL:
        return SMALL[f.name]
    if f.metadata["choices"]:
        return st.sampled_from(list(f.metadata["choices"]))
    low, high = f.metadata["low"], f.metadata["high"]
    return st.sampled_from((low, high, f.default)) | (st.integers if f.type is int else st.floats)(low, high)


def random_images(dataset, folder, size, signature):
    """In place of `data._arrays`: 60 images with four classes, one in ten without a label, as STL-10 has them."""
    g = torch.Generator().manual_seed(size)
    arrays = {}
    for part, n in (("train", 60), ("test", 20)):
        arrays[part] = torch.randint(0, 256, (n, size, size, 3), generator=g, dtype=torch.uint8).numpy()
        arrays[f"{part}_labels"] = (torch.arange(n) % 4).numpy()
    if dataset == "stl10":
        arrays["train_labels"][::10] = -1
    return dataset, ("a", "b", "c", "d"), arrays, "fingerprint"


@pytest.fixture
def quickly(monkeypatch):
    """Small random data in place of all data sets, and k-means on few pixels."""
    monkeypatch.setattr(data, "_arrays", random_images)
    monkeypatch.setattr(palette, "SAMPLE", 200)


TRIED = 20  # times that a field is drawn anew


@pytest.mark.parametrize("mixer", MIXERS)
@given(drawn=st.data())
@settings(max_examples=12, **FUZZ)
def test_any_combination_trains_or_is_refused_in_one_line_naming_a_field(quickly, mixer, drawn):
    """Where a combination is refused, the field that the line names is drawn anew, so that most end in training."""
    given = {f.name: drawn.draw(choice(f), f.name) for f in FIELDS} | {"mixer": mixer}
    for _ in range(TRIED):
        try:
            cfg = Config(**given)
            assert asdict(cfg) == given
            images, network = run.prepare(cfg)
            if cfg.pretext != "none":
                pretrain(run.budgeted(cfg, network, images), images, network)
                assert math.isfinite(evaluate(network, images.test, "test")["loss"])
            return
        except Diverged as error:
            one_line(error, "step 0", "step 1")
            return
        except BiasnbError as error:
            name = one_line(error, *fields_of()).partition(":")[0]
            given[name] = drawn.draw(choice(Config.__dataclass_fields__[name]), name)


# ---- any text on the command line and in notebooks ----------------------------------------------------------------

STRANGE = ["", " ", "\0", "\n", "1\n", "\ud800", "\x85", "١", "1_0", "²", "0x10", "007", "1e999", "-1e999", "nan", "1" * 5000,
           "-" + "9" * 5000, "1,", ",", "[", "]", "[]", "[[1]]", "]1[", "[1", "true", "null", "--x=y", "../x", "~nobody/x",
           "/dev/null/x", "x" * 10_000, "[" * 100_000, "{", '{"a": 1}', '"{}"', "tuned", "=", "a=b"]  # fmt: skip
WORDS = st.text() | st.sampled_from(STRANGE) | st.floats().map(str) | st.integers().map(str) | st.lists(st.integers()).map(str)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(STRANGE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | NAMES, inner, max_size=3),
    max_leaves=5,
)
DECLARED = {name: manifest.declared(name) for name in manifest.names()}


@given(name=NAMES, text=WORDS)
@settings(max_examples=600, **FUZZ)
def test_any_text_of_a_field_is_typed_or_refused_in_one_line_naming_it(name, text):
    try:
        (value,) = commands.typed(commands.split([f"{name}={text}"])).values()
    except ConfigError as error:
        one_line(error, name)
        return
    kind = fields_of()[name]
    assert type(value) is kind or (name, value) == ("lr", "tuned")
    assert kind is str or "".join(text.split()).isascii()
    try:
        Config(**{name: value})
    except ConfigError as error:
        assert name in one_line(error, *fields_of())


@given(name=st.sampled_from(list(DECLARED)), drawn=st.data())
@settings(max_examples=300, **FUZZ)
def test_any_value_of_a_parameter_is_taken_or_refused_in_one_line(root, name, drawn):
    known = [*DECLARED[name], *(fields_of() if "settings" in DECLARED[name] else [])]
    field = drawn.draw(st.sampled_from(known + [*DECLARED[name]] * 10) | MISSPELT)
    fitting = st.dictionaries(NAMES, JSON | NAMES.flatmap(lambda n: near(Config.__dataclass_fields__[n])), max_size=2)
    inner = drawn.draw(JSON | fitting | WORDS | st.sampled_from(list(PROFILES)))
    value = json.dumps(inner) if drawn.draw(st.booleans()) else inner
    try:
        values = manifest.parameters(name, {field: value})
    except ConfigError as error:
        names = inner
        if isinstance(inner, str):
            with contextlib.suppress(ValueError, RecursionError):
                names = json.loads(inner)
        names = names if isinstance(names, dict) else {}
        one_line(error, field, field.removesuffix("s"), short(field), "settings", *fields_of(), *names, *map(short, names))
    else:
        for parameter, default in DECLARED[name].items():
            listed = default is None or isinstance(default, list)
            assert isinstance(values[parameter], list | None if listed else type(default))
    assert not any(root.iterdir())


COMMANDS = [("run",), ("tune", "20_trio"), ("notebook", "20_trio"), ("notebook", "90_paper"), ("notebook", "00_start_here"),
            ("reproduce",), ("status",)]  # fmt: skip


class Accepted(BaseException):
    """Raised where a command would start to train."""


@given(command=st.sampled_from(COMMANDS), profile=st.sampled_from(list(PROFILES)) | WORDS, name=NAMES | MISSPELT, text=WORDS)
@settings(max_examples=200, **FUZZ)
def test_any_setting_on_the_command_line_is_accepted_or_gives_one_line_and_writes_nothing(
    root, monkeypatch, command, profile, name, text
):
    def stop(*given, **named):
        raise Accepted

    for place in ("training.run.run", "sweep.search.tune", "sweep.executor.train", "sweep.executor.cluster"):
        monkeypatch.setattr(f"biasnb.{place}", stop)
    monkeypatch.setattr("biasnb.suite.notebooks.this_interpreter", stop)
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8")  # refuses surrogates, unlike stderr itself
    monkeypatch.setattr("sys.stderr", shown)
    before = sorted(root.rglob("*"))  # of commands that were accepted
    try:
        code = commands.main([*command, f"--profile={profile}", f"{name}={text}"])
    except Accepted:
        return
    shown.flush()
    lines = shown.buffer.getvalue().decode().splitlines()
    assert (code, len(lines)) == (2, 1) or (command == ("status",) and (code, lines) == (0, []))
    assert all(line.startswith("error: ") and len(line) <= LONGEST for line in lines)
    assert sorted(root.rglob("*")) == before
