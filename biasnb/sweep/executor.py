"""Training of missing runs with Dask. A task is one run (on a GPU all seeds of one setting) and is named by the key of the run.

BIASNB_SCHEDULER names the scheduler by an address or a scheduler file; by default a local one is started, which ends with this
process. A worker trains in its own folder and returns the files of the run to the client, so workers need no shared disk."""

import contextlib
import logging
import os
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cloudpickle

from ..config import BiasnbError, Config, describe
from ..operators import MIXERS
from ..records import keys, places
from ..records.files import StoreError, write_atomic
from ..records.progress import Progress
from ..records.provenance import bf16_instructions
from ..records.store import Store

SCHEDULER = "BIASNB_SCHEDULER"  # address, or path of a scheduler file
SUFFIXES = (".safetensors", ".npz", ".json")
DEATHS = 20  # workers that may die on a task before it fails
REACH = "30s"  # timeout of the connection to a scheduler
LOOK = 0.2  # seconds between checks for finished tasks
BF16_FACTOR = 10  # time of a bf16 step relative to fp32 on a processor without bf16 instructions; docs/performance.md
GPU, CPU = "GPU", "CPU"  # Dask resources; a worker has one GPU or none, and CPU beside GPUs if it has none


@dataclass(frozen=True)
class Task:
    """The work of one worker: a baseline, an evaluation at random init, a run, or runs that differ only in the seed."""

    kind: str  # "baseline", "init" or "run"
    keys: tuple  # keys of the records
    configs: tuple

    @property
    def name(self):
        if self.kind == "baseline":
            return f"baselines of {self.configs[0].dataset}"
        if self.kind == "init":
            return f"random init of {describe(self.configs[0])}"
        return describe(self.configs[0]) + (f" and {len(self.configs) - 1} more" if len(self.configs) > 1 else "")

    @property
    def key(self):
        """The Dask key of the task, built from the keys of the records. Dask runs a key only once, and orders tasks whose keys
        share a prefix by priority."""
        return "-".join(("record", *self.keys))

    @property
    def cost(self):
        """Approximate number of multiplications in training, by which the longest tasks are started first."""
        cfg = self.configs[0]
        per_token = cfg.width * cfg.mlp_ratio * 2 + (0 if MIXERS[cfg.mixer].local else cfg.grid**2)
        steps = cfg.steps if self.kind == "run" and cfg.pretext != "none" else 1
        return len(self.configs) * (steps * cfg.batch + 10_000) * cfg.grid**2 * cfg.depth * cfg.width * per_token


# ---- the cluster ----------------------------------------------------------------------------------------------------


def cores():
    """Return the number of cores that this process may use, within the limits of its control group."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def gpus(configs):
    """Return the GPUs that these runs may use, as names for CUDA_VISIBLE_DEVICES."""
    if all(cfg.device == "cpu" for cfg in configs):
        return []
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",")[:count] if listed else [str(i) for i in range(count)]


def slow_bf16(configs):
    """Return a warning that bf16 is slow on this processor, or None if it has bf16 instructions or no run uses bf16."""
    count = sum(cfg.precision == "bf16" and cfg.pretext != "none" for cfg in configs)
    if not count or bf16_instructions() != []:
        return None
    what = f"precision: {count} runs in bf16 on a processor without instructions for it"
    return f"{what}: training takes about {BF16_FACTOR} times as long as in fp32"


@contextlib.contextmanager
def cluster(workers, devices=()):
    """Start a scheduler and single-threaded worker processes on this machine: `workers`, or one per GPU in `devices` and one
    without a GPU. Yields the address of the scheduler, which is reachable from this machine only. All end with the block and
    with this process."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.daemon": False,
        "distributed.comm.timeouts.connect": "60s",
    }
    environment = {
        "OMP_NUM_THREADS": "1",
        "BIASNB_ROOT": str(places.root()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(places.PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "host": "127.0.0.1", "silence_logs": logging.CRITICAL}
    specs = {}
    for i, device in enumerate([*devices, ""] if devices else [None] * workers):
        own = environment | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        resources = {} if device is None else {GPU if device else CPU: 1}
        specs[i] = {"cls": Nanny, "options": options | {"env": own, "resources": resources}}
    scheduler_options = {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0}
    scheduler = {"cls": Scheduler, "options": scheduler_options}
    with dask.config.set(settings), SpecCluster(specs, scheduler, name="biasnb", silence_logs=logging.CRITICAL) as found:
        yield found.scheduler_address


@contextlib.contextmanager
def client(workers, devices=()):
    """Yield a client of the scheduler that BIASNB_SCHEDULER names, or else of a new `cluster`. Raises BiasnbError if the
    scheduler cannot be reached."""
    from distributed import Client

    with contextlib.ExitStack() as stack:
        where = os.environ.get(SCHEDULER) or stack.enter_context(cluster(workers, devices))
        named = {"scheduler_file": where} if Path(where).is_file() else {"address": where}
        try:
            reached = stack.enter_context(Client(**named, timeout=REACH, set_as_default=False))
        except (OSError, TypeError, ValueError) as error:  # TypeError: TLS without certificates; ValueError: unknown protocol
            raise BiasnbError(f"scheduler: {where} cannot be reached ({error}); start it, or leave --scheduler out") from None
        yield reached


# ---- the client -----------------------------------------------------------------------------------------------------


def train(configs, store):
    """Compute the missing records, the longest runs first. Runs that another process trains are waited for, and a failed run
    does not stop the others. Raises BiasnbError naming the failed runs."""
    store.tidy()
    with keys.snapshot():
        wanted = {}
        for cfg in configs:
            wanted[keys.baseline_key(cfg)] = ("baseline", cfg)
            wanted[keys.init_key(cfg)] = ("init", cfg)
            wanted[keys.key(cfg)] = ("run", cfg)
        wanted = {key: task for key, task in wanted.items() if not store.has(key)}
        if not wanted:
            return
        say_what_is_read(cfg for _, cfg in wanted.values())
        devices = [] if os.environ.get(SCHEDULER) else gpus([cfg for _, cfg in wanted.values()])
        slow = slow_bf16([cfg for kind, cfg in wanted.values() if kind == "run"])
        if slow and not devices and not os.environ.get(SCHEDULER):
            print(slow, flush=True)
        with client(min(cores(), len(wanted)), devices) as dask:
            offered = {name for worker in dask.scheduler_info(n_workers=-1)["workers"].values() for name in worker["resources"]}
            tasks = grouped(wanted, by_seed=GPU in offered)
            failed = follow(dask, submitted(dask, tasks, store.profile, offered), store)
    if failed:
        named = "; ".join(failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise BiasnbError(f"{len(failed)} of {len(tasks)} records failed: {named}{more}")


def say_what_is_read(configs):
    """Print what is read from image folders, because workers only log it. An unreadable folder raises later, in its runs."""
    folders = {cfg.data_dir: cfg for cfg in configs if cfg.dataset == "folder"}
    for cfg in folders.values():
        from ..data.datasets import load

        with contextlib.suppress(BiasnbError):
            load(replace(cfg, pretext="none", images=0, labelled=0))


def grouped(wanted, by_seed):
    """Return {key: (kind, Config)} as a list of Tasks; with `by_seed`, runs that differ only in the seed form one Task."""
    groups = {}
    for key, (kind, cfg) in wanted.items():
        shared = replace(cfg, seed=0) if by_seed and kind == "run" else key
        groups.setdefault((kind, shared), []).append((key, cfg))
    tasks = []
    for (kind, _), members in groups.items():
        tasks.append(Task(kind, tuple(key for key, _ in members), tuple(cfg for _, cfg in members)))
    return tasks


def submitted(dask, tasks, profile, offered):
    """Submit tasks with their user-defined operators and return {future: Task}. The longest come first, because Dask assigns
    few tasks in the order of submission instead of queueing them. `offered` are the resources of the workers: networks need a
    GPU if there is one, and baselines, which use none, a worker without."""
    futures = {}
    for task in sorted(tasks, key=lambda task: -task.cost):
        defined = {}
        for cfg in task.configs:
            if version := keys.user_digest(cfg.mixer):
                defined[cfg.mixer] = MIXERS[cfg.mixer]._replace(version=version)
        future = dask.submit(
            work,
            task.kind,
            task.keys,
            [asdict(cfg) for cfg in task.configs],
            profile,
            packed(defined),
            key=task.key,
            priority=task.cost,
            resources={needed: 1} if (needed := CPU if task.kind == "baseline" else GPU) in offered else None,
        )
        futures[future] = task
    return futures


def packed(defined):
    """Serialise user-defined operators {name: entry} with all code of the user, so that a worker needs no files of the user and
    imports no module that a later task would reuse. None for {}. Raises BiasnbError if an operator cannot be serialised."""
    if not defined:
        return None
    modules = {module.__name__: module for mixer in defined for module in keys.modules_of_the_user(mixer)}
    for module in modules.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(defined)
    except Exception as error:
        raise BiasnbError(f"mixer: {', '.join(defined)}: cannot be sent to workers ({type(error).__name__}: {error})") from None
    finally:
        for module in modules.values():
            cloudpickle.unregister_pickle_by_value(module)


def follow(dask, futures, store):
    """Save the results of tasks and report progress until all tasks are done. Returns a line for every failed task."""
    pending, failed, began = set(futures), [], time.monotonic()
    total = sum(task.cost for task in futures.values())
    report = Progress("training", len(futures), unit="records")
    while pending:
        time.sleep(LOOK)
        for future in [future for future in pending if future.done()]:
            pending.remove(future)
            if why := saved(future, futures[future], store):
                failed.append(f"{futures[future].name}: {why}")
                print(f"error: {failed[-1]}", flush=True)
        if not report.due():  # finding the running tasks queries the scheduler and reads a file per run
            continue
        under_way = running(dask, futures, pending, store)
        spent = sum(task.cost for future, task in futures.items() if future not in pending)
        spent += sum(row["share"] * row["cost"] for row in under_way)
        left = (time.monotonic() - began) * (total - spent) / spent if spent else float("inf")
        rows = [{name: row[name] for name in ("run", "step", "loss", "left")} for row in under_way]
        note = "; ".join(f"{row['run']} {row['step']}".strip() for row in rows)
        report(len(futures) - len(pending), note, rows, left)
    report.finish(f"{len(futures) - len(failed)} records done" + (f", {len(failed)} failed" if failed else ""))
    return failed


def saved(future, task, store):
    """Save the files that a finished task returned. Returns the reason if it failed, else None."""
    if future.status == "error":
        error = future.exception()
        died = type(error).__name__ == "KilledWorker"
        return "its worker died repeatedly (out of memory?); lower batch" if died else f"{type(error).__name__}: {error}"
    if future.status != "finished":
        return f"the scheduler lost it ({future.status}); start again, what is saved stays"
    returned = future.result()
    future.release()
    try:
        for key in task.keys:
            files = {suffix: returned["files"].get(f"{key}{suffix}") for suffix in SUFFIXES}
            if files[".json"] and not store.has(key):
                store.receive(key, {suffix: content for suffix, content in files.items() if content})
            if store.has(key):
                store.load(key)
                store.forget(key)
            else:
                write_atomic(store.path(key, ".error"), f"{returned['error']}\n")
    except StoreError as error:
        return str(error)
    return returned["error"] and f"{returned['error']} (worker {returned['worker']})"


def running(dask, futures, pending, store):
    """Return a row {run, step, loss, left, share, cost} for every task on a worker; its progress is known only if the worker
    shares the folder of the store."""
    by_key = {future.key: futures[future] for future in pending}
    rows = []
    for keys_of_worker in dask.processing().values():
        for task in (by_key[key] for key in keys_of_worker if key in by_key):
            seen = store.progress(task.keys[0])
            step, _, steps = seen.get("step", "").removeprefix("step ").partition(" of ")
            share = int(step) / int(steps) if steps else 0.0
            rows.append({"run": task.name, "step": "", "loss": "", "left": "", "share": share, "cost": task.cost, **seen})
    return rows


# ---- the worker -----------------------------------------------------------------------------------------------------


def work(kind, run_keys, fields, profile, operators):
    """Compute the records of a task on a worker. Returns {"files": {name: bytes}, "error": message or None, "worker": name}.
    Errors of a run are returned, not raised, so that Dask does not repeat the task. If a worker dies, another repeats it."""
    import torch

    from ..training import run

    MIXERS.update(cloudpickle.loads(operators) if operators else {})
    torch.set_num_threads(1)  # so that a run gives the same result wherever it is trained
    store, error = Store(profile), None
    with logged(store):
        try:
            configs = [Config(**each) for each in fields]
            with keys.snapshot():
                if kind == "baseline":
                    run.baseline(configs[0], store)
                elif kind == "init":
                    run.init(configs[0], store)
                else:
                    run.run_together(configs, store)
        except BiasnbError as trouble:
            error = f"{type(trouble).__name__}: {trouble}"
        except Exception as trouble:
            traceback.print_exc()
            error = f"{type(trouble).__name__}: {' '.join(str(trouble).split())}"
    files = {}
    for key in run_keys:
        if store.has(key):
            paths = [store.path(key, suffix) for suffix in SUFFIXES]
            files |= {path.name: path.read_bytes() for path in paths if path.is_file()}
    if not error and not all(store.has(key) for key in run_keys):
        error = "the worker made another run than was asked for; its data or its version of biasnb differ"
    return {"files": files, "error": error, "worker": worker_name()}


def worker_name():
    import socket

    return f"{socket.gethostname()}, process {os.getpid()}"


@contextlib.contextmanager
def logged(store):
    """Within the block, redirect output to runs/<profile>/workers.log, or discard it if that cannot be opened."""
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        log = open(store.folder / "workers.log", "a", encoding="utf-8")  # noqa: SIM115
    except OSError:
        log = open(os.devnull, "w")  # noqa: SIM115
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
