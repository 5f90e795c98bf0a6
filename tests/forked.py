"""Real processes in a tenth of a second: one that has imported torch and the package forks another for each request.

A test uses the fixture `zygote`: `zygote.start(root, "run", "--profile", "smoke", first="...Python...").wait()`."""

import contextlib
import functools
import gc
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing import Pipe, connection
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[1]
ENOUGH = 60  # seconds that a process may take on a busy machine
# Run in a process whose probe need not find its minimum, which is most of the time of a tiny run.
BRIEF = """
from biasnb.training import evaluation
evaluation.EVALUATIONS, evaluation.STEEP = 5, float("inf")
"""


def until(true, seconds=2 * ENOUGH):
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def environment(root, **more):
    """The variables of a process with the checkout `root` and one thread; one that is None is taken away."""
    own = {"BIASNB_ROOT": str(root), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in ({**os.environ, **own, **more}).items() if value is not None}


def workers_of(process):
    """The processes that train for a psutil.Process, below those that watch them."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def python(root, *words, **more):
    """What `python WORDS` said in such a process. The test fails if that did."""
    env = environment(root, **more)
    done = subprocess.run([sys.executable, *words], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pictures(folder, count=80):
    """Images of noise, 8 x 8, in four class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "abcd"[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return folder


# ---- on the side of the tests -------------------------------------------------------------------------------------


class Process:
    """A process that the zygote has forked: its number, its signals, what it wrote and how it ended."""

    def __init__(self, zygote, pid, written):
        self.zygote, self.pid, self.written = zygote, pid, written

    def wait(self, seconds=ENOUGH):
        """The exit code; negative for a signal. It is killed, and the test fails, if it takes longer."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still there after {seconds} s: {self.output()}")
            self.zygote.listen(0.1)
        return self.zygote.codes[self.pid]

    def running(self):
        self.zygote.listen(0)
        return self.pid not in self.zygote.codes

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def output(self):
        """stdout and stderr so far."""
        return self.written.read_text()

    def until(self, words, seconds=ENOUGH):
        """Wait until it has written these words."""
        end = time.monotonic() + seconds
        while words not in self.output():
            assert self.running() and time.monotonic() < end, f"never said {words!r}: {self.output()}"
            time.sleep(0.002)
        return self


class Zygote:
    """The process that forks. It ends, with all that it forked, when this one does."""

    def __init__(self):
        self.line, theirs = Pipe()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(CHECKOUT)}
        self.process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], env=env, stdin=subprocess.DEVNULL,
                                        pass_fds=[theirs.fileno()], start_new_session=True)  # fmt: skip
        theirs.close()
        self.codes, self.begun, self.count = {}, None, 0

    def start(self, root, *words, first="", then="", env=None):
        """Fork a process for the checkout `root`, in which the Python code `first` runs, then the command `words` if there is
        one, then the code `then`."""
        root.mkdir(parents=True, exist_ok=True)
        self.count += 1
        written = root / f"output-{self.count}.txt"
        written.touch()
        self.line.send((str(root), words, first, then, {"BIASNB_ROOT": str(root), **(env or {})}, str(written)))
        self.begun = None
        while self.begun is None:
            self.listen(ENOUGH)
        return Process(self, self.begun, written)

    def listen(self, seconds):
        """Note what it says within that time, if anything."""
        if self.line.poll(seconds):
            what, pid, code = self.line.recv()
            if what == "begun":
                self.begun = pid
                self.codes.pop(pid, None)  # a number may be used again
            else:
                self.codes[pid] = code


@functools.cache
def only():
    return Zygote()


@pytest.fixture(scope="session")
def zygote():
    return only()


# ---- the zygote ---------------------------------------------------------------------------------------------------


def live_in(root):
    """As the fixture `root` does."""
    os.environ["BIASNB_ROOT"] = str(root)


def warm():
    """Do once what a run does, so that no process has to import or start anything."""
    import biasnb
    from biasnb.config import configure
    from biasnb.data import datasets as data
    from biasnb.records import keys
    from biasnb.records.store import Store
    from biasnb.training import run

    for module in pkgutil.walk_packages(biasnb.__path__, "biasnb."):
        importlib.import_module(module.name)
    exec(BRIEF)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        live_in(folder)
        fields = {"dataset": "folder", "data_dir": str(pictures(Path(folder) / "pictures")), "labelled": 0, "device": "cpu"}
        for more in ({"input": "palette", "target": "palette"}, {"mixer": "igpt", "pretext": "ar", "augment": "crop"}):
            run.run(configure("smoke", **fields, **more), Store("smoke"))
        run.baseline(configure("smoke", **fields), Store("smoke"))
    for module in (data, keys):
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()
    gc.collect()
    gc.freeze()


def serve(line):
    """Fork as asked and say how what was forked ended, until nobody asks any more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    living = set()
    try:
        while True:
            ready = connection.wait([line, reader])
            if reader in ready:
                os.read(reader, 1000)
                for pid in list(living):
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        living.discard(pid)
                        line.send(("ended", pid, os.waitstatus_to_exitcode(status)))
            if line in ready:
                request = line.recv()
                pid = os.fork()
                if not pid:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.set_wakeup_fd(-1)
                    for fd in (reader, writer, line.fileno()):
                        os.close(fd)
                    os._exit(live(*request))
                living.add(pid)
                line.send(("begun", pid, None))
    except (EOFError, OSError):
        for pid in living:
            os.kill(pid, signal.SIGKILL)


def live(root, words, first, then, env, written):
    """What a forked process does; returns its exit code."""
    from biasnb.suite.commands import main

    file = os.open(written, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    os.environ.update(env)
    live_in(root)
    names = {"__name__": "forked"}
    try:
        exec(first, names)
        sys.argv = ["biasnb", *words]
        code = main() if words else 0
        exec(then, names)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    warm()
    serve(connection.Connection(int(sys.argv[1])))
