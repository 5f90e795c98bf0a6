"""Faults of a run, each in real processes with real signals: whatever happens to it, it goes on to the same result, or one
line says why not."""

import functools
import importlib
import itertools
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil  # noqa: F401
import pytest
import torch
from forked import pictures, python
from safetensors.torch import load as load_tensors
from synthetic import run_record

from biasnb.config import ConfigError, configure
from biasnb.data import datasets as data
from biasnb.data import palette as palettes
from biasnb.networks import model
from biasnb.operators import FAMILIES, MIXERS
from biasnb.records import files
from biasnb.records.keys import baseline_key, init_key, key
from biasnb.records.progress import Progress
from biasnb.records.store import Store
from biasnb.training import checkpoint, evaluation, pretext, run
from biasnb.training import loop as train

MEASURED = ("wall_seconds", "images_per_second", "evaluation_seconds")  # times, which differ whenever the suite runs
LEAVE = 10  # seconds from a signal to the end of a process, on a busy machine
# How a process is ended: words -> (signal, exit code). In a notebook SIGINT is an exception, which its cell ends with.
ENDS = {"SIGTERM": (15, -15), "SIGINT": (2, -2), "SIGKILL": (9, -9), "interrupted cell": (2, 70)}


# ---- in the process that is disturbed: `first=HERE + "at(...)"` --------------------------------------------------------

HERE = "from test_faults_runs import *\n"
EVERY_STEP = HERE + "save_every_step()\n"


MODULES = {
    "train": "training.loop",
    "run": "training.run",
    "checkpoint": "training.checkpoint",
    "evaluation": "training.evaluation",
    "files": "records.files",
    "data": "data.datasets",
    "palette": "data.palette",
}


def at(where, action, call=1, on=""):
    """Do something just before a certain call of a function of the package, of those with `on` among their arguments."""
    *names, last = where.split(".")
    owner = functools.reduce(getattr, names[1:], importlib.import_module(f"biasnb.{MODULES[names[0]]}"))
    inner, calls = getattr(owner, last), itertools.count(1)

    def outer(*given, **named):
        if on in str(given) and next(calls) == call:
            print(f"at {where}", flush=True)
            action()
        return inner(*given, **named)

    setattr(owner, last, outer)


def receive(number):
    """Get this signal."""
    os.kill(os.getpid(), number)


def killed():
    receive(signal.SIGKILL)


def save_every_step():
    """Leave a state after every step, whatever share of the time that takes."""
    os.environ["BIASNB_CHECKPOINT_SECONDS"] = "0"
    checkpoint.SHARE = math.inf


def cell(data_dir):
    """What a cell of a notebook does."""
    cfg, store = configure("smoke", **FIELDS, data_dir=data_dir), Store("smoke")
    run.run(cfg, store)
    run.baseline(cfg, store)
    run.init(cfg, store)


def no_locks():
    """As on a file system without locks."""

    def acquire(*_, **__):
        raise NotImplementedError

    files.FileLock.acquire = acquire


def small_files(size):
    """No file may have more bytes from now on, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))


def block_for_ever():
    """A call that does not return, and lets no Python code run meanwhile."""
    import ctypes

    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def tell():
    """Print where a training starts and every update of weights."""

    class Told(train.Progress):
        def __init__(self, label, total, done=0):
            super().__init__(label, total, done)
            print(f"from step {done}", flush=True)

    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self: print("update", flush=True) or step(self)
    train.Progress = Told


def spoil_loss(call, how):
    """From a certain call on the loss is NaN, or finite with a gradient that is not."""
    inner, calls = pretext.LOSSES["bert"], itertools.count(1)

    def loss(net, *given):
        value = inner(net, *given)
        if next(calls) < call:
            return value
        if how == "NaN loss":
            return value * math.nan
        weight = next(p for p in net.parameters() if p.requires_grad)
        return value + (weight - weight.detach()).sum() * 1e30 * 1e30

    pretext.LOSSES["bert"] = loss


# ---- what a run is asked and what it leaves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


FIELDS = {"dataset": "folder", "labelled": 0, "device": "cpu", "steps": 6, "input": "palette", "augment": "crop"}


@pytest.fixture(scope="module")
def asked(photos):
    """fields -> (words of the command, Config)."""

    def both(**fields):
        fields = {**FIELDS, "data_dir": str(photos), **fields}
        return ["run", "--profile", "smoke", *(f"{k}={v}" for k, v in fields.items())], configure("smoke", **fields)

    return both


@pytest.fixture(scope="module")
def calm(zygote, asked, tmp_path_factory):
    """A checkout in which the run came to its end undisturbed."""
    root = tmp_path_factory.mktemp("calm")
    process = zygote.start(root, *asked()[0])
    assert process.wait() == 0, process.output()
    return root


def outcome(root):
    """What runs left, but for times: path -> content."""
    top, found = root / "runs" / "smoke", {}
    for path in sorted(top.glob("*.json")):
        found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in MEASURED}
    return found | {path.name: path.read_bytes() for path in sorted((*top.glob("*.npz"), *top.glob("*.safetensors")))}


def left_over(root):
    """What nobody needs once the runs are done."""
    top = root / "runs" / "smoke"
    found = [path for path in top.rglob("*") if path.name.endswith((".part", ".error"))]
    return [str(path) for path in (*found, *top.glob("checkpoints/*"), *top.glob("locks/*"))]


def states(cfg):
    return sorted((Store("smoke").checkpoints(key(cfg))).glob("*.safetensors"), reverse=True)


def finished_as(calm, process):
    """The process came to its end, and what is there is what an undisturbed one leaves."""
    assert process.wait() == 0, process.output()
    root = process.written.parent
    assert outcome(root) == outcome(calm)
    assert not left_over(root)


# ---- equal results ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F1")
def test_two_processes_give_equal_records_and_weights_to_the_byte(zygote, asked, tmp_path):
    """One forked, the other started as a user does, with other hashes of strings."""
    words, cfg = asked()
    whole = f"{HERE}evaluation.EVALUATIONS = {evaluation.EVALUATIONS}"
    forked = zygote.start(tmp_path / "forked", *words, first=whole)
    python(tmp_path, "-m", "biasnb", *words, PYTHONHASHSEED="7")
    assert forked.wait() == 0, forked.output()
    one, other = outcome(tmp_path), outcome(tmp_path / "forked")
    assert one == other
    assert files_of(cfg) == set(one)


TINY = {"image_size": 8, "patch": 2, "width": 8, "heads": 2, "kernel": 3, "depth": 1, "colours": 8, "batch": 8, "steps": 6}
EPOCH = 4  # steps


@functools.cache
def noise():
    images = torch.randint(0, 256, (8 * EPOCH, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = data.Split(images, torch.arange(len(images)) % 4)
    return data.Data("noise", ("a", "b", "c", "d"), split, split, split, split, "fingerprint"), palettes.fit(images, 8)


def train_tiny(cfg, folder, seconds):
    noised, palette = noise()
    net = model.build(cfg, noised.stats(), palette if cfg.uses_palette else None, classes=4)
    before = torch.get_rng_state()
    os.environ["BIASNB_CHECKPOINT_SECONDS"] = str(seconds)
    train.pretrain(cfg, noised, net, checkpoint.Checkpoints(folder, {"key": key(cfg)}))
    assert torch.equal(before, torch.get_rng_state()), "torch's own random numbers were used"


def content(folder):
    """(tensors, rows) of the newest state in a folder."""
    found = checkpoint.Checkpoints(folder, {}).found()[0].read_bytes()
    header = json.loads(found[8 : 8 + int.from_bytes(found[:8], "little")])["__metadata__"]
    return header["step"], load_tensors(found), json.loads(header["log"])


def killed_on_the_way(cfg, folder, seconds, step, delay):
    """Train in a process of its own that is killed so many seconds after it has begun a step."""
    pid = os.fork()
    if not pid:
        at("train.learning_rate", lambda: threading.Timer(delay, killed).start(), step)
        train_tiny(cfg, folder, seconds)
        time.sleep(LEAVE)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


EVERY = tuple(itertools.product(("bert", "ar", "denoise", "supervised"), ("rgb", "quantised", "palette")))
ONCE = (("bert", "palette"), ("ar", "quantised"), ("denoise", "rgb"), ("supervised", "rgb"))  # every pretext and input once


def kill_each_once(mixer, folder, wanted):
    """Kill the training of an operator on every (pretext, input) after a random step; print how many there were, how many are
    refused, and how many went on from a state amid an epoch."""
    os.fsync = lambda file: None  # SIGKILL loses nothing that the system has been given
    checkpoint.SHARE = math.inf
    rng, count, refused, begun = random.Random(mixer), 0, 0, []

    class Quiet(Progress):
        def __init__(self, label, total, done):
            super().__init__(label, total, done, every=math.inf)
            begun.append(done)

    train.Progress = Quiet
    for task, seen in wanted:
        try:
            cfg = configure("smoke", **TINY, mixer=mixer, pretext=task, input=seen, augment=rng.choice(("crop", "flip")))
        except ConfigError as error:
            assert task != "ar" and str(error).startswith("mixer: 'conv_two_stream'"), error
            refused += 1
            continue
        count += 1
        own, calm, often = folder / key(cfg), folder / "calm" / key(cfg), rng.choice((0, 0, 0.005))
        killed_on_the_way(cfg, own, often, rng.randrange(2, TINY["steps"] + 1), rng.uniform(0, 0.006))
        train_tiny(cfg, own, often)
        train_tiny(cfg, calm, 3600)
        (step, tensors, log), (_, others, other) = content(own), content(calm)
        name = f"{mixer} {task} {seen}"
        assert step == str(TINY["steps"]) and any(part.startswith("optimizer.") for part in tensors), name
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors), name
        assert log["history"] == other["history"] and not log["window"] and len(log["speeds"]) == len(other["speeds"]), name
        assert [row["step"] for row in log["history"]] == list(range(1, TINY["steps"] + 1)), name
    print(mixer, count, refused, sum(step % EPOCH > 0 for step in begun))


@pytest.mark.fault("F3")
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_after_a_random_step_every_task_and_input_ends_equal(zygote, tmp_path, family, campaign):
    """Tensors, optimizer and rows; no row twice and none missing; torch's own random numbers are never used."""
    wanted = EVERY if campaign else ONCE
    code = f"for mixer in FAMILIES[{family!r}]: kill_each_once(mixer, Path({str(tmp_path)!r}), {wanted})"
    process = zygote.start(tmp_path, then=HERE + code)
    assert process.wait() == 0, process.output()
    found = {name: tuple(map(int, rest)) for name, *rest in map(str.split, process.output().splitlines()) if name in MIXERS}
    assert found.keys() == FAMILIES[family].keys()
    for mixer, (count, refused, amid) in found.items():
        assert amid >= count / 4 or not campaign, mixer
        taken = sum(task == "ar" for task, _ in wanted) if mixer == "conv_two_stream" else len(wanted)
        assert (count, refused) == (taken, len(wanted) - taken), mixer
    assert any(amid for _, _, amid in found.values())


# ---- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F4")
@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        ("signal.signal(signal.SIGXFSZ, signal.SIG_DFL); at('train.gradients', lambda: small_files(4096), 3)", 2),
        ("at('checkpoint.write_atomic', lambda: at('files.os.fsync', killed), 3, on='checkpoints')", 2),
        ("at('files.os.replace', killed, 3, on='checkpoints')", 2),
        ("at('checkpoint.Checkpoints.found', killed, 4)", 3),
        ("at('files.Path.unlink', killed, on='/00000001-')", 3),
    ],
    ids=["half written", "not yet on the disk", "not yet named", "named", "old ones not yet removed"],
)
def test_killed_while_it_saves_a_state_it_goes_on_from_the_newest_whole_one(zygote, root, asked, calm, moment, kept):
    words, cfg = asked()
    assert zygote.start(root, *words, first=EVERY_STEP + moment).wait() in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert int(states(cfg)[0].name[:8]) == kept
    for path in states(cfg):
        assert checkpoint.digest(path.read_bytes()) == checkpoint.NAME.fullmatch(path.name)[2]
    assert Store("smoke").status(key(cfg)) == ("interrupted", f"goes on from step {kept}")
    process = zygote.start(root, *words, first=EVERY_STEP + "tell()")
    finished_as(calm, process)
    assert f"from step {kept}\n" in process.output() and process.output().count("update") == 6 - kept


def killed_after_step(zygote, root, words, step):
    """Kill a run that has made so many steps since it was started; it leaves the states of the last two."""
    first = EVERY_STEP + f"at('train.augmentation', killed, {step + 1})"
    assert zygote.start(root, *words, first=first).wait() == -signal.SIGKILL


SPOIL = {
    "truncated": lambda content: content[:-5],
    "one bit of the tensors": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "one bit of the header": lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "empty": lambda content: b"",
}


@pytest.mark.fault("F5")
@pytest.mark.parametrize("how", SPOIL)
def test_a_spoilt_state_is_named_and_the_one_before_it_used(zygote, root, asked, calm, how):
    words, cfg = asked()
    killed_after_step(zygote, root, words, 4)
    newest = states(cfg)[0]
    newest.write_bytes(SPOIL[how](newest.read_bytes()))
    process = zygote.start(root, *words, first=HERE + "tell()")
    finished_as(calm, process)
    assert f"{newest.name}: does not match its digest" in process.output() and "from step 3\n" in process.output()


@pytest.mark.fault("F5")
def test_with_a_spoilt_state_two_whole_ones_are_soon_kept_again(zygote, root, asked):
    words, cfg = asked()
    killed_after_step(zygote, root, words, 5)
    states(cfg)[0].write_bytes(b"")
    killed_after_step(zygote, root, words, 1)
    assert [int(path.name[:8]) for path in states(cfg)] == [5, 4]
    assert all(checkpoint.digest(path.read_bytes()) in path.name for path in states(cfg))


@pytest.mark.fault("F5")
def test_with_no_whole_state_left_it_says_so_and_trains_nothing(zygote, root, asked):
    words, cfg = asked()
    killed_after_step(zygote, root, words, 4)
    before = states(cfg)
    for path in before:
        path.write_bytes(b"")
    process = zygote.start(root, *words, first=HERE + "tell()")
    assert process.wait() == 1
    error = process.output().splitlines()[-1]
    assert error.startswith("error: ") and "no intact checkpoint" in error and all(path.name in error for path in before)
    assert "update" not in process.output() and states(cfg) == before


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(path):
    """Name -> a file that is no state."""
    import io

    saved = io.BytesIO()
    torch.save({"model": Payload(path)}, saved)
    deep = b"[" * 200_000
    return {"pickle": pickle.dumps(Payload(path)), "torch": saved.getvalue(), "deep": len(deep).to_bytes(8, "little") + deep}


def refused(process, *says):
    """It ended with one line on what is wrong, which holds these words."""
    assert process.wait() == 1, process.output()
    *_, error = process.output().splitlines()
    assert error.startswith("error: ") and all(word in error for word in says), process.output()
    assert "Traceback" not in process.output()


@pytest.mark.fault("F15")
@pytest.mark.parametrize("kind", ["pickle", "torch", "deep"])
def test_a_pickle_for_a_state_or_for_weights_is_refused_and_never_run(zygote, root, asked, calm, photos, kind):
    """The state has the right digest."""
    words, cfg = asked()
    content, folder = hostile(root / "run")[kind], Store("smoke").checkpoints(key(cfg))
    folder.mkdir(parents=True)
    (folder / f"00000003-{checkpoint.digest(content)}.safetensors").write_bytes(content)
    refused(zygote.start(root, *words), "no state of a run", f"delete {folder}")
    shutil.rmtree(root / "runs")
    shutil.copytree(calm / "runs", root / "runs")
    weights = Store("smoke").path(key(cfg), ".safetensors")
    weights.write_bytes(content)
    refused(zygote.start(root, "measure", key(cfg), "--profile", "smoke", "--data-dir", str(photos)), str(weights), "train the")
    assert not (root / "run").exists()


@pytest.mark.fault("F16")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda about: about | {"lr": 0.5, "mask_rate": 0.25}, "another lr, mask_rate;"),
        (lambda about: about | {"schema": 1}, "another schema;"),
        (lambda about: {name: about[name] for name in about if name != "schema"}, "another schema;"),
        (lambda about: about | {"palette": "p" * 16, "data": "d" * 16}, "another data, palette;"),
        (lambda about: about | {"learned": True}, "another learned;"),
        (lambda about: 1, "no state of a run"),
    ],
    ids=["settings", "older schema", "no schema", "data", "unknown field", "nothing"],
)
def test_a_state_of_another_run_or_version_is_refused_naming_what_differs(zygote, root, asked, change, named):
    words, cfg = asked()
    killed_after_step(zygote, root, words, 2)
    path = states(cfg)[0]
    found = path.read_bytes()
    length = int.from_bytes(found[:8], "little")
    header = json.loads(found[8 : 8 + length])
    header["__metadata__"]["about"] = json.dumps(change(json.loads(header["__metadata__"]["about"])))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    found = len(text).to_bytes(8, "little") + text + found[8 + length :]
    path.unlink()
    (path.parent / f"00000002-{checkpoint.digest(found)}.safetensors").write_bytes(found)
    process = zygote.start(root, *words, first=HERE + "tell()")
    refused(process, named, f"delete {path.parent}")
    assert "update" not in process.output()


# ---- ended by a signal --------------------------------------------------------------------------------------------------

# Where a run is ended: words -> (call of a function, what `biasnb status` then says of it).
PLACES = {
    "lock": ("'files.FileLock.acquire', {}", "missing"),
    "data decoding": ("'data.read_image', {}, 40", "missing"),
    "palette fit": ("'palette.np.argsort', {}", "missing"),
    "first batch": ("'train.augmentation', {}", "missing"),
    "save": ("'files.os.replace', {}, 2, on='checkpoints'", "goes on from step 1"),
    "last save": ("'files.os.replace', {}, 6, on='checkpoints'", "goes on from step 5"),
    "evaluation": ("'run.evaluate', {}, 2", "goes on from step 6"),
    "probe": ("'evaluation.knn', {}", "goes on from step 6"),
    "weights": ("'files.os.replace', {}, 7, on='.safetensors.'", "goes on from step 6"),
    "arrays": ("'files.os.replace', {}, on='.npz.', call=2", "goes on from step 6"),
    "record": ("'files.os.replace', {}, on='.json.'", "goes on from step 6"),
    "baselines": ("'run.probe_pixels', {}", "done"),
    "random init": ("'evaluation.knn', {}, 3", "done"),
}

REST = [place for place in PLACES if place not in ("palette fit", "save", "probe", "record")]


@pytest.mark.fault("F6")
@pytest.mark.parametrize(
    ("place", "way"),
    # without a handler every signal ends a process as SIGKILL does
    [
        *itertools.product(PLACES, ("SIGKILL",)),
        *itertools.product(("palette fit", "save", "probe", "record"), ("interrupted cell",)),
        *itertools.product(("save",), ("SIGTERM", "SIGINT")),
        *(pytest.param(place, "interrupted cell", marks=pytest.mark.campaign) for place in REST),
        *(pytest.param("lock", way, marks=pytest.mark.campaign) for way in ("SIGTERM", "SIGINT")),
    ],
)
def test_a_signal_ends_a_run_anywhere_and_it_goes_on_to_an_equal_result(zygote, root, asked, calm, place, way):
    words, cfg = asked()
    store, (call, state) = Store("smoke"), PLACES[place]
    first = EVERY_STEP + f"at({call.format(f'lambda: receive({ENDS[way][0]})')})"
    in_cell = {"then": f"cell({cfg.data_dir!r})"} if way == "interrupted cell" else {}
    process = zygote.start(root, *([] if in_cell else words), first=first, **in_cell)
    assert process.wait(LEAVE) == ENDS[way][1] and "\nat " in f"\n{process.output()}", process.output()
    assert ("KeyboardInterrupt" in process.output()) == bool(in_cell)
    assert state in store.status(key(cfg))
    assert not any(store.busy(name) for name in (key(cfg), baseline_key(cfg), init_key(cfg)))
    assert not list(store.folder.glob("*.error"))
    finished_as(calm, zygote.start(root, *words))


@pytest.mark.fault("F6")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_call_that_never_returns_does_not_keep_a_process(zygote, root, asked, calm, number):
    words = asked()[0]
    for place in ("train.augmentation", "run.evaluate"):
        process = zygote.start(root, *words, first=EVERY_STEP + f"at({place!r}, block_for_ever)").until("at ")
        process.kill(number)
        assert process.wait(LEAVE) == -number, process.output()
    finished_as(calm, zygote.start(root, *words))


@pytest.mark.fault("F7")
@pytest.mark.parametrize(("second", "code"), [(2, 70), (9, -9), (15, -15)])
def test_a_second_signal_while_a_state_is_written_spoils_nothing(zygote, root, asked, calm, second, code):
    """The first interrupts the cell of a notebook; the second comes while Python leaves the block that writes the file."""
    words, cfg = asked()
    first = EVERY_STEP + "at('files.os.replace', lambda: receive(signal.SIGINT), 3, on='checkpoints')\n"
    first += f"at('files.Path.unlink', lambda: receive({second}), on='/.00000003-')"
    process = zygote.start(root, first=first, then=f"cell({cfg.data_dir!r})")
    assert process.wait(LEAVE) == code, process.output()
    assert process.output().count("at files.") == 2 and int(states(cfg)[0].name[:8]) == 2
    finished_as(calm, zygote.start(root, *words))


def test_an_interrupted_cell_leaves_a_run_that_the_next_cell_of_the_same_process_finishes(zygote, root, asked, calm):
    cfg = asked()[1]
    then = EVERY_STEP + (
        "at('train.augmentation', lambda: receive(signal.SIGINT), 4)\n"
        f"try: cell({cfg.data_dir!r})\n"
        f"except KeyboardInterrupt: print(Store('smoke').status({key(cfg)!r}))\n"
        f"tell(); cell({cfg.data_dir!r})"
    )
    process = zygote.start(root, then=then)
    finished_as(calm, process)
    assert "('interrupted', 'goes on from step 3')" in process.output() and "from step 3\n" in process.output()


# ---- a full disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F10")
@pytest.mark.parametrize(("place", "named"), [("train.augmentation", "checkpoints"), ("run.save_weights", ".safetensors")])
def test_a_full_disk_is_named_and_harms_nothing_that_was_there(zygote, root, asked, calm, place, named):
    words, cfg = asked()
    earlier = Store("smoke").save(run_record("mixer", 2, 7))
    path = Store("smoke").path(earlier["key"])
    before = path.read_bytes()
    process = zygote.start(root, *words, first=EVERY_STEP + f"at({place!r}, lambda: small_files(4096), 1)")
    refused(process, named, "cannot be written (File too large)")
    assert Store("smoke").status(key(cfg))[0] == "failed" and path.read_bytes() == before
    assert not list(root.rglob("*.part"))
    path.unlink()
    finished_as(calm, zygote.start(root, *words))


# ---- no result ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F11")
@pytest.mark.parametrize("how", ["NaN loss", "infinite gradient"])
def test_what_is_not_finite_stops_before_the_update_and_is_recorded(zygote, root, asked, how):
    words, cfg = asked()
    for tries in (3, 0):
        process = zygote.start(root, *words, first=EVERY_STEP + f"tell(); spoil_loss(4, {how!r})")
        refused(process, "diverged at step 3", "lower lr")
        assert process.output().count("update") == tries
        record = Store("smoke").load(key(cfg))
        assert (record["status"], record["steps"], len(record["history"])) == ("diverged", 3, 3)
        assert record["last_loss"] == record["history"][-1]["loss"] and math.isfinite(record["last_loss"])
        assert Store("smoke").status(key(cfg)) == ("diverged", "")
        assert not left_over(root)


def test_too_little_memory_is_one_line_that_says_what_to_lower(zygote, root, asked):
    words, cfg = asked(mixer="igpt", image_size=128, input="rgb", batch=32)
    first = HERE + "full = lambda: resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms,) * 2)\n"
    first += "at('train.augmentation', full)"
    refused(zygote.start(root, *words, first=first), "batch: 32 images of 4096 tokens at width 8 do not fit into memory")
    state, why = Store("smoke").status(key(cfg))
    assert state == "failed" and "do not fit into memory" in why


def test_what_goes_wrong_with_baselines_leaves_a_trace(zygote, root, asked):
    words, cfg = asked()
    first = HERE + "def odd(data): raise ValueError('odd')\nimport biasnb.training.run as r; r.probe_pixels = odd"
    assert zygote.start(root, *words, first=first).wait() != 0
    store = Store("smoke")
    assert store.status(baseline_key(cfg)) == ("failed", "ValueError: odd") and store.status(key(cfg))[0] == "done"
    assert zygote.start(root, *words).wait() == 0
    assert store.status(baseline_key(cfg)) == ("done", "") and not left_over(root)


# ---- one run, several processes ---------------------------------------------------------------------------------------------


def files_of(cfg):
    """The names of the files that one run leaves, with its baselines and its random init."""
    records = {f"{name}.json" for name in (key(cfg), baseline_key(cfg), init_key(cfg))}
    return records | {f"{key(cfg)}.npz", f"{key(cfg)}.safetensors"}


def at_once(zygote, root, words, count, first=""):
    """Start processes that are let go in the same moment; returns them when all have ended well."""
    wait = f"import pathlib, time\nwhile not pathlib.Path('{root}/go').exists(): time.sleep(0.0005)\n"
    processes = [zygote.start(root, *words, first=wait + HERE + f"tell()\n{first}") for _ in range(count)]
    (root / "go").touch()
    for process in processes:
        assert process.wait() == 0, process.output()
    return processes


def updates(processes):
    return sum(process.output().count("update") for process in processes)


@pytest.mark.fault("F12")
def test_of_two_processes_that_start_one_run_one_trains_and_the_other_waits_for_its_record(
    zygote, tmp_path, asked, calm, campaign
):
    """Let go in the same moment, again and again."""
    words, cfg = asked(steps=2)
    for i in range(20 if campaign else 3):
        root = tmp_path / str(i)
        shutil.copytree(calm / "runs", root / "runs", ignore=shutil.ignore_patterns(f"{key(asked()[1])}*", "locks"))
        both = at_once(zygote, root, words, 2)
        assert updates(both) == 2
        assert set(outcome(root)) == files_of(cfg)
        assert not left_over(root)
        if i:
            assert outcome(root) == outcome(tmp_path / "0")
            shutil.rmtree(root)


@pytest.mark.fault("F12")
def test_without_locks_two_processes_do_the_same_work_and_leave_the_same_files(zygote, tmp_path, asked, calm, campaign):
    """Also their states, which are in one folder, come from both."""
    words, _ = asked()
    twice = 0
    for i in range(15 if campaign else 3):
        root = tmp_path / str(i)
        both = at_once(zygote, root, words, 2, "no_locks(); save_every_step()")
        twice += updates(both) > 6
        assert 6 <= updates(both) <= 12 and outcome(root) == outcome(calm)
        assert not left_over(root)
    assert twice or not campaign


@pytest.mark.fault("F14")
def test_a_task_whose_worker_was_killed_and_that_is_started_twice_leaves_one_record(zygote, root, asked, calm):
    """As a scheduler does that has lost sight of a worker."""
    words, _ = asked()
    killed_after_step(zygote, root, words, 4)
    both = at_once(zygote, root, words, 2)
    assert updates(both) == 2 and outcome(root) == outcome(calm) and not left_over(root)


@pytest.mark.fault("F12")
def test_a_killed_owner_is_followed_at_once(zygote, root, asked, calm):
    """By whoever waits already: the system has released its lock."""
    words, cfg = asked()
    store = Store("smoke")
    owner = zygote.start(root, *words, first=EVERY_STEP + "at('run.evaluate', lambda: time.sleep(60))").until("at ")
    other = zygote.start(root, *words).until("waiting")
    owner.kill()
    owner.wait()
    finished_as(calm, other)
    assert store.status(key(cfg)) == ("done", "")


@pytest.mark.fault("F12")
def test_no_two_processes_are_ever_inside_one_lock(zygote, root):
    """Four take it in turn as fast as they can; one of them dies inside now and then, and now and then the file is removed, as
    that of a run that is done is."""
    then = HERE + (
        f"inside, rng = '{root}/inside', random.Random(os.getpid())\n"
        "for _ in range(40):\n"
        "    with Store('smoke').lock('abc'):\n"
        "        os.mkdir(inside); os.rmdir(inside)\n"
        "        if rng.random() < 0.1: Store('smoke').forget('abc')\n"
        "        elif rng.random() < 0.02: killed()\n"
    )
    all_four = [zygote.start(root, then=then) for _ in range(4)]
    assert {process.wait() for process in all_four} <= {0, -signal.SIGKILL}, [process.output() for process in all_four]
