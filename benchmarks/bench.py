"""How fast this machine trains: the suite's step beside the same network from timm's parts, in one run.

    python benchmarks/bench.py [operators] [sizes] [seeds] [run] [suite] [--profile PROFILE]

prints tables, of all parts by default, and writes runs/bench.json. Every rate is the median over windows that take turns, after
a warm-up; a ratio is the median of those of windows side by side, with the smallest and the largest in brackets. On a CPU
everything is computed by one thread, as runs are, and times of training are core-seconds of this process, which others disturb
little."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import chain, product, repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import nn
from torch.utils.data import DataLoader, Dataset

from biasnb.config import PROFILES, BiasnbError, ConfigError, check_names, configure
from biasnb.networks.embed import patchify
from biasnb.networks.model import flop_per_image_dense
from biasnb.records import places
from biasnb.records.files import to_json, write_atomic
from biasnb.records.provenance import bf16_instructions, environment
from biasnb.sweep.estimate import activations, networks, stepper
from biasnb.training import evaluation, loop, measures
from biasnb.training.checkpoint import Checkpoints
from biasnb.training.pretext import evaluate
from biasnb.training.run import measured as measured_images
from biasnb.training.run import prepare

WINDOWS, SECONDS = 7, 0.5  # of each thing that is measured
FAST_BF16 = 1.2  # times as fast as in fp32 must be a matrix product in bf16, for steps in bf16 to be measured
TRIO = ("convmixer", "mixer", "igpt", "conv_dense")  # operators that timm has parts for
OTHERS = ("conv", "gconv", "lc", "full", "lattn", "gattn", "attn", "static_softmax", "hyena", "identity")


def rates(steps, windows=WINDOWS, seconds=SECONDS):
    """Calls per second of each step, name -> callable, in windows in which they take turns, every other time backwards:
    name -> list."""
    found, order = {name: [] for name in steps}, list(steps.items())
    for step in steps.values():
        step()
    for _ in range(windows):
        order.reverse()
        for name, step in order:
            count, start = 0, now()
            while (passed := now() - start) < seconds:
                step()
                count += 1
            found[name].append(count / passed)
    return found


def ratio(ones, others, factor=1):
    """The median of the ratios of windows side by side, and the smallest and the largest, as text."""
    found = sorted(factor * one / other for one, other in zip(ones, others, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def medians(speeds):
    return {name: statistics.median(values) for name, values in speeds.items()}


def now():
    """Seconds: on a CPU those that this process has computed for."""
    synchronise()
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(device):
    """What the machine can do at best: matrix product (GFLOP/s, 1024 x 1024) and 3 x 3 dense convolution in both
    kinds of arithmetic, and copying memory (GB/s, 128 MB)."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(1024, 1024, device=device).to(dtype) for _ in range(2))
        x = torch.randn(64, 64, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(64, 64, 3, 3, device=device).to(dtype)
        steps = {"matmul": partial(torch.matmul, a, b), "dense conv": partial(F.conv2d, x, w, padding=1)}
        speed = medians(rates(steps, seconds=0.2))
        found[f"matmul {name}, GFLOP/s"] = speed["matmul"] * 2 * 1024**3 / 1e9
        found[f"dense conv {name}, GFLOP/s"] = speed["dense conv"] * 2 * 9 * 64 * 64 * 64 * 256 / 1e9
    source, target = (torch.zeros(2**24, device=device) for _ in range(2))
    speed = medians(rates({"copy": partial(target.copy_, source)}, seconds=0.2))
    found["copy, GB/s"] = speed["copy"] * 2 * source.nbytes / 1e9
    return found


# ---- steps ------------------------------------------------------------------------------------------------------------


class ConvBlock(nn.Module):
    """ConvMixer's parts in the common pre-norm block: convolution, activation, pointwise, then timm's channel MLP."""

    def __init__(self, cfg, dense):
        super().__init__()
        from timm.layers import Mlp

        d, groups = cfg.width, 1 if dense else cfg.width
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.conv = nn.Conv2d(d, d, cfg.kernel, groups=groups, padding="same")
        self.point = nn.Identity() if dense else nn.Sequential(nn.GELU(), nn.Conv2d(d, d, 1))
        self.mlp = Mlp(d, cfg.mlp_ratio * d)

    def forward(self, x):
        side = round(x.shape[1] ** 0.5)
        grid = self.norm1(x).transpose(1, 2).unflatten(2, (side, side))
        x = x + self.point(self.conv(grid)).flatten(2).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


class Timm(nn.Module):
    """The network of a Config from timm's blocks: linear embedding, positions, L blocks, norm, linear head."""

    def __init__(self, cfg):
        super().__init__()
        from timm.models.mlp_mixer import MixerBlock
        from timm.models.vision_transformer import Block

        d, n, pixels = cfg.width, cfg.grid**2, cfg.patch**2 * 3
        blocks = {
            "convmixer": lambda: ConvBlock(cfg, dense=False),
            "conv_dense": lambda: ConvBlock(cfg, dense=True),
            "mixer": lambda: MixerBlock(d, n, mlp_ratio=(cfg.token_ratio * n / d, cfg.mlp_ratio)),
            "igpt": lambda: Block(d, cfg.heads, cfg.mlp_ratio),
        }
        self.embed, self.position = nn.Linear(pixels, d), nn.Parameter(0.02 * torch.randn(n, d))
        self.blocks = nn.Sequential(*(blocks[cfg.mixer]() for _ in range(cfg.depth)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, pixels)

    def forward(self, tokens, mask):
        return self.head(self.norm(self.blocks(self.embed(tokens) * ~mask[..., None] + self.position)))


def theirs(cfg, device, loader=False):
    """A step of the usual loop, with images on the device or, image by image, from a DataLoader."""
    try:
        net = Timm(cfg).to(device)
    except ImportError as error:
        raise BiasnbError(f"{error.name}: not installed, and is what is compared with; pip install {error.name}") from None
    optimizer, pool = torch.optim.AdamW(net.parameters(), lr=cfg.lr), networks(cfg, device, 20 * cfg.batch, 0)[0].pool.images
    epochs = chain.from_iterable(repeat(DataLoader(Images(pool.cpu()), cfg.batch, shuffle=True, drop_last=True)))

    def step():
        if loader:
            images = next(epochs).to(device)
        else:
            images = pool[torch.randint(0, len(pool), (cfg.batch,), device=device)].float() / 127.5 - 1
        tokens = patchify(images, cfg.patch).flatten(1, 2)
        mask = torch.rand(tokens.shape[:2], device=device) < cfg.mask_rate
        with torch.autocast(device, torch.bfloat16, enabled=cfg.precision == "bf16"):
            loss = F.mse_loss(net(tokens, mask)[mask].float(), tokens[mask])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), cfg.clip)
        optimizer.step()

    return step


class Images(Dataset):
    """Images one by one, scaled and mirrored at random, as loaders usually have them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i].float() / 127.5 - 1
        return image.flip(1) if torch.rand(()) < 0.5 else image


# ---- tables -----------------------------------------------------------------------------------------------------------


def base(**fields):
    """The network that everything is measured around: N 64, D 64, L 4, batch 64."""
    return configure(
        "cifar10", **{"dataset": "photographs", "optimizer": "adamw", "depth": 4, "width": 64, "batch": 64, **fields}
    )


def row(cfg, device, ceiling, speeds):
    """A line of the tables: images/s of each step, and what the suite's makes of the machine."""
    _, (model,) = networks(cfg, device, 20)
    flop, images = 3 * flop_per_image_dense(model), {name: speed * cfg.batch for name, speed in medians(speeds).items()}
    best = max((name for name in images if name in ("fp32", "bf16")), key=images.get)
    kept = activations(cfg, model)
    return {
        "mixer": cfg.mixer, "N": cfg.grid**2, "D": cfg.width, "L": cfg.depth, "batch": cfg.batch,
        **{f"{name}, images/s": round(speed, 1) for name, speed in images.items()},
        "best": best,
        "MFLOP/image": round(flop / 1e6, 1),
        "% of matmul": round(100 * flop * images[best] / ceiling[f"matmul {best}, GFLOP/s"] / 1e9, 1),
        "% of copy": round(100 * 2 * kept * images[best] / ceiling["copy, GB/s"] / 1e9, 1),
        "MB": round((16 * sum(p.numel() for p in model.parameters()) + cfg.batch * kept) / 1e6, 1),
        **{f"{ours} / {name}": ratio(speeds[ours], speeds[name]) for name in ("timm", "loader") for ours in ("fp32", "bf16")
           if ours in speeds and name in speeds},
    }  # fmt: skip


def measured(cfg, device, ceiling, **others):
    """The row of a Config: the suite's step in fp32, in bf16 too where the machine is fast in it, and other steps beside it."""
    fast = ceiling["matmul bf16, GFLOP/s"] > FAST_BF16 * ceiling["matmul fp32, GFLOP/s"]
    precisions = ("fp32", "bf16") if fast else ("fp32",)
    steps = {precision: stepper(replace(cfg, precision=precision), device) for precision in precisions}
    return row(cfg, device, ceiling, rates({**steps, **others}))


def operators(device, ceiling):
    """Every operator at N 64, and those that timm has parts for at N 256 and in small batches too, beside timm's parts and a
    DataLoader."""
    for size, batch in product((16, 32), (16, 32, 64)):
        for mixer in TRIO:
            cfg = base(mixer=mixer, image_size=size, batch=batch, kernel=3 if mixer == "conv_dense" else 5)
            yield measured(cfg, device, ceiling, timm=theirs(cfg, device), loader=theirs(cfg, device, loader=True))
    for mixer in OTHERS:
        yield measured(base(mixer=mixer), device, ceiling)


def sizes(device, ceiling):
    """The trio with one size changed at a time."""
    for mixer in TRIO[:3]:
        for fields in ({"image_size": 8}, {"width": 32}, {"width": 128}, {"depth": 1}, {"depth": 8}, {"batch": 16},
                       {"batch": 256}):  # fmt: skip
            yield measured(base(mixer=mixer, **fields), device, ceiling)


def seeds(device, ceiling):
    """Several seeds as one program against one after the other: how much more they train in the same time."""
    for mixer in TRIO:
        for width in (16, 64):
            cfg = base(mixer=mixer, width=width, kernel=3, batch=32)
            speed = rates({str(n): stepper(cfg, device, n) for n in (1, 3, 5)})
            gains = {f"{n} seeds / one": ratio(speed[str(n)], speed["1"], n) for n in (3, 5)}
            yield {"mixer": mixer, "N": cfg.grid**2, "D": width, "batch": cfg.batch, **gains}


def run(device, ceiling, profile="quick"):
    """Where the time of one run of a profile goes, in seconds and in per cent of all of it. Up to 100 steps are measured and
    multiplied to the number that the run has; saved are one state and the weights."""
    for mixer in TRIO:
        cfg = configure(profile, mixer=mixer)
        times = phases(cfg)
        whole = sum(times.values())
        shares = {name: f"{time:.2f} ({100 * time / whole:.0f} %)" for name, time in times.items()}
        yield {"mixer": mixer, "profile": profile, "steps of the run": cfg.steps, **shares, "all": round(whole, 2)}


def phases(cfg):
    """Seconds that each part of a run takes, name -> seconds."""
    data, model = prepare(cfg)
    net, optimizer = loop.program(cfg, [model], [loop.make_optimizer(model, cfg)])
    pool, steps = loop.Batches(cfg, data.pool), min(100, cfg.steps)
    batches, splits, features = [pool.at(step) for step in range(steps)], (data.train, data.val, data.test), []

    def train():
        for batch in batches:
            loop.gradients(net, cfg, [batch])[0].tolist()
            optimizer.step()

    def save(folder):
        Checkpoints(Path(folder), {}).save(0, model, optimizer, {})
        write_atomic(Path(folder) / "weights", save_tensors(model.state_dict()))

    with tempfile.TemporaryDirectory() as folder:
        return {
            "data": seconds(lambda: [pool.at(step) for step in range(steps)]) * cfg.steps / steps,
            "steps": seconds(train) * cfg.steps / steps,
            "loss and PSNR": seconds(lambda: [evaluate(model, getattr(data, part), part) for part in ("val", "test")]),
            "features": seconds(lambda: features.extend(evaluation.layer_features(model, split) for split in splits)),
            "linear probe, k-NN": seconds(lambda: evaluation.probe_splits(*features, len(data.classes))),
            "measures": seconds(lambda: measures.network(model, measured_images(data.test))),
            "saving": seconds(lambda: save(folder)),
        }


def seconds(call):
    """Seconds that one call takes."""
    start = now()
    call()
    return now() - start


def suite(device, ceiling):
    """Seconds that the suite itself takes: the median of three."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
        python = [sys.executable, "-c"]
        draw = "from pathlib import Path; from biasnb.figures import *; from biasnb.records.store import Store; "
        draw += "write_figures(Store('quick', 'results').sweeps()[0], Path('{}'))"
        for name, command in {
            "biasnb --help": [sys.executable, "-m", "biasnb", "--help"],
            "import torch": [*python, "import torch"],
            "import what trains (biasnb.training.run)": [*python, "import biasnb.training.run"],
            "import what draws (biasnb.figures)": [*python, "import biasnb.figures"],
            "two figures, drawn in all formats": [*python, draw.format(folder)],
            "an empty notebook by Papermill": [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3",
                                               str(path), str(Path(folder) / "out.ipynb")],
        }.items():  # fmt: skip
            times = []
            for _ in range(3):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=places.root())
                times.append(time.perf_counter() - start)
            yield {"what": name, "seconds": round(statistics.median(times), 2)}
    yield from answers()


def answers():
    """Seconds from a control of the playground to its picture, drawn and packed; five networks, the median of nine."""
    from biasnb.explore.playground import Panel, networks

    panel = Panel(networks(["convmixer", "mixer", "igpt", "conv", "attn"]))
    for name, fields in {
        "another image": lambda i: {"image": panel.images[i]},
        "another mask": lambda i: {"mask": panel.scene.mask.roll(1, 0)},
        "another position": lambda i: {"position": (i % panel.grid, 3)},
        "another layer": lambda i: {"layer": 1 + i % 2},
        "another shift": lambda i: {"shift": (1 + i % 2, 3)},
    }.items():
        times = []
        for i in range(9):
            start = time.perf_counter()
            panel.change(**fields(i))._repr_mimebundle_()
            times.append(time.perf_counter() - start)
        yield {"what": f"playground: {name}", "seconds": round(statistics.median(times), 3)}


PARTS = {"operators": operators, "sizes": sizes, "seeds": seeds, "run": run, "suite": suite}


def bench(names, stream=sys.stdout, profile="quick"):
    """Measure these parts of PARTS, print each row as it comes, and write runs/bench.json; returns its path."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    instructions = bf16_instructions()
    known = "not known" if instructions is None else ", ".join(instructions) or "none"
    print(f"instructions for bf16: {known}", file=stream)
    ceiling = {name: round(value, 1) for name, value in ceilings(device).items()}
    print("ceilings: " + "; ".join(f"{name} {value:g}" for name, value in ceiling.items()), file=stream, flush=True)
    stamp = environment(device, None, torch.get_num_threads())
    found = {"environment": stamp, "bf16_instructions": instructions, "ceilings": ceiling}
    for name in names:
        found[name] = []
        print(f"\n{PARTS[name].__doc__}\n", file=stream)
        part = partial(run, profile=profile) if name == "run" else PARTS[name]
        for line in part(device, ceiling):
            if not found[name] or found[name][-1].keys() != line.keys():
                print(f"\n| {' | '.join(line)} |\n|{'---|' * len(line)}", file=stream)
            print(f"| {' | '.join(map(str, line.values()))} |", file=stream, flush=True)
            found[name].append(line)
    path = places.root() / "runs" / "bench.json"
    write_atomic(path, to_json(found))
    return path


def main(words=None):
    """Returns the exit status: 0, 1 for what is not installed, 2 for a part that is not known."""
    parser = argparse.ArgumentParser("bench.py", description="Training speed of this machine; writes runs/bench.json.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--profile", default="quick", choices=list(PROFILES), help="of `run` (default: quick)")
    given = parser.parse_args(words)
    parts = given.parts
    try:
        check_names({name: name for name in parts}, PARTS, "part")
        print(bench(parts or list(PARTS), profile=given.profile))
    except BiasnbError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
