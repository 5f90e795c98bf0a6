"""Nothing is lost: states of a training on disk, and exact resume from them."""

import hashlib
import json
import os
import re
import shutil
import time

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..config import ConfigError
from ..records.files import StoreError, sweep, write_atomic

SCHEMA = 1  # of a state
NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})\.safetensors")


def seconds_between():
    """Seconds between the states of a run, BIASNB_CHECKPOINT_SECONDS. Raises ConfigError."""
    text = os.environ.get("BIASNB_CHECKPOINT_SECONDS", "15")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"BIASNB_CHECKPOINT_SECONDS: {text!r} is not a number of seconds; e.g. 15") from None


class Checkpoints:
    """The last two states of a run as `<step>-<sha256>.safetensors`: network, optimizer, rows so far.

    A state is written under its final name at once or not at all, and read only if its content has its digest. `allowed`
    is called before a state is written and raises if this process has lost the run."""

    def __init__(self, folder, about, allowed=None, seconds=None):
        self.folder, self.about, self.allowed = folder, {"schema": SCHEMA, **about}, allowed
        self.seconds = seconds_between() if seconds is None else seconds
        self.saved = time.perf_counter()

    def due(self, now):
        return now - self.saved >= self.seconds

    def save(self, step, model, optimizer, log):
        """Raises StoreError; the states before it stay then."""
        if self.allowed:
            self.allowed()
        tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        content = save_tensors({n: t.contiguous() for n, t in tensors.items()},
                               {"step": str(step), "log": json.dumps(log), "about": json.dumps(self.about)})  # fmt: skip
        write_atomic(self.folder / f"{step:08d}-{digest(content)}.safetensors", content)
        for old in self.found()[2:]:
            old.unlink()
        self.saved = time.perf_counter()

    def found(self):
        """Files of states, newest first."""
        return sorted((path for path in self.folder.glob("*.safetensors") if NAME.fullmatch(path.name)), reverse=True)

    def resume(self, model, optimizer):
        """Load the newest intact state; returns (step, log), or None if there is none to go on from.

        Raises StoreError if there are states but none is intact, or if they are of other data, settings or an older
        version."""
        sweep(self.folder)
        damaged = []
        for path in self.found():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
            if digest(content) != NAME.fullmatch(path.name)[2]:
                damaged.append(path.name)
                print(f"{path.name}: does not match its digest; trying the checkpoint before it", flush=True)
                continue
            try:
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
                about, step, log = dict(json.loads(header["about"])), int(header["step"]), json.loads(header["log"])
                tensors = load_tensors(content)
            except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                raise StoreError(
                    f"{path}: no state of a run ({type(error).__name__}); delete {self.folder} to start anew"
                ) from None
            if about != self.about:
                other = sorted(name for name in about | self.about if about.get(name) != self.about.get(name))
                raise StoreError(f"{path}: made with another {', '.join(other)}; delete {self.folder} to start anew")
            try:
                fill(model, optimizer, tensors)
            except (RuntimeError, ValueError, KeyError):
                raise StoreError(f"{path}: state of another network; delete {self.folder} to start anew") from None
            for name in damaged:
                (self.folder / name).unlink(missing_ok=True)  # or one of two would be kept for it
            return step, log
        if damaged:
            raise StoreError(f"{self.folder}: no intact checkpoint ({', '.join(damaged)}); delete the folder to start anew")

    def clear(self):
        """Delete the states and what a killed writer left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def fill(model, optimizer, tensors):
    """Put the tensors of a state into a network and its optimizer."""
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, part = name.split(".")
            state["state"].setdefault(int(i), {})[part] = tensor
    optimizer.load_state_dict(state)
