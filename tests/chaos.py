"""Kill the suite again and again, at random moments and in every way, and compare what it makes with an undisturbed run.

    python tests/chaos.py --kills 100 --seed 1 reproduce --profile smoke steps=60

Both runs have a folder of their own with the same code. All records, arrays, weights, figures and tables must be equal, none
missing, none torn, nothing left over; whoever gets a signal must be gone within ten seconds."""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[1]
MEASURED = ("wall_seconds", "images_per_second")  # times, which differ whenever the suite runs
TIMES = "-cost"  # and tables of them
STOP_SECONDS = 10
# What a kill is: words -> share of them.
WAYS = {"SIGKILL to all": 3, "SIGKILL to the first": 2, "SIGKILL to one it started": 3, "SIGTERM": 2, "SIGINT": 2}
CODES = {"SIGTERM": 143, "SIGINT": 130}


class Trouble(Exception):
    """Something was lost."""


def checkout(folder):
    """A place to run in, with the code of this checkout."""
    for name in ("biasnb", "notebooks"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(CHECKOUT / name)
    return folder


def start(folder, words):
    env = {**os.environ, "BIASNB_ROOT": str(folder), "PYTHONPATH": str(CHECKOUT), "BIASNB_CHECKPOINT_SECONDS": "0.05"}
    with open(folder / "output.log", "ab") as log:
        command = [sys.executable, "-m", "biasnb", *words]
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=folder)


def finish(folder, words, tries=1):
    """Run to the end; after kills a second try may be needed, as the first reports what failed before."""
    for _ in range(tries):
        code = start(folder, words).wait()
        if code == 0:
            return
    raise Trouble(f"exit code {code}: {(folder / 'output.log').read_text()[-1500:]}")


def family(process):
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process, way, rng):
    """One kill: (seconds until whoever it was meant for had gone, whether the first process goes on)."""
    everyone = family(process)
    victims = {"SIGKILL to all": everyone, "SIGKILL to one it started": everyone[1:] and [rng.choice(everyone[1:])]}
    victims, began = victims.get(way, everyone[:1]), time.monotonic()
    number = getattr(signal, way.split()[0])
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
    if way == "SIGKILL to one it started":
        return 0.0, True
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Trouble(f"{way}: still there after {STOP_SECONDS} s") from None
    seconds = time.monotonic() - began
    # Before the first line of Python a signal ends a process as it ends any other; a run may also end just then.
    if way in CODES and code not in (CODES[way], -number, 0, 1):
        raise Trouble(f"{way}: exit code {code}")
    _, alive = psutil.wait_procs(everyone, STOP_SECONDS)
    if alive:
        raise Trouble(f"{way}: {len(alive)} processes outlived the first: {alive[0].cmdline()}")
    return seconds, False


def kills(folder, words, count, rng, shortest, longest, say):
    """Start, kill, start again; returns {way: [seconds to be gone]}."""
    done, process = collections.defaultdict(list), None
    while sum(map(len, done.values())) < count:
        if process is None:
            process, began = start(folder, words), time.monotonic()
        wait = shortest * (longest / shortest) ** rng.random()
        try:
            process.wait(wait)
            process = None  # it had come to its end
            continue
        except subprocess.TimeoutExpired:
            way = rng.choices(list(WAYS), WAYS.values())[0]
        if way == "SIGKILL to one it started" and not family(process)[1:]:
            way = "SIGKILL to the first"
        seconds, goes_on = kill(process, way, rng)
        done[way].append(seconds)
        after = time.monotonic() - began
        say(f"{sum(map(len, done.values())):4}  {way:26} {after:6.1f} s after its start, gone in {seconds:.1f} s")
        process = process if goes_on else None
    if process is not None:
        kill(process, "SIGKILL to all", rng)
    return done


def content(folder, profile):
    """What a run made: name -> its content, without times."""
    top = folder / "runs" / profile
    found = {}
    for path in sorted(top.glob("*.json")) + sorted((top / "sweeps").glob("*.json")):
        value = json.loads(path.read_text())
        found[path.relative_to(top)] = {k: v for k, v in value.items() if k not in MEASURED}
    for pattern in ("*.npz", "*.safetensors", "figures/*", "tables/*", "claims/*"):
        files = (path for path in sorted(top.glob(pattern)) if path.is_file() and not path.stem.endswith(TIMES))
        found |= {path.relative_to(top): path.read_bytes() for path in files}
    return found


def left_over(folder, profile):
    """What nobody needs any more."""
    top = folder / "runs" / profile
    found = [path for path in top.rglob("*") if path.name.endswith((".part", ".error"))]
    found += [path for path in (*top.glob("checkpoints/*"), *top.glob("locks/*")) if (top / f"{path.name}.json").exists()]
    return [str(path.relative_to(top)) for path in found]


def compare(calm, wild, profile):
    one, other = content(calm, profile), content(wild, profile)
    for what, names in (
        ("missing", one.keys() - other.keys()),
        ("too many", other.keys() - one.keys()),
        ("different", [name for name in one.keys() & other.keys() if one[name] != other[name]]),
        ("left over", left_over(wild, profile)),
    ):
        if names:
            raise Trouble(f"{len(names)} {what}: {', '.join(sorted(map(str, names))[:5])}")
    return one


def campaign(top, words, count, seed, shortest=0.5, longest=12.0, say=print):
    """Raises Trouble; returns the lines of a summary."""
    profile, rng, began = words[words.index("--profile") + 1], random.Random(seed), time.monotonic()
    calm, wild = checkout(top / "calm"), checkout(top / "wild")
    finish(calm, words)
    say(f"undisturbed: {time.monotonic() - began:.0f} s; now {count} kills, seed {seed}")
    done = kills(wild, words, count, rng, shortest, longest, say)
    finish(wild, words, tries=2)
    same = compare(calm, wild, profile)
    kinds = collections.Counter(name.suffix.lstrip(".") if len(name.parts) == 1 else name.parts[0] for name in same)
    lines = [f"biasnb {' '.join(words)}", f"seed {seed}: {count} kills in {time.monotonic() - began:.0f} s"]
    lines += [f"  {len(done[way]):4} {way:26} gone in at most {max(done[way], default=0):.1f} s" for way in WAYS]
    lines += ["equal to the undisturbed run: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())]
    return [*lines, "none missing, none torn, none different, nothing left over"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the moments and ways (default: drawn, and printed)")
    parser.add_argument("--shortest", type=float, default=0.5, help="seconds to the next kill, at least")
    parser.add_argument("--longest", type=float, default=12.0, help="and at most; log-uniform between")
    parser.add_argument("--folder", type=Path, help="where to run (default: a temporary folder, removed if all went well)")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="the command (default: reproduce --profile smoke steps=60)")
    args = parser.parse_args()
    words = args.words or ["reproduce", "--profile", "smoke", "steps=60"]
    seed = random.randrange(10**6) if args.seed is None else args.seed
    folder = args.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"in {folder}", flush=True)
    try:
        lines = campaign(folder, words, args.kills, seed, args.shortest, args.longest, lambda line: print(line, flush=True))
    except Trouble as trouble:
        sys.exit(f"seed {seed}: {trouble} (all is kept in {folder})")
    print("\n".join(["", *lines]))
    if not args.folder:
        subprocess.run(["rm", "-rf", folder], check=True)


if __name__ == "__main__":
    main()
