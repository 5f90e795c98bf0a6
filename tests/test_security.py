"""What the code never does, read from the code itself."""

import ast

import pytest
import torch

from biasnb.config import PROFILES
from biasnb.records.files import StoreError
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.records.store import Store

FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "yaml.load",
             "joblib.load", "pd.read_pickle", "shelve.open", "cloudpickle.load", "cloudpickle.loads",
             *(f"pickle.{name}" for name in ("load", "loads", "dump", "dumps"))}  # fmt: skip
ALLOWED = {
    "manifest.py": {"exec", "compile"},  # the cells of a notebook that say what it trains, as running the notebook would
    "executor.py": {"cloudpickle.loads"},  # user-defined operators, from the process that asked the scheduler for a run
}
DESCRIBES = "keys.py"  # operators are told apart by the bytes of a pickler of its own, which are hashed and never kept or read
PACKAGE = sorted((ROOT / "biasnb").rglob("*.py"))


def calls(path):
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_no_code_of_a_user_is_run_and_no_pickle_read_or_written(path):
    names = {name for name, _ in calls(path)}
    assert FORBIDDEN & names == ALLOWED.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert path.name == DESCRIBES or "pickle" not in [alias.name for alias in node.names]
    assert not {"pickle.Unpickler", "pickle._Unpickler", "pickle.Pickler"} & names
    for name, call in calls(path):
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert "shell" not in given, f"line {call.lineno}: a shell"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", f"line {call.lineno}"


def test_the_search_finds_what_it_looks_for(tmp_path):
    (tmp_path / "bad.py").write_text("import torch\nx = torch.load('f')\neval('1')\n")
    assert {name for name, _ in calls(tmp_path / "bad.py")} & FORBIDDEN == {"torch.load", "eval"}


def test_jupyterlab_keeps_its_token():
    for path in (ROOT / "Makefile", *PACKAGE, *(ROOT / "tests").glob("*.py")):
        if path.name != "test_security.py":
            text = path.read_text(encoding="utf-8")
            assert "ServerApp" not in text and "IdentityProvider" not in text and "NotebookApp" not in text, path


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\n", "a\x00", ".hidden", "ü" * 16])
def test_a_key_cannot_lead_out_of_its_folder(root, key):
    store = Store("smoke")
    for use in (store.path, store.has, store.load, store.status, store.arrays):
        with pytest.raises(StoreError, match="key: ") as caught:
            use(key)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_plain_name(profile):
    assert profile.isidentifier()


def test_torch_is_new_enough():
    assert tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
