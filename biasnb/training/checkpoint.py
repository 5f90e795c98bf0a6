"""What a run leaves on disk while it trains: states to go on from exactly, and how far it is."""

import contextlib
import hashlib
import json
import math
import os
import re
import time
from importlib.util import find_spec

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..config import BiasnbError, ConfigError
from ..records.files import StoreError, to_json, write_atomic

SCHEMA = 3  # of a state
KEPT = 2  # states of a run
NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})\.safetensors")
SHARE = 0.05  # of the time of a training that its states may take


class Checkpoints:
    """The last two states of a run as `<step>-<digest>.safetensors`: network, optimizer, rows so far.

    A state is written under its final name at once or not at all, and read only if its content has its digest. `about` is
    what the run is: a state of another is refused."""

    def __init__(self, folder, about):
        self.folder, self.about = folder, {"schema": SCHEMA, **about}

    def save(self, step, model, optimizer, log):
        """Write a state after so many steps. Raises StoreError; the states before it stay then."""
        tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        header = {"step": str(step), "log": json.dumps(log), "about": json.dumps(self.about)}
        content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
        write_atomic(self.folder / f"{step:08d}-{digest(content)}.safetensors", content)
        for old in self.found()[KEPT:]:
            old.unlink(missing_ok=True)

    def found(self):
        """Files of states, newest first."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.folder / name for name in sorted(names, reverse=True) if NAME.fullmatch(name)]

    def resume(self, model, optimizer):
        """Load the newest intact state; returns (step, log), or None if there is none to go on from.

        Raises StoreError if there are states but none is intact, or if they are of other data, settings or an older
        version."""
        damaged = []
        for path in self.found():
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # another process that trains the same run has just written newer ones
                continue
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
            if digest(content) != NAME.fullmatch(path.name)[2]:
                print(f"{path.name}: does not match its digest; trying the checkpoint before it", flush=True)
                damaged.append(path)
                continue
            found = self._load(path, content, model, optimizer)
            for spoilt in damaged:
                spoilt.unlink(missing_ok=True)  # or one of the two that are kept would be this
            return found
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise StoreError(f"{self.folder}: no intact checkpoint ({names}); delete the folder to start anew")
        return None

    def _load(self, path, content, model, optimizer):
        """(step, log) of a state, whose tensors are put into a network and its optimizer. Raises StoreError."""
        anew = f"delete {self.folder} to start anew"
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            about, step, log = dict(json.loads(header["about"])), int(header["step"]), json.loads(header["log"])
            tensors = load_tensors(content)
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise StoreError(f"{path}: no state of a run ({type(error).__name__}); {anew}") from None
        if about != self.about:
            other = sorted(name for name in about | self.about if about.get(name) != self.about.get(name))
            raise StoreError(f"{path}: made with another {', '.join(other)}; {anew}")
        try:
            put_back(tensors, model, optimizer)
        except (RuntimeError, ValueError, KeyError):
            raise StoreError(f"{path}: state of another network; {anew}") from None
        return step, log


def digest(content):
    """First 16 hexadecimal digits of the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def put_back(tensors, model, optimizer):
    """Put the tensors of a state into a network and its optimizer."""
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, part = name.split(".")
            state["state"].setdefault(int(i), {})[part] = tensor
    optimizer.load_state_dict(state)


class Interval:
    """When the next states of a program are due: BIASNB_CHECKPOINT_SECONDS after the last, or so much later that writing them
    takes a SHARE of the time at most, however many networks there are and however slow the disk is.

    Raises ConfigError if the variable is no number."""

    def __init__(self):
        self.seconds, self.last, self.cost = seconds_between(), time.perf_counter(), 0.0

    def due(self):
        return time.perf_counter() - self.last >= max(self.seconds, self.cost / SHARE)

    @contextlib.contextmanager
    def saving(self):
        """The block in which the states of all networks are written."""
        began = time.perf_counter()
        yield
        self.last = time.perf_counter()
        self.cost = self.last - began


def seconds_between():
    """Seconds between two states, BIASNB_CHECKPOINT_SECONDS. Raises ConfigError."""
    text = os.environ.get("BIASNB_CHECKPOINT_SECONDS", "15")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"BIASNB_CHECKPOINT_SECONDS: {text!r} is not a number of seconds; e.g. 15") from None


class Monitor:
    """What others can see of a run while it trains: {step, steps, loss, seconds_left} as JSON in `path`, once a second, and
    TensorBoard's events in `folder` if they are asked for. Nothing that goes wrong while a run trains stops it."""

    def __init__(self, path, folder):
        self.path, self.folder, self.events, self.first = path, folder if tensorboard() else None, None, None
        self.close()  # what a killed run left

    def __call__(self, step, steps, loss):
        """`loss`: the last that is known; not finite if none is."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.start, self.written = step, now, now
        elif now - self.written >= 1:
            self.written = now
            left = (steps - step) * (now - self.start) / (step - self.first)
            seen = {"step": step, "steps": steps, "loss": loss if math.isfinite(loss) else None, "seconds_left": left}
            with contextlib.suppress(StoreError, OSError):
                write_atomic(self.path, to_json(seen))

    def row(self, row):
        """A row of a run's history, see `loop.pretrain`."""
        if self.folder:
            with contextlib.suppress(OSError):
                self._add(row)

    def _add(self, row):
        if not self.events:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run wrote after its last state is purged
            self.events = SummaryWriter(self.folder, purge_step=row["step"])
        for name in row.keys() - {"step"}:
            self.events.add_scalar(name, row[name], row["step"])

    def close(self):
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self.events:
            with contextlib.suppress(OSError):
                self.events.close()


def tensorboard():
    """Whether events for TensorBoard are asked for, by `--tensorboard` or BIASNB_TENSORBOARD=1. Raises BiasnbError if its
    package is missing."""
    if os.environ.get("BIASNB_TENSORBOARD", "0") in ("", "0"):
        return False
    if not find_spec("tensorboard"):
        raise BiasnbError("tensorboard: is not installed; pip install tensorboard, or go on without")
    return True
