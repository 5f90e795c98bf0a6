"""Kill processes of small suites at random moments, and compare what the suites make with an undisturbed run.

    python tests/chaos.py --kills 300 --seed 1 --suite 28_position,29_precision steps=200

A suite is `biasnb reproduce --profile smoke` with these notebooks and settings, in a folder of its own. One of its processes
is killed (SIGKILL) again and again: the suite itself, in which the scheduler is, a worker, or the kernel of a notebook. When a
killed suite has left no process behind, it is started again. When one has come to its end, it is run once more without kills
and compared, and the next begins. All records, arrays, weights, figures and tables must equal those of the undisturbed run,
none missing, none torn, nothing left over."""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from forked import CHECKOUT, environment

MEASURED = ("wall_seconds", "images_per_second", "evaluation_seconds")  # times, which differ whenever the suite runs
TIMES = "-cost"  # and tables of them
STOP_SECONDS = 10  # in which all processes of a suite that was killed are gone
PROFILE = "smoke"
ROLES = {"suite": 4, "worker": 6, "kernel": 1}  # words -> how often it is drawn


class Trouble(Exception):
    """Something was lost."""


def checkout(folder, notebooks, cache=None):
    """A place to run in, with these notebooks and the code of this checkout."""
    (folder / "notebooks").mkdir(parents=True)
    for name in notebooks:
        shutil.copy(CHECKOUT / "notebooks" / f"{name}.ipynb", folder / "notebooks")
    if cache:
        shutil.copytree(cache, folder / "runs" / "cache")
    return folder


def start(folder, words):
    env = environment(folder, BIASNB_CHECKPOINT_SECONDS="0.05", BIASNB_SCHEDULER=None)
    with open(folder / "output.log", "ab") as log:
        command = [sys.executable, "-m", "biasnb", "reproduce", "--profile", PROFILE, *words]
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=folder)


def finish(folder, words):
    """One run that is left alone."""
    code = start(folder, words).wait()
    if code:
        raise Trouble(f"exit code {code}: {(folder / 'output.log').read_text()[-1500:]}")
    gone(folder)


def processes(folder):
    """All processes that work in a folder, however they came to be."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("BIASNB_ROOT") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def gone(folder):
    """Seconds until no process works in a folder any more. Raises Trouble."""
    began = time.monotonic()
    while alive := processes(folder):
        if time.monotonic() - began > STOP_SECONDS:
            raise Trouble(f"{len(alive)} processes are left: {alive[0].cmdline()}")
        time.sleep(0.1)
    return time.monotonic() - began


def make_old(folder):
    """Let what killed writers have left look two hours old: from one hour on it belongs to nobody and is removed."""
    then = time.time() - 2 * 3600
    for path in folder.rglob(".*.part"):
        os.utime(path, (then, then))


def role(process, suite):
    """What a process is; None for a helper such as that of multiprocessing, or one that has just ended."""
    if process.pid == suite.pid:
        return "suite"
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())
        return "kernel" if "notebooks import serve" in words else "worker" if "spawn_main" in words else None
    return None


def kill_one(suite, folder, rng, chosen):
    """Kill a process of a suite, of a kind that is chosen and waited for: what it was, or None if the suite ended before. Where
    workers are waited for and all is trained, it is a kernel."""
    while suite.poll() is None:
        by_role = collections.defaultdict(list)
        for process in processes(folder):
            by_role[role(process, suite)].append(process)
        by_role["suite"] = [psutil.Process(suite.pid)]
        if chosen == "worker" and by_role["kernel"]:
            chosen = "kernel"
        if by_role[chosen]:
            victim = rng.choice(sorted(by_role[chosen], key=lambda process: process.pid))
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            return chosen
        time.sleep(0.05)
    return None


class Campaign:
    """Kills over as many suites as it takes; `done` counts them by role."""

    def __init__(self, top, notebooks, words, count, seed, shortest=0.1, longest=3.0, say=print):
        self.top, self.notebooks, self.words, self.count = top, notebooks, words, count
        self.seed, self.rng, self.waits, self.say = seed, random.Random(seed), (shortest, longest), say
        self.done, self.slowest, self.suites, self.began = collections.Counter(), 0.0, 0, time.monotonic()

    def run(self):
        """The lines of a summary; the undisturbed run is in top/calm, the last other one in top/wild. Raises Trouble."""
        calm = checkout(self.top / "calm", self.notebooks)
        finish(calm, self.words)
        same = {}
        self.say(f"undisturbed: {time.monotonic() - self.began:.0f} s; now {self.count} kills, seed {self.seed}")
        while self.done.total() < self.count:
            shutil.rmtree(self.top / "wild", ignore_errors=True)
            wild = checkout(self.top / "wild", self.notebooks, cache=calm / "runs/cache")
            self.disturb(wild)
            make_old(wild)
            finish(wild, self.words)
            same = compare(calm, wild)
            self.suites += 1
            self.say(f"suite {self.suites}: {len(same)} files equal")
        kinds = collections.Counter(name.suffix.lstrip(".") if len(name.parts) == 1 else name.parts[0] for name in same)
        killed = ", ".join(f"{self.done[name]} times a {name}" for name in ROLES)
        seconds = time.monotonic() - self.began
        return [
            f"biasnb reproduce --profile {PROFILE} {' '.join(self.words)} with {', '.join(self.notebooks)}",
            f"seed {self.seed}: {self.done.total()} kills over {self.suites} suites in {seconds:.0f} s: {killed}",
            f"after a killed suite all its processes were gone in at most {self.slowest:.1f} s",
            "equal to the undisturbed run: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
            "none missing, none torn, none different, nothing left over, no process left",
        ]

    def next_role(self):
        """One that has not been killed yet, or a drawn one."""
        left = [role for role in ROLES if not self.done[role]]
        return left[0] if left else self.rng.choices(list(ROLES), ROLES.values())[0]

    def disturb(self, folder):
        """Start, kill, start again, until a suite comes to its end or there were enough kills."""
        suite, killed, (shortest, longest) = start(folder, self.words), None, self.waits
        while self.done.total() < self.count:
            with contextlib.suppress(subprocess.TimeoutExpired):
                suite.wait(shortest * (longest / shortest) ** self.rng.random())
            last = kill_one(suite, folder, self.rng, self.next_role()) if suite.poll() is None else None
            if last is None:
                code = suite.wait()
                if code not in ((0, 1) if killed else (0,)):  # 1: what was killed is named as failed
                    raise Trouble(f"exit code {code}: {(folder / 'output.log').read_text()[-1500:]}")
                return
            killed = last
            self.done[killed] += 1
            self.say(f"{self.done.total():4}  {killed}")
            if killed == "suite":
                suite.wait()
                self.slowest = max(self.slowest, gone(folder))
                suite, killed = start(folder, self.words), None
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(suite.pid).kill()
        suite.wait()
        gone(folder)


# ---- comparing ------------------------------------------------------------------------------------------------------


def content(folder):
    """What a suite made: name -> its content, without times."""
    top = folder / "runs" / PROFILE
    found = {}
    for path in sorted(top.glob("*.json")) + sorted((top / "sweeps").glob("*.json")):
        value = json.loads(path.read_text())
        found[path.relative_to(top)] = {name: part for name, part in value.items() if name not in MEASURED}
    for pattern in ("*.npz", "*.safetensors", "figures/*", "tables/*", "claims/*"):
        for path in sorted(top.glob(pattern)):
            if path.is_file() and not path.stem.endswith(TIMES):
                found[path.relative_to(top)] = path.read_bytes()
    return found


def left_over(folder):
    """What nobody needs any more."""
    top = folder / "runs" / PROFILE
    found = [path for path in top.rglob("*") if path.name.endswith((".part", ".error"))]
    found += [path for path in (*top.glob("checkpoints/*"), *top.glob("locks/*")) if (top / f"{path.stem}.json").exists()]
    return [str(path.relative_to(top)) for path in found]


def compare(calm, wild):
    """The content that both have alike. Raises Trouble."""
    one, other = content(calm), content(wild)
    for what, names in (
        ("missing", one.keys() - other.keys()),
        ("too many", other.keys() - one.keys()),
        ("different", [name for name in one.keys() & other.keys() if one[name] != other[name]]),
        ("left over", left_over(wild)),
    ):
        if names:
            raise Trouble(f"{len(names)} {what}: {', '.join(sorted(map(str, names))[:5])}")
    return one


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, help="of the moments and victims (default: drawn, and printed)")
    parser.add_argument("--suite", default="28_position,29_precision", help="notebooks, with commas between them")
    parser.add_argument("--shortest", type=float, default=0.1, help="seconds to the next kill, at least")
    parser.add_argument("--longest", type=float, default=3.0, help="and at most; log-uniform between")
    parser.add_argument("--folder", type=Path, help="where to run (default: a temporary folder, removed if all went well)")
    parser.add_argument("words", nargs="*", metavar="FIELD=VALUE", help="settings of the suite (default: steps=200)")
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    print(f"seed {seed}, in {folder}", flush=True)

    def say(line):
        print(line, flush=True)

    words, notebooks = args.words or ["steps=200"], args.suite.split(",")
    try:
        lines = Campaign(folder, notebooks, words, args.kills, seed, args.shortest, args.longest, say).run()
    except Trouble as trouble:
        sys.exit(f"seed {seed}: {trouble} (all is kept in {folder})")
    print("\n".join(["", *lines]))
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
