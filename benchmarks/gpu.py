"""Everything that needs a GPU, in one run that ends by itself: whether it computes what a CPU does, how fast it is, and as many
runs of a profile as fit into the time.

    python -m benchmarks.gpu [--out FOLDER] [--minutes 8] [--profile full] [--notebooks 20_trio ...] [--parts right speed runs]

Needs torch and what draws figures; neither Jupyter nor Papermill nor Dask. Leaves gpu.md, gpu.json and the records as
records-1.tar.gz and so on in FOLDER (default runs/gpu): at most eight files of 15 MB. Records are those of `biasnb reproduce`;
unpack them in runs/PROFILE."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench import synchronise, theirs
from biasnb.config import BiasnbError, Config, ConfigError, configure  # noqa: F401  # Config: by a killed child
from biasnb.networks.mixing import Static
from biasnb.networks.model import flop_per_image_dense
from biasnb.operators import CUBE, MIXERS, TRIO
from biasnb.records import keys
from biasnb.records.files import to_json, write_atomic
from biasnb.records.provenance import environment
from biasnb.records.store import Store
from biasnb.sweep import executor, manifest
from biasnb.sweep.estimate import activations, networks, stepper
from biasnb.training import loop, run, seeds

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of a difference from the CPU in fp32, relative to the norm of the gradient
LARGE = ("igpt", "full", "mixer", "convmixer", "conv")  # compiled at the largest size
ARCHIVES, ARCHIVE_BYTES = 6, 15e6
RESERVED = 20  # seconds at the end for the archives


def per_second(step, seconds):
    """Calls of a step per second, after three."""
    for _ in range(3):
        step()
    synchronise()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(3):
            step()
        synchronise()
        count += 3
    return count / passed


# ---- is it right ----------------------------------------------------------------------------------------------------


def small(mixer, pretext, precision="fp32", **fields):
    """A network that is computed in no time, or None where the operator cannot be trained on this task."""
    position = {"position": "none"} if mixer == "hyena" and pretext == "bert" else {}
    with contextlib.suppress(ConfigError):
        return configure("smoke", mixer=mixer, pretext=pretext, precision=precision, depth=2, width=16, **position, **fields)


def gradients(cfg, device, count):
    """(loss, gradient as one vector) of each of so many seeds trained as one program, on the first batch, on the CPU."""
    data, models = networks(cfg, device, 4 * cfg.batch, count)
    for seed, model in enumerate(models):  # heads begin at zero, and hide what is before them
        rng = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=rng).to(p.device)
    batches = [loop.Batches(replace(cfg, seed=seed), data.pool).at(0) for seed in range(count)]
    net, _ = loop.program(cfg, models, [loop.make_optimizer(model, cfg) for model in models])
    losses, _ = loop.gradients(net, replace(cfg, clip=1e6), batches)
    grads = [p.grad.cpu().float() for p in net.parameters() if p.grad is not None]
    if count == 1:
        return [(float(losses), torch.cat([g.flatten() for g in grads]))]
    return [(float(losses[i]), torch.cat([g[i].flatten() for g in grads])) for i in range(count)]


def agreement(device, mixers):
    """A row per operator, task and arithmetic: how far loss and gradient on this device are from those on the CPU in fp32."""
    for mixer in mixers:
        for pretext in ("bert", "ar"):
            if not (cfg := small(mixer, pretext)):
                continue
            true = gradients(cfg, "cpu", 2)
            for precision, limit in TOLERANCE.items():
                for count in (1, 2):
                    row = {"operator": mixer, "task": pretext, "precision": precision, "seeds": count}
                    try:
                        found = gradients(replace(cfg, precision=precision), device, count)
                    except Exception as error:
                        yield row | {"passed": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                        continue
                    off = [(abs(one - loss) / loss, float((g - gradient).norm() / gradient.norm()))
                           for (one, g), (loss, gradient) in zip(found, true, strict=False)]  # fmt: skip
                    row |= {"loss": max(loss for loss, _ in off), "gradient": max(gradient for _, gradient in off)}
                    yield row | {"passed": max(row["loss"], row["gradient"]) < limit}


def trained(cfg, folder, device):
    """The record of a run in a store of its own."""
    return run.run(replace(cfg, device=device), Store(folder.name, folder.parent))


def same(one, other):
    return all(one[name] == other[name] for name in ("loss", "psnr", "probe", "history"))


def behaviour(device, folder):
    """Rows {what, passed, why}: equal bits of two runs, a run killed and resumed, a compiled step, one that cannot be
    compiled."""
    kind = "cuda" if device == "cuda" else "cpu"
    for mixer in ("convmixer", "mixer", "igpt"):
        short = configure("smoke", mixer=mixer, steps=20)
        runs = [trained(short, folder / f"{mixer}-{i}", kind) for i in range(2)]
        yield {"what": f"{mixer}: the same run twice has equal bits", "passed": same(*runs)}
    cfg = configure("smoke", mixer="gattn", steps=300)
    first = trained(cfg, folder / "first", kind)
    yield {"what": "gattn: the same run twice has equal bits", "passed": same(first, trained(cfg, folder / "again", kind))}

    code = f"from benchmarks.gpu import *; trained(Config(**{asdict(cfg)!r}), Path({str(folder / 'killed')!r}), {kind!r})"
    environ = {**os.environ, "BIASNB_CHECKPOINT_SECONDS": "0"}
    child = subprocess.Popen([sys.executable, "-c", code], env=environ, cwd=Path(__file__).parent.parent)
    states = Store("killed", folder).checkpoints(keys.key(cfg))
    while child.poll() is None and not any(states.glob("*.safetensors")):
        time.sleep(0.01)
    child.kill()
    killed = child.wait() == -signal.SIGKILL
    passed = killed and same(first, trained(cfg, folder / "killed", kind))
    yield {"what": "killed after a state was saved and resumed, it ends with equal bits", "passed": passed}

    cpu = trained(cfg, folder / "cpu", "cpu")
    off = abs(cpu["psnr"]["test"] - first["psnr"]["test"])
    yield {"what": "300 steps end where the CPU ends", "passed": off < 0.1, "why": f"PSNR differs by {off:.2g} dB"}

    for what, mixer in (("a compiled step", "igpt"), ("a step that cannot be compiled", "uncompiled")):
        with contextlib.ExitStack() as stack:
            if mixer == "uncompiled":
                MIXERS[mixer] = MIXERS["full"]._replace(operator=Uncompiled)
                stack.callback(MIXERS.pop, mixer)
            cfg, steps = configure("smoke", mixer=mixer, heads=2), seeds.COMPILED_STEPS
            _, plain = gradients(cfg, device, 2)[0]
            seeds.COMPILED_STEPS = 0
            try:
                _, compiled = gradients(cfg, device, 2)[0]
                off = float((compiled - plain).norm() / plain.norm())
                yield {"what": f"{what} has the same gradient", "passed": off < 1e-3, "why": f"differs by {off:.2g}"}
            except Exception as error:
                yield {"what": what, "passed": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            finally:
                seeds.COMPILED_STEPS = steps


class Uncompiled(Static):
    """`full` with a break in its graph."""

    def forward(self, x, query=None):
        torch._dynamo.graph_break()
        return super().forward(x, query)


# ---- how fast is it -------------------------------------------------------------------------------------------------


def ceilings(device, seconds):
    """What the device can do at best: matrix product in bf16 and fp32, TFLOP/s, and copying memory, TB/s."""
    found, side = {}, 8192 if device == "cuda" else 256
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[f"matmul {name}, TFLOP/s"] = per_second(lambda a=a, b=b: a @ b, seconds) * 2 * side**3 / 1e12
    source, target = (torch.zeros(side**2 * 4, device=device) for _ in range(2))
    found["copy, TB/s"] = per_second(lambda: target.copy_(source), seconds) * 2 * source.nbytes / 1e12
    return found


def measured(cfg, device, ceiling, seconds, compiled=False, count=1):
    """A row: images/s of the training step of so many seeds, its share of the matrix and of the copy rate."""
    row = {"operator": cfg.mixer, "N": cfg.grid**2, "D": cfg.width, "L": cfg.depth, "batch": cfg.batch, "seeds": count,
           "compiled": compiled}  # fmt: skip
    before, seeds.COMPILED_STEPS = seeds.COMPILED_STEPS, 0 if compiled else 10**9
    try:
        _, (model,) = networks(cfg, device, 20)
        flop, kept = 3 * flop_per_image_dense(model), activations(cfg, model)
        speed = per_second(stepper(cfg, device, count), seconds) * cfg.batch * count
    except (torch.OutOfMemoryError, RuntimeError) as error:
        return row | {"why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        seeds.COMPILED_STEPS = before
        torch.cuda.empty_cache()
    return row | {
        "images/s": round(speed),
        "% of matmul": round(100 * flop * speed / ceiling["matmul bf16, TFLOP/s"] / 1e12, 1),
        "% of copy": round(100 * 2 * kept * speed / ceiling["copy, TB/s"] / 1e12, 1),
    }


def shapes(device):
    """The sizes (image_size, patch, width) that operators are measured at; all of them, and the one for every operator."""
    if device == "cpu":
        return [(8, 2, 8)], (8, 2, 8)
    return [(size, patch, width) for size, patch in ((16, 2), (32, 2), (32, 1)) for width in (64, 128, 256)], (32, 2, 128)


def at(mixer, size, patch, width, device):
    """The Config of a network to be measured."""
    toy = {"batch": 16, "steps": 4, "heads": 2, "kernel": 3} if device == "cpu" else {"batch": 128, "heads": 4}
    position = {"position": "none"} if mixer == "hyena" else {}
    return configure("quick", dataset="photographs", mixer=mixer, image_size=size, patch=patch, width=width, depth=4,
                     mlp_ratio=4, precision="bf16", optimizer="adamw", lr=1e-3, **toy, **position)  # fmt: skip


def warm(mixer, device):
    """Compile the step of the largest size, so that its kernels are in the cache on disk."""
    with contextlib.suppress(Exception):
        cfg = at(mixer, *shapes(device)[0][-1], device)
        seeds.COMPILED_STEPS = 0
        step = stepper(cfg, device)
        step()
        synchronise()


def speed(device, ceiling, mixers, seconds):
    """Rows of `measured`: the operators that are compared most at all sizes, the others at one, compiled steps at the largest,
    five seeds beside one, and the same networks from timm's parts."""
    every, one = shapes(device)
    for mixer in mixers:
        for shape in every if mixer in (*TRIO, *CUBE, "conv_dense") else [one]:
            yield measured(at(mixer, *shape, device), device, ceiling, seconds)
    for mixer in [mixer for mixer in LARGE if mixer in mixers]:
        yield measured(at(mixer, *every[-1], device), device, ceiling, seconds, compiled=True)
    for mixer in [mixer for mixer in TRIO if mixer in mixers]:
        cfg = at(mixer, *every[min(1, len(every) - 1)], device)
        for count in (1, 5):
            yield measured(cfg, device, ceiling, seconds, count=count)
    with contextlib.suppress(BiasnbError):  # timm is not installed
        for mixer in [mixer for mixer in (*TRIO, "conv_dense") if mixer in mixers]:
            cfg = at(mixer, *one, device)
            rate = per_second(theirs(cfg, device), seconds) * cfg.batch
            yield {"operator": f"{mixer}, timm", "N": cfg.grid**2, "D": cfg.width, "L": cfg.depth, "batch": cfg.batch,
                   "images/s": round(rate)}  # fmt: skip


# ---- runs -----------------------------------------------------------------------------------------------------------


def tasks(profile, notebooks, done):
    """What these notebooks ask for and `done` has not, in their order: baselines and random inits before the runs that need
    them, and the seeds of one setting as one program."""
    found, seen = [], set()
    for name in notebooks:
        _, sweep = manifest.asked(name, {"profile": profile})
        wanted = {}
        for cfg in sweep.configs:
            wanted[keys.baseline_key(cfg)] = ("baseline", cfg)
            wanted[keys.init_key(cfg)] = ("init", cfg)
            wanted[keys.key(cfg)] = ("run", cfg)
        wanted = {key: task for key, task in wanted.items() if key not in seen and not done(key)}
        seen |= wanted.keys()
        found += sorted(executor.grouped(wanted, by_seed=True), key=lambda task: -task.cost)
    return found


def train(todo, profile, workers, end):
    """Do tasks in their order in so many processes until `end` (time.monotonic), then kill them; what they have saved stays.
    Yields a row {task, seconds, error} of each that ended."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    futures = {pool.submit(timed_work, task, profile): task for task in todo}
    pending = set(futures)
    while pending and time.monotonic() < end:
        time.sleep(0.1)
        for future in [future for future in pending if future.done()]:
            pending.remove(future)
            error, seconds = future.exception(), None
            if error is None:
                error, seconds = future.result()
            yield {"task": futures[future].name, "seconds": seconds, "error": error and str(error)}
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def timed_work(task, profile):
    """(error in words or None, seconds) of a task."""
    began = time.monotonic()
    error = executor.work(task.kind, task.keys, [asdict(cfg) for cfg in task.configs], profile, None)["error"]
    return error, time.monotonic() - began


def archive(store, out):
    """Pack the records of a store, and as many weights of seed 0 as fit; returns (records, files of weights)."""
    done = [store.path(key) for key in store]
    arrays = [path.with_suffix(".npz") for path in done]
    first = [path.stem for path in done if store.load(path.stem)["config"].get("seed") == 0]
    weights = [store.path(key, ".safetensors") for key in first]
    number, size, packed, file = 0, ARCHIVE_BYTES, 0, None
    for path in [*done, *arrays, *weights]:
        if not path.is_file():
            continue
        most = path.stat().st_size / (4 if path.suffix == ".json" else 1)
        if size + most > ARCHIVE_BYTES:
            if number == ARCHIVES:
                break
            if file:
                file.close()
            number, size = number + 1, 0
            file = tarfile.open(out / f"records-{number}.tar.gz", "w:gz", compresslevel=4)  # noqa: SIM115
        file.add(path, path.name)
        size, packed = size + most, packed + (path.suffix == ".safetensors")
    if file:
        file.close()
    return len(done), packed


# ---- report ---------------------------------------------------------------------------------------------------------


def page(found):
    """The report in Markdown."""
    lines = [f"# On {found['environment']['gpu'] or 'the CPU, at toy size'}", ""]
    packages = found["environment"]["packages"]
    lines += [f"torch {packages['torch']}, torchvision {packages['torchvision']}; {found['seconds']:.0f} s in all.", ""]
    if rows := found.get("agreement"):
        bad = [row for row in rows if not row["passed"]]
        lines += [f"## Against the CPU: {len(rows) - len(bad)} of {len(rows)} comparisons agree", ""]
        table = pd.DataFrame(rows)
        if "gradient" in table:
            worst = table.groupby(["task", "precision", "seeds"])[["loss", "gradient"]].max().reset_index()
            lines += ["Largest relative difference over the operators, in fp32 on the CPU as the reference.", ""]
            lines += [worst.to_markdown(index=False, floatfmt=".1e"), ""]
        lines += [f"- failed: {row}" for row in bad] + [""]
    if rows := found.get("behaviour"):
        lines += ["## Behaviour", "", pd.DataFrame(rows).fillna("").to_markdown(index=False), ""]
    if "ceilings" in found:
        best = "; ".join(f"{name} {value:.3g}" for name, value in found["ceilings"].items())
        lines += ["## Speed of the training step, bf16", "", f"Measured on this device: {best}.", ""]
        lines += [pd.DataFrame(found["speed"]).fillna("").to_markdown(index=False), ""]
    if "runs" in found:
        rows, bad = found["runs"], [row for row in found["runs"] if row["error"]]
        lines += [f"## Runs of profile {found['profile']}", ""]
        lines += [f"{found['records']} records in {found['training_seconds']:.0f} s by {found['workers']} processes "
                  f"({len(rows)} of {found['tasks']} tasks ended, {len(bad)} with an error)."]  # fmt: skip
        lines += [f"- {row['task']}: {row['error']}" for row in bad]
    return "\n".join(lines) + "\n"


def save(found, out, began):
    found["seconds"] = time.monotonic() - began
    write_atomic(out / "gpu.json", to_json(found))
    write_atomic(out / "gpu.md", page(found))


def measure(out, parts, profile, notebooks, minutes, workers, mixers=tuple(MIXERS), seconds=0.2):
    """Do these parts of right, speed and runs, and keep the report up to date; returns what was found."""
    began = time.monotonic()
    end = began + 60 * minutes - RESERVED
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"environment": environment(device, torch.cuda.get_device_name() if device == "cuda" else None, 1)}
    torch.set_num_threads(1)
    warming = []
    if "speed" in parts and device == "cuda":
        context = multiprocessing.get_context("spawn")
        warming = [context.Process(target=warm, args=(mixer, device), daemon=True) for mixer in LARGE]
        for process in warming:
            process.start()
    if "right" in parts:
        found["agreement"] = list(agreement(device, mixers))
        save(found, out, began)
        found["behaviour"] = []
        with tempfile.TemporaryDirectory() as folder:
            for row in behaviour(device, Path(folder)):
                found["behaviour"].append(row)
                save(found, out, began)
    for process in warming:
        process.join(max(1.0, end - time.monotonic()))
    if "speed" in parts:
        found["ceilings"], found["speed"] = ceilings(device, seconds), []
        for row in speed(device, found["ceilings"], mixers, seconds):
            found["speed"].append(row)
            if time.monotonic() > end:
                break
        save(found, out, began)
    if "runs" in parts:
        store, started = Store(profile), time.monotonic()
        todo = tasks(profile, notebooks, store.has)
        found |= {"profile": profile, "workers": workers, "tasks": len(todo), "runs": []}
        for row in train(todo, profile, workers, end):
            found["runs"].append(row)
            print(f"{time.monotonic() - began:.0f} s: {row['task']}, {row['error'] or 'done'}", flush=True)
        found["training_seconds"] = time.monotonic() - started
        found["records"], found["weights"] = archive(store, out)
    save(found, out, began)
    return found


def main(words=None):
    parser = argparse.ArgumentParser("benchmarks.gpu", description="What only a GPU can show: a report, and records.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the report and the records")
    parser.add_argument("--minutes", type=float, default=8, help="after which it ends")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--notebooks", nargs="+", default=["20_trio", "21_cube", "22_representation", "24_geometry"])
    parser.add_argument("--parts", nargs="+", default=["right", "speed", "runs"], choices=["right", "speed", "runs"])
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that train")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        print(page(measure(given.out.resolve(), given.parts, given.profile, given.notebooks, given.minutes, given.workers)))
    except BiasnbError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
