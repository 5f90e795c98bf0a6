"""Records of runs that were never trained, to test what is made from records."""

import nbformat
import numpy as np

from biasnb.config import configure
from biasnb.records.keys import baseline_fields, baseline_key, init_fields, init_key, key, key_fields
from biasnb.records.store import PROTOCOL, Store
from biasnb.records.sweep import Sweep
from biasnb.sweep import manifest

# Put before a script: torch cannot be found.
NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
"""

CLASSES = ["a", "b"]
SIZES = {"train": 40, "val": 5, "test": 10, "pool": 40}


MEASURED = (
    "wall_seconds",
    "images_per_second",
    "evaluation_seconds",
    "environment",
)  # what differs whenever and wherever a run is trained


def results(store, configs=None):
    """Key -> its record without times, and its arrays and weights as bytes: of the runs of some Configs, or of all records."""
    found = {}
    for name in [path.stem for path in store.folder.glob("*.json")] if configs is None else map(key, configs):
        record = {part: value for part, value in store.load(name).items() if part not in MEASURED}
        beside = [store.path(name, suffix) for suffix in (".npz", ".safetensors")]
        found[name] = record, *(path.read_bytes() for path in beside if path.is_file())
    return found


def data(cfg):
    return {"name": cfg.dataset, "fingerprint": "f" * 16, "classes": CLASSES, **SIZES}


PENALTIES = [1e-3, 1e-2, 1e-1]


def probe(depth, accuracy):
    """The table of a probe that has this accuracy at all layers but the embedding, and at the second penalty; every other
    penalty and the embedding cost a point."""
    rows = [[accuracy - ((layer == 0) + (place != 1)) / 100 for place in range(len(PENALTIES))] for layer in range(depth + 1)]
    if depth == 0:
        rows = [[accuracy - (place != 1) / 100 for place in range(len(PENALTIES))]]
    table = {name: [list(row) for row in rows] for name in ("train", "val", "test")}
    return {"penalties": PENALTIES, **table, "knn": [accuracy] * (depth + 1), "neighbours": 20, "temperature": 0.07}


def measures(cfg, scale):
    """What `measure.network` gives of a network, in the same shapes; the errors grow with `scale`."""
    layers, heads = cfg.depth + 1, cfg.heads if "heads" in cfg.reads else 1
    return {
        "roll_error": [scale * 0.1 * i for i in range(layers)],
        "lie_error": None if cfg.input == "palette" else [scale * 0.01 * (i + 1) for i in range(layers)],
        "receptive_field": {"side50": 3, "side99": cfg.image_size, "distance": 2.0 * scale},
        "mixing_distance": [[scale * (1.0 + i + g / 10) for g in range(heads)] for i in range(cfg.depth)],
        "content_distance": [[scale * (1.1 + i) for _ in range(heads)] for i in range(cfg.depth)]
        if "igpt" in cfg.mixer
        else None,
        "uniform_distance": 2.0,
        "mixing_spectrum": [-0.1 * scale * (i + 1) for i in range(cfg.depth)],
        "spectrum": [[-scale * k for k in range(cfg.grid // 2 + 1)] for _ in range(layers)],
        "cka": [[1.0 - abs(i - j) / layers for j in range(layers)] for i in range(layers)],
    }


def record_of(cfg, psnr=22.0, accuracy=0.6, status="done"):
    """The record that `run.run` makes of a Config, with these results."""
    of_pixels, of_labels = psnr if cfg.predicts else None, accuracy if cfg.pretext == "supervised" else None
    steps = 0 if cfg.pretext == "none" else 4
    record = {
        "kind": "run", "key": key(cfg), "init": init_key(cfg), "protocol": PROTOCOL, "config": key_fields(cfg),
        "status": status, "steps": steps, "data": data(cfg),
        "environment": {}, "palette": {"hash": "p" * 16, "psnr": 30.0} if cfg.uses_palette else None,
        "parameters": {"mixing": 10, "channel": 20, "embedding": 30}, "flop_per_image": 12345, "context_coverage": 0.75,
        "flop_per_image_dense": 23456,
        "history": [{"step": s, "loss": 1.0 / s, "lr": 0.1, "gradient_norm": 1.0, "weight_norm": 14.0}
                    for s in range(1, steps + 1)],
    }  # fmt: skip
    if status == "diverged":
        return record | {"last_loss": 0.25}
    return record | {
        "images_per_second": 100.0, "wall_seconds": 1.0, "evaluation_seconds": 0.5,
        "loss": dict.fromkeys(("val", "test"), 0.2 if steps else None),
        "psnr": {"val": of_pixels, "test": of_pixels}, "accuracy": {"val": of_labels, "test": of_labels},
        "probe": probe(cfg.depth, accuracy), "measures": measures(cfg, 1.0),
    }  # fmt: skip


def run_record(mixer, depth, seed, psnr=22.0, accuracy=0.6, status="done", **fields):
    return record_of(configure("smoke", mixer=mixer, depth=depth, seed=seed, **fields), psnr, accuracy, status)


def arrays_of(cfg, rng):
    """The arrays beside such a record."""
    size = cfg.image_size
    correct = rng.integers(0, 2 ** len(PENALTIES), (cfg.depth + 1, SIZES["test"]), np.uint8)
    arrays = {"images": rng.integers(0, 256, (10, size, size, 3), np.uint8), "correct": correct,
              "receptive_field": rng.random((size, size), np.float32) / size**2}  # fmt: skip
    if cfg.predicts:
        names = ("input", "reconstruction", *(["sample"] if cfg.pretext == "ar" else []))
        arrays |= {name: rng.integers(0, 256, (10, size, size, 3), np.uint8) for name in names}
    return arrays


def baseline_record(cfg):
    return {
        "kind": "baseline", "key": baseline_key(cfg), "config": baseline_fields(cfg), "data": data(cfg), "environment": {},
        "psnr": {"image_mean": 17.0, "neighbour_mean": 21.7, "nearest_visible": 21.2},
        "pixel_probe": probe(0, 0.42), "protocol": PROTOCOL,
    }  # fmt: skip


def init_record(cfg):
    return {
        "kind": "init", "key": init_key(cfg), "config": init_fields(cfg), "data": data(cfg), "environment": {},
        "probe": probe(cfg.depth, 0.5), "measures": measures(cfg, 2.0), "protocol": PROTOCOL,
    }  # fmt: skip


def sweep_of(notebook, profile="smoke", **given):
    """(Sweep of a notebook with these parameters under its own name, without records; the Configs of its runs)."""
    planned = manifest.plan(notebook, manifest.parameters(notebook, {"profile": profile, **given}))
    return Sweep(Store(profile), notebook, {**planned.content, "changed": {}}), list(planned.configs)


def saved_sweep(store, notebook="20_trio", **overrides):
    """The sweep of a notebook under its own name, with all its records: PSNR falls with the mixer's place and differs a
    little by run."""
    rng = np.random.default_rng(0)
    sweep, configs = sweep_of(notebook, store.profile, **overrides)
    mixers = list(dict.fromkeys(cfg.mixer for cfg in configs))
    for cfg in configs:
        store.save(record_of(cfg, psnr=24.0 - 2 * mixers.index(cfg.mixer) + 0.1 * float(rng.normal())), arrays_of(cfg, rng))
        for other in (baseline_record(cfg), init_record(cfg)):
            if not store.has(other["key"]):
                store.save(other)
    return Sweep(store, sweep.name, sweep.content)


PARAMETERS = "profile = 'smoke'\nsettings = {}"
QUESTION = "# A notebook\n\n**Question.** Does it run?"
PYTHON = {"name": "python3", "display_name": "?"}


def write_notebook(folder, name, *cells, parameters=(PARAMETERS,), sweep="", kernelspec=PYTHON, question=QUESTION):
    """A small notebook in a checkout: a question, cells tagged `parameters`, one tagged `sweep`, then others."""
    n = nbformat.v4.new_notebook()
    n.metadata |= {"kernelspec": kernelspec} if kernelspec else {}
    tagged = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in parameters]
    tagged += [nbformat.v4.new_code_cell(sweep, metadata={"tags": ["sweep"]})] if sweep else []
    n.cells = [nbformat.v4.new_markdown_cell(question), *tagged, *map(nbformat.v4.new_code_cell, cells)]
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(n, folder / "notebooks" / f"{name}.ipynb")
