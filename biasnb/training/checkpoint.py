"""Files of a run in training: checkpoints from which it resumes exactly, and its progress."""

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

SCHEMA = 3  # version of the format of a checkpoint
KEPT = 2  # checkpoints per run
NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})\.safetensors")
SHARE = 0.05  # largest fraction of the training time spent on writing checkpoints


class Checkpoints:
    """The last two checkpoints of a run, `<step>-<digest>.safetensors`: network, optimizer and log.

    A checkpoint is written atomically and is read only if its content matches the digest in its name. `about` describes the
    run; checkpoints of another run are refused."""

    def __init__(self, folder, about):
        self.folder, self.about = folder, {"schema": SCHEMA, **about}

    def save(self, step, model, optimizer, log):
        """Write a checkpoint after `step` steps. Raises StoreError; earlier checkpoints are then kept."""
        tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        header = {"step": str(step), "log": json.dumps(log), "about": json.dumps(self.about)}
        content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
        write_atomic(self.folder / f"{step:08d}-{digest(content)}.safetensors", content)
        for old in self.found()[KEPT:]:
            old.unlink(missing_ok=True)

    def found(self):
        """Return the files of checkpoints, newest first."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.folder / name for name in sorted(names, reverse=True) if NAME.fullmatch(name)]

    def resume(self, model, optimizer):
        """Load the newest intact checkpoint. Returns (step, log), or None if there is no checkpoint.

        Raises StoreError if no checkpoint is intact, or if it belongs to other data, other settings or an older version."""
        damaged = []
        for path in self.found():
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # another process that trains the same run has replaced it
                continue
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
            if digest(content) != NAME.fullmatch(path.name)[2]:
                print(f"{path.name}: does not match its digest; trying the checkpoint before it", flush=True)
                damaged.append(path)
                continue
            found = self._load(path, content, model, optimizer)
            for spoilt in damaged:
                spoilt.unlink(missing_ok=True)  # otherwise it would count as one of the two that are kept
            return found
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise StoreError(f"{self.folder}: no intact checkpoint ({names}); delete the folder to start anew")
        return None

    def _load(self, path, content, model, optimizer):
        """Load a checkpoint into a network and its optimizer and return (step, log). Raises StoreError."""
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
    """Return the first 16 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def put_back(tensors, model, optimizer):
    """Load the tensors of a checkpoint into a network and its optimizer."""
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, part = name.split(".")
            state["state"].setdefault(int(i), {})[part] = tensor
    optimizer.load_state_dict(state)


class Interval:
    """The time between checkpoints: BIASNB_CHECKPOINT_SECONDS, or longer if writing would take more than SHARE of the time,
    because there are many networks or the disk is slow. Raises ConfigError if the variable is not a number."""

    def __init__(self):
        self.seconds, self.last, self.cost = seconds_between(), time.perf_counter(), 0.0

    def due(self):
        return time.perf_counter() - self.last >= max(self.seconds, self.cost / SHARE)

    @contextlib.contextmanager
    def saving(self):
        """Measure the time of the block, which writes the checkpoints of all networks."""
        began = time.perf_counter()
        yield
        self.last = time.perf_counter()
        self.cost = self.last - began


def seconds_between():
    """Return BIASNB_CHECKPOINT_SECONDS, the seconds between two checkpoints. Raises ConfigError."""
    text = os.environ.get("BIASNB_CHECKPOINT_SECONDS", "15")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"BIASNB_CHECKPOINT_SECONDS: {text!r} is not a number of seconds; e.g. 15") from None


class Monitor:
    """Progress of a run for other processes: {step, steps, loss, seconds_left} as JSON in `path`, once a second, and events for
    TensorBoard in `folder` if requested. Errors of writing do not stop the training."""

    def __init__(self, path, folder):
        self.path, self.folder, self.events, self.first = path, folder if tensorboard() else None, None, None
        self.close()  # removes the file of a run that was killed

    def __call__(self, step, steps, loss):
        """Write the progress. `loss` is the last known loss, not finite if there is none."""
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
        """Add a row of the history of the run (see `loop.pretrain`) to the events."""
        if self.folder:
            with contextlib.suppress(OSError):
                self._add(row)

    def _add(self, row):
        if not self.events:
            from torch.utils.tensorboard import SummaryWriter

            # purge the events that a killed run wrote after its last checkpoint
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
    """Return whether events for TensorBoard are requested by `--tensorboard` or BIASNB_TENSORBOARD=1. Raises BiasnbError if
    the package is missing."""
    if os.environ.get("BIASNB_TENSORBOARD", "0") in ("", "0"):
        return False
    if not find_spec("tensorboard"):
        raise BiasnbError("tensorboard: is not installed; pip install tensorboard, or go on without")
    return True
