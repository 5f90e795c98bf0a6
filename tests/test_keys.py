"""What the keys of runs follow: folders of images, and the code of user-defined operators."""

import os
import sys
import tokenize
import types
from dataclasses import replace

import pytest
from forked import python

from biasnb.config import Config, ConfigError
from biasnb.operators import MIXERS, Mixer
from biasnb.records import keys
from biasnb.records.keys import key, search_key, user_digest
from biasnb.records.places import CHECKOUT
from biasnb.sweep import Study

# ---- folders of images --------------------------------------------------------------------------------------------


@pytest.fixture
def pets(root, tmp_path):
    """The Config of a folder of images (which no key decodes)."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(b"x")
    return Config(dataset="folder", data_dir=str(tmp_path / "pets"))


@pytest.fixture
def listings(monkeypatch):
    """The folders that were listed."""
    found, walk = [], os.walk

    def counting(top, **options):
        found.append(str(top))
        return walk(top, **options)

    monkeypatch.setattr(keys.os, "walk", counting)
    return found


def test_a_thousand_keys_of_a_snapshot_list_the_folder_once(pets, listings, tmp_path):
    with keys.snapshot():
        found = {key(replace(pets, seed=seed)) for seed in range(1000)}
        with keys.snapshot():
            keys.baseline_key(pets)
        (tmp_path / "pets/dog/2.png").write_bytes(b"x")
        assert key(replace(pets, seed=0)) in found
    assert len(found) == 1000 and listings == [str(tmp_path / "pets")]
    assert key(replace(pets, seed=0)) not in found
    assert len(listings) == 2


def test_a_snapshot_that_fails_is_over(pets, listings):
    with pytest.raises(ZeroDivisionError), keys.snapshot():
        _ = key(pets), 1 / 0
    key(pets), key(pets)
    assert len(listings) == 3


def test_an_image_that_is_rewritten_in_place_gives_another_key_at_once(pets, tmp_path):
    before = key(pets)
    file = tmp_path / "pets/cat/1.png"
    old = file.stat()
    for content in (b"xy", b"y"):  # the second of the same size
        file.write_bytes(content)
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert key(pets) != before
    file.write_bytes(b"x")
    assert key(pets) == before


@pytest.fixture
def readings(monkeypatch):
    """The files that were read to tell their content."""
    found, file_digest = [], keys.hashlib.file_digest

    def counting(file, kind):
        found.append("/".join(file.name.split("/")[-2:]))
        return file_digest(file, kind)

    monkeypatch.setattr(keys.hashlib, "file_digest", counting)
    return found


def test_images_are_read_again_only_if_they_may_have_changed_and_a_touch_keeps_the_key(pets, readings, tmp_path, monkeypatch):
    before = key(pets)
    assert readings == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert key(pets) == before and len(readings) == 6  # written just now, so that the next change may have the same time stamp
    monkeypatch.setattr(keys, "TICK", -1)
    assert {key(replace(pets, seed=seed)) for seed in (0, 0, 0)} == {before} and len(readings) == 9
    (tmp_path / "pets/cat/2.png").touch()
    assert key(pets) == before and readings[9:] == ["cat/2.png"]
    replaced = tmp_path / "pets/dog/1.png"
    old = replaced.stat()
    (tmp_path / "new").write_bytes(b"z")
    os.utime(tmp_path / "new", ns=(old.st_atime_ns, old.st_mtime_ns))
    (tmp_path / "new").rename(replaced)  # another file of the same size and time of writing
    assert key(pets) != before and readings[10:] == ["dog/1.png"]
    (cache,) = (tmp_path / "runs/cache").glob("folder-*.contents")
    for damaged in ("no JSON", "[]", '{"cat/1.png": 1, "cat/2.png": []}'):
        cache.write_text(damaged)
        assert key(pets) != before and len(readings) % 3 == 2


@pytest.mark.parametrize("name", ["cat/._1.png", ".DS_Store", "cat/notes.txt", "loose.png", ".git/1.png", "__MACOSX/cat/1.png"])
def test_files_that_are_not_read_change_no_key(pets, tmp_path, name):
    before = key(pets)
    (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "pets" / name).write_bytes(b"y")
    assert key(pets) == before


def test_a_folder_that_cannot_be_listed_is_named(pets, tmp_path):
    (tmp_path / "pets/cat/gone.png").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"gone.png: No such file or directory; repair or remove it"):
        key(pets)


# ---- user-defined operators ---------------------------------------------------------------------------------------

SOURCE = '''
import collections, contextlib, enum, functools, math, threading
import numpy as np
import torch
from dataclasses import dataclass, field
from biasnb.networks import mixing

SCALE = 0.5
TABLE = {"a": [1, 2, {3, 4}], "b": (None, ..., 2.5)}
WORDS = {"one", "two", "three"}

class Kind(enum.Enum):
    NEAR = 1
    FAR = 2

@dataclass
class Setting:
    gain: float = 1.5
    names: list = field(default_factory=lambda: ["x"])

class Plain:
    def __init__(self, value):
        self.value, self.me = value, self

Pair = collections.namedtuple("Pair", "left right")
PLAIN = Plain(7)
SETTING = Setting()

def inner(x):
    return x * 3

def helper(x, power=2):
    """A docstring."""
    def nested(y):
        return inner(y) ** power if y in {1, 2, 3} else TABLE["a"]
    return nested(x)

def decorated(function):
    @functools.wraps(function)
    def call(*given):
        return function(*given)
    return call

@functools.lru_cache(maxsize=16)
def cached(n):
    return n + 10

@contextlib.contextmanager
def context():
    yield 20

half = functools.partial(helper, power=4)

class Base(mixing.Static):
    inherited = 5

class Cross(Base):
    """Each position reads its own row and column."""
    sizes = [1, 2]
    matrix_of_numbers = np.arange(3)
    tensor = torch.ones(2)
    kind = Kind.NEAR
    act = torch.nn.GELU()
    class Inner:
        depth = 6
    def __init__(self, cfg, layer=0, *, bias=8):
        super().__init__(cfg, layer)
        self.allowed = self.allowed & (mixing.offsets(cfg) == 0).any(2)  # a comment
    @staticmethod
    def fixed():
        return 30
    @classmethod
    def made(cls):
        return cls.fixed() + 40
    @property
    def width(self):
        return 50
    @functools.cached_property
    def height(self):
        return 60
    @decorated
    def forward(self, x, query=None):
        local = lambda y: math.sqrt(y) + SCALE
        try:
            values = [cached(i) for i in range(3) if i in WORDS]
        except ValueError:
            values = half(1)
        with context() as c:
            return local(helper(x)) + PLAIN.value + SETTING.gain + Pair(1, 2).left + Cross.__name__.count("a") + c
    @torch.no_grad()
    def favour_self(self):
        return np.tanh(70)
'''


def executed(source, name="notebook", file="<cell>"):
    """The namespace of a cell that was run."""
    module = types.ModuleType(name)
    exec(compile(source, file, "exec"), vars(module))
    return vars(module)


def digest_of(source, **fields):
    entry = Mixer("cross", executed(source)["Cross"], ("heads",), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXERS, "cross", entry)
        return user_digest("cross")


EDITS = {
    "a helper": ("inner(y) **", "inner(y) +"),
    "a set": ('"three"}', '"four"}'),
    "a decorator": ("return function(*given)", "return function(*given) or 1"),
    "a function of a package": ("np.tanh", "np.tan"),
    "a decorator of a package": ("@torch.no_grad()", "@torch.enable_grad()"),
    "a base": ("class Base(mixing.Static)", "class Base(mixing.StaticSoftmax)"),
    "a list": ("sizes = [1, 2]", "sizes = [1, 2, 3]"),
    "the kind of a number": ("sizes = [1, 2]", "sizes = [1, 2.0]"),
    "the type of an array": ("np.arange(3)", "np.arange(3, dtype=np.int8)"),
    "a tensor": ("torch.ones(2)", "torch.zeros(2)"),
    "a member of an enumeration": ("kind = Kind.NEAR", "kind = Kind.FAR"),
    "a module of torch": ("GELU()", 'GELU("tanh")'),
    "a lambda": ("math.sqrt(y) + SCALE", "math.sqrt(y) - SCALE"),
    "a handled exception": ("except ValueError", "except KeyError"),
    "the class of an object": ("self.value, self.me = value, self", "self.value, self.me = value + 1, self"),
    "a factory of a data class": ('["x"]', '["y"]'),
    "a named tuple": ('"left right"', '"left wrong"'),
}


LINES = SOURCE.splitlines(keepends=True)
NUMBERS = [token for token in tokenize.generate_tokens(iter(LINES).__next__) if token.type == tokenize.NUMBER]


@pytest.mark.parametrize("token", NUMBERS, ids=lambda token: f"{token.line.strip()}:{token.start[1]}")
def test_every_number_in_the_code_of_an_operator_and_of_what_it_uses_is_in_its_key(token):
    """In methods, properties, helpers and their helpers, constants, defaults, decorators, attributes, objects, bases."""
    (row, start), end = token.start, token.end[1]
    edited = LINES[row - 1][:start] + f"{float(token.string) + 100:g}" + LINES[row - 1][end:]
    assert digest_of("".join([*LINES[: row - 1], edited, *LINES[row:]])) != digest_of(SOURCE)


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_of_an_operator_gives_another_key(edit):
    before, after = EDITS[edit]
    assert SOURCE.count(before) == 1
    assert digest_of(SOURCE.replace(before, after)) != digest_of(SOURCE)


SILENT_EDITS = {
    "nothing": ("", ""),
    "a comment": ("# a comment", "# another one"),
    "a line": ("\nclass Cross", "\n\n\n# moved\nclass Cross"),
    "the docstring of a function": ("A docstring.", "Another."),
    "the docstring of a class": ("Each position", "Any position"),
    "an unused global": ("SCALE = 0.5", "SCALE = 0.5\nUNUSED = open"),
}


@pytest.mark.parametrize("edit", SILENT_EDITS)
def test_what_an_operator_does_not_do_is_not_in_its_key(edit):
    assert digest_of(SOURCE.replace(*SILENT_EDITS[edit], 1)) == digest_of(SOURCE)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_source_has_the_same_key_in_another_process_and_file(tmp_path, seed):
    folder = tmp_path / seed
    folder.mkdir()
    (folder / f"mine{seed}.py").write_text("#\n" * int(seed) + SOURCE)
    script = (f"from biasnb.operators import MIXERS, Mixer\nfrom biasnb.records.keys import user_digest\n"
              f"import mine{seed}\nMIXERS['cross'] = Mixer('cross', mine{seed}.Cross, ('heads',))\n"
              f"first = user_digest('cross')\nassert first == user_digest('cross')\nprint(first)")  # fmt: skip
    path = os.pathsep.join([str(folder), str(CHECKOUT)])
    assert python(folder, "-c", script, PYTHONHASHSEED=seed, PYTHONPATH=path).strip() == digest_of(SOURCE)


def test_a_module_of_the_user_counts_with_all_it_holds_and_one_of_a_package_by_its_name(monkeypatch):
    helpers = types.ModuleType("helpers_of_mine")
    monkeypatch.setitem(sys.modules, "helpers_of_mine", helpers)
    source = (
        "import helpers_of_mine, json\nclass Cross:\n    def forward(self, x):\n        return helpers_of_mine.f(json.loads(x))"
    )
    found = []
    for text in ("def f(x): return g(x)\ndef g(x): return 1", "def f(x): return g(x)\ndef g(x): return 2"):
        exec(text, vars(helpers))
        found += [digest_of(source), digest_of(source)]
    assert found[0] == found[1] != found[2] == found[3]
    monkeypatch.setattr("json.loads", lambda x: x)
    assert digest_of(source) == found[2]


def test_the_package_of_the_operator_counts_also_where_it_is_installed(monkeypatch):
    found = []
    for operator, helper in ((1, 1), (1, 2), (2, 2)):
        modules = {}
        for name, source in (
            ("lab", ""),
            ("lab.helpers", f"def f(x): return {helper}"),
            ("other", f"def g(x): return {operator}"),
        ):
            modules[name] = types.ModuleType(name)
            modules[name].__file__ = f"{os.path.dirname(pytest.__file__)}/{name}.py"
            monkeypatch.setitem(sys.modules, name, modules[name])
            exec(source, vars(modules[name]))
        source = ("from lab.helpers import f\nfrom other import g\nclass Cross:\n"
                  "    def forward(self, x):\n        return f(x), g(x)")  # fmt: skip
        exec(source, vars(modules["lab"]))
        monkeypatch.setitem(MIXERS, "cross", Mixer("cross", modules["lab"].Cross))
        found.append(user_digest("cross"))
    assert found[0] != found[1] == found[2]  # another package counts by its name


def test_a_global_that_is_not_there_yet_counts_once_it_is():
    source = "class Cross:\n    def forward(self, x):\n        return later(x)"
    assert digest_of(source) != digest_of(source + "\ndef later(x): return x")


def test_a_value_that_cannot_be_read_is_trained_again_in_every_process():
    source = "import threading\nlock = threading.Lock()\nclass Cross:\n    def forward(self, x):\n        return lock"
    entry = Mixer("cross", executed(source)["Cross"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXERS, "cross", entry)
        once = user_digest("cross")
        assert user_digest("cross") == once  # in one process the runs of an operator keep their keys
        patch.setattr(keys, "THIS_PROCESS", "another")
        assert user_digest("cross") != once
    assert digest_of(source) != digest_of(source) != once


def test_what_holds_itself_or_is_nested_too_deeply_is_no_trouble():
    source = (
        "loop = [1]\nloop.append(loop)\nclass Cross:\n    me = loop\n    def forward(self): return Cross\nCross.mine = Cross"
    )
    assert digest_of(source) == digest_of(source) != digest_of(source.replace("[1]", "[2]"))
    deep = "deep = []\nfor _ in range(5000): deep = [deep]\nclass Cross:\n    me = deep"
    assert digest_of(deep) != digest_of(deep)


@pytest.mark.parametrize(
    ("field", "value", "same"), [("label", "plus", True), ("local", True, False), ("reads", ("heads", "kernel"), False)]
)
def test_the_entry_of_an_operator_counts_but_for_its_label(field, value, same):
    cross = executed(SOURCE)["Cross"]
    entry = Mixer("cross", cross, ("heads",))
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for one in (entry, entry._replace(**{field: value})):
            patch.setitem(MIXERS, "cross", one)
            found.append(user_digest("cross"))
    assert (found[0] == found[1]) is same


def test_only_operators_of_the_suite_as_they_are_have_no_digest(monkeypatch):
    assert [mixer for mixer in MIXERS if user_digest(mixer)] == []
    plain = key(Config(mixer="conv"))
    for changed in (MIXERS["conv"]._replace(operator=executed(SOURCE)["Cross"]), MIXERS["conv"]._replace(local=False)):
        monkeypatch.setitem(MIXERS, "conv", changed)
        assert user_digest("conv") and key(Config(mixer="conv")) != plain


def test_runs_searches_and_names_of_sweeps_follow_the_operator_and_baselines_and_other_runs_do_not(monkeypatch):
    found = []
    for source in (SOURCE, SOURCE.replace("return 30", "return 31")):
        monkeypatch.setitem(MIXERS, "cross", Mixer("cross", executed(source)["Cross"]))
        cfg = Config(mixer="cross")
        study = Study("20_trio", "smoke", mixer=["igpt", "cross"])
        name = study.plan(study.every_combination("mixer")).name
        found.append((key(cfg), search_key(cfg), name, keys.baseline_key(cfg), key(Config(mixer="igpt"))))
    same = [one == other for one, other in zip(*found, strict=True)]
    assert same == [False, False, False, True, True]


def test_a_version_takes_the_place_of_the_code(monkeypatch):
    """As in a process that received the class: test_executor."""
    found = []
    for operator, version in ((object, "1"), (dict, "1"), (dict, "2")):
        monkeypatch.setitem(MIXERS, "cross", Mixer("cross", operator, version=version))
        found.append(key(Config(mixer="cross")))
    assert found[0] == found[1] != found[2]


def test_within_a_snapshot_an_operator_is_read_once(monkeypatch):
    monkeypatch.setitem(MIXERS, "cross", Mixer("cross", executed(SOURCE)["Cross"]))
    read, digest = [], keys._code_digest
    monkeypatch.setattr(keys, "_code_digest", lambda mixer: read.append(mixer) or digest(mixer))
    with keys.snapshot():
        assert len({key(Config(mixer="cross", seed=seed)) for seed in range(20)}) == 20
    assert len(read) == 1
