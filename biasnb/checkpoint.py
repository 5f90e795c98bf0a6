"""Nothing is lost: states of a training on disk, exact resume, and signals that wait for the end of a step."""

import hashlib
import json
import shutil
import signal
import threading
import time

from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from .store import StoreError, write_atomic

CHECKPOINT_SECONDS = 15


class Interrupts:
    """Inside the loop SIGINT and SIGTERM are kept until the step is complete; `stop` then acts on them."""

    def __enter__(self):
        self.caught, self.previous = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number, frame):
        self.caught = number

    def stop(self):
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught:
            raise SystemExit(128 + self.caught)

    def __exit__(self, kind, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.stop()


class Checkpoints:
    """The last two states of a run as `<step>-<sha256>.safetensors`: network, optimiser, rows so far.

    A state is written under its final name at once or not at all, and read only if its content has its digest.
    """

    def __init__(self, folder, about, seconds=CHECKPOINT_SECONDS, beat=None):
        self.folder, self.about, self.seconds, self.beat = folder, about, seconds, beat
        self.saved = time.perf_counter()

    def due(self, now):
        return now - self.saved >= self.seconds

    def save(self, step, model, solver, log):
        tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
        for i, state in solver.state_dict()["state"].items():
            tensors |= {f"solver.{i}.{name}": value for name, value in state.items()}
        content = save_tensors({n: t.contiguous() for n, t in tensors.items()},
                               {"step": str(step), "log": json.dumps(log), "about": json.dumps(self.about)})  # fmt: skip
        name = f"{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        write_atomic(self.folder / name, content)
        for old in self.found()[2:]:
            old.unlink()
        if self.beat:
            self.beat()
        self.saved = time.perf_counter()

    def found(self):
        """Checkpoint files, newest first."""
        return sorted(self.folder.glob("*-*.safetensors"), reverse=True)

    def resume(self, model, solver):
        """Load the newest intact state; returns (step, log), or None if there is none to go on from.

        Raises StoreError if there are states but none is intact, or if they are of other data or settings."""
        damaged = []
        for path in self.found():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.split("-")[1]:
                damaged.append(path.name)
                print(f"{path.name}: does not match its digest; trying the checkpoint before it", flush=True)
                continue
            with safe_open(path, "pt") as file:
                meta = file.metadata()
            about = json.loads(meta["about"])
            if about != self.about:
                other = sorted(name for name in about | self.about if about.get(name) != self.about.get(name))
                raise StoreError(f"{path}: made with another {', '.join(other)}; delete {self.folder} to start anew")
            tensors = load_tensors(content)
            model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
            state = solver.state_dict()
            state["state"] = {}
            for name, tensor in tensors.items():
                if name.startswith("solver."):
                    _, i, part = name.split(".")
                    state["state"].setdefault(int(i), {})[part] = tensor
            solver.load_state_dict(state)
            return int(meta["step"]), json.loads(meta["log"])
        if damaged:
            raise StoreError(f"{self.folder}: no intact checkpoint ({', '.join(damaged)}); delete the folder to start anew")

    def clear(self):
        """Delete the states and what a killed writer left."""
        shutil.rmtree(self.folder, ignore_errors=True)
