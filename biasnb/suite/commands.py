"""The command line."""

import os
import shutil
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import click

from ..config import (
    PROFILES,
    BiasnbError,
    Config,
    ConfigError,
    check_names,
    check_profile,
    configure,
    fields_of,
    nearest,
    short,
)
from ..operators import MIXERS
from ..records import places
from ..records.files import write_atomic
from ..records.keys import key
from ..records.store import Store
from ..records.sweep import choose, knn, protocol
from ..sweep import executor, manifest

SETTINGS = "Settings are Config fields as FIELD=VALUE; a comma separates several values of a varied field: seed=0,1,2"
EVERY = 2  # seconds between updates of `status --watch`


class Incomplete(BiasnbError):
    """Raised when figures or verdicts were made from incomplete records."""

    exit_code = 3


# ---- arguments and options ------------------------------------------------------------------------------------------


class Commands(click.Group):
    def resolve_command(self, context, args):
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            known = list(self.commands)
            raise ConfigError(f"command: {short(args[0])} is not one of {known}; did you mean {nearest(args[0], known)!r}?")
        return super().resolve_command(context, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
def biasnb():
    """Reproducibility suite for On the Bias Against Inductive Biases."""


def command(name, example):
    """Register a subcommand whose help is the docstring of its function and an example."""

    def registered(function):
        takes_settings = any(parameter.name == "settings" for parameter in getattr(function, "__click_params__", ()))
        epilog = f"Example: biasnb {example}." + (f" {SETTINGS}." if takes_settings else "")
        return biasnb.command(name, epilog=epilog, short_help=function.__doc__.splitlines()[0])(function)

    return registered


def split(words):
    """Convert ['depth=2', 'lr=0.01'] to {'depth': '2', 'lr': '0.01'}. Raises ConfigError."""
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise ConfigError(f"{short(word)}: not FIELD=VALUE, e.g. depth=2")
        found[name] = value
    return found


def settings_argument(form):
    """Return a decorator that passes the arguments NAME=VALUE of a command to it as the dict `settings`."""

    def checked(context, argument, words):
        return split(words)

    return click.argument("settings", nargs=-1, metavar=f"[{form}]...", callback=checked)


def typed(settings):
    """Convert strings to values of Config fields. Raises ConfigError."""
    check_names(settings, fields_of())
    return {name: manifest.setting(name, value) for name, value in settings.items()}


def profile_option(default="quick", without="all published"):
    def checked(context, option, name):
        if name is not None:
            check_profile(name)
        return name

    words = f"{', '.join(PROFILES)} (default: {default or without})"
    return click.option("--profile", default=default, callback=checked, metavar="NAME", help=words)


def training_options(function):
    """Add the options of commands that train: the scheduler, and whether to write events. They are stored in environment
    variables, which workers and kernels inherit."""

    def scheduler(context, option, address):
        if address:
            os.environ[executor.SCHEDULER] = address

    def scheduler_file(context, option, path):
        if path and not Path(path).is_file():
            raise ConfigError(f"scheduler_file: {short(path)} is no file; start `dask scheduler --scheduler-file {path}` first")
        if path:
            os.environ[executor.SCHEDULER] = str(Path(path).resolve())

    def tensorboard(context, option, asked):
        if asked:
            from ..training import checkpoint

            os.environ["BIASNB_TENSORBOARD"] = "1"
            checkpoint.tensorboard()

    for name, callback, words in (
        ("--tensorboard", tensorboard, "also write events to runs/PROFILE/tensorboard, a folder per run"),
        ("--scheduler-file", scheduler_file, "train on the Dask scheduler that wrote this file"),
        ("--scheduler", scheduler, "train on this Dask scheduler, e.g. tcp://10.0.0.1:8786, not on this machine"),
    ):
        kind = {"is_flag": True} if callback is tensorboard else {"metavar": "FILE" if "file" in name else "ADDRESS"}
        function = click.option(name, callback=callback, expose_value=False, help=words, **kind)(function)
    return function


data_dir_option = click.option(
    "--data-dir", default="", metavar="FOLDER", help="folder of the images of a data set that is a folder"
)


# ---- training -------------------------------------------------------------------------------------------------------


@command("reproduce", "reproduce --profile quick")
@profile_option()
@click.option("--fresh", is_flag=True, help="start anew; earlier runs are set aside as runs/PROFILE.old1 and so on")
@training_options
@settings_argument("FIELD=VALUE")
def reproduce(profile, settings, fresh):
    """Train all runs, run every notebook, draw, and compare with the reference."""
    from .reproduce import reproduce

    if "profile" in settings:
        raise ConfigError(f"profile: give it as --profile {settings['profile']}, not as profile={settings['profile']}")
    reproduce(profile, settings, fresh)


@command("run", "run --profile quick mixer=igpt depth=4")
@profile_option()
@training_options
@settings_argument("FIELD=VALUE")
def run(profile, settings):
    """Train and evaluate one network."""
    cfg = configure(profile, **typed(settings))
    from ..training import run
    from ..training.loop import threads

    store = Store(profile)
    store.tidy()
    if os.environ.get(executor.SCHEDULER):
        executor.train([cfg], store)
    with threads(1):  # as workers do, so that a run gives the same result wherever it is trained
        record = run.run(cfg, store)
        if record["status"] == "diverged":
            raise BiasnbError(f"{record['key']}: diverged at step {record['steps']}; lower lr")
        baseline, start = run.baseline(cfg, store), run.init(cfg, store)
    chosen, at_start = choose([record["probe"]]), choose([start["probe"]])
    print(f"record       {store.path(key(cfg))}")
    psnr, accuracy = (record[name]["test"] for name in ("psnr", "accuracy"))
    if cfg.pretext == "bert":
        print(f"masked PSNR  {psnr:.2f} dB (visible-neighbour mean {baseline['psnr']['neighbour_mean']:.2f} dB)")
    elif psnr is not None:
        print(f"PSNR         {psnr:.2f} dB")
    if accuracy is not None:
        print(f"accuracy     {100 * accuracy:.1f} %")
    mean, best = chosen.mean(record["probe"]), chosen.best(record["probe"])
    print(f"probe        {100 * mean:.1f} %, mean over layers (random init {100 * at_start.mean(start['probe']):.1f} %)")
    print(f"k-NN         {100 * knn(record['probe']):.1f} %, mean over layers")
    print(f"best layer   {chosen.layer}: {100 * best:.1f} % (random init {100 * at_start.best(start['probe']):.1f} %)")
    print(protocol(record["probe"]))


@command("notebook", "notebook 20_trio --profile smoke seed=0,1")
@click.argument("name")
@profile_option(None, "the notebook's own")
@click.option("--cell-timeout", type=int, metavar="SECONDS", help="a cell that takes longer fails the notebook")
@training_options
@settings_argument("NAME=VALUE")
def notebook(name, profile, settings, cell_timeout):
    """Run one notebook with its parameters or settings, strictly checked."""
    from .notebooks import execute

    own = {"profile": profile} if profile else {}
    print(execute(name, {**own, **settings}, cell_timeout=cell_timeout))


@command("tune", "tune 21_cube --profile cifar10")
@click.argument("name")
@profile_option()
@training_options
@settings_argument("FIELD=VALUE")
def tune(name, profile, settings):
    """Search the learning rate of every operator of a notebook."""
    from ..sweep.search import tune

    _, sweep = manifest.asked(name, {"profile": profile, **settings})
    if not sweep or all(cfg.pretext == "none" for cfg in sweep.configs):
        raise ConfigError(f"notebook: {name!r} trains nothing that has a learning rate")
    for record in tune(sweep.configs, Store(profile)):
        tried = [f"{row['lr']:g}: {row['loss']:.4f}" if row["loss"] else f"{row['lr']:g}: diverged" for row in record["rates"]]
        print(f"{record['config']['mixer']:22} lr {record['chosen']:<8g} validation loss by rate: {', '.join(tried)}")
    print("use these rates with lr=tuned")


@command("plan", "plan --profile cifar10")
@profile_option()
@training_options
@settings_argument("FIELD=VALUE")
def plan(profile, settings):
    """Predict time, memory and FLOP of a profile from a calibration of one minute."""
    from ..sweep.estimate import predict

    rows, lines = predict(profile, settings)
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        print("  ".join(f"{row[name]!s:{'<' if name == 'notebook' else '>'}{width}}" for name, width in widths.items()))
    print("\n".join(lines))


# ---- reading records ------------------------------------------------------------------------------------------------


def check_complete(stores):
    """Print a line for every sweep with missing records. Raises Incomplete if there is one."""
    lacking = [(store, sweep, len(sweep.missing())) for store in stores for sweep in store.sweeps() if sweep.missing()]
    for store, sweep, n in lacking:
        print(f"{store.base}/{store.profile} {sweep.name}: {n} of {len(sweep.keys)} records are missing")
    if lacking:
        raise Incomplete(f"{len(lacking)} sweeps lack records and were shown with gaps; `biasnb status` says which and why")


def stores_of(profile, runs):
    """Return the stores of the user's runs or of the committed records, for one profile or, if it is None, for all."""
    from .publish import published

    if runs:
        return [Store(profile or "quick")]
    return [Store(name, "results") for name in published(profile) if profile in (None, name)]


runs_option = click.option("--runs", is_flag=True, help="from your runs in runs/PROFILE instead of results/")


@command("figures", "figures")
@profile_option(None)
@runs_option
def figures(profile, runs):
    """Draw tables and figures from records alone."""
    from ..evidence import claims
    from ..figures import board, write_card
    from .reproduce import draw
    from .sheet import gallery

    folder, stores = places.root() / "figures", stores_of(profile, runs)
    paths = draw(stores, folder)
    if not runs:
        every = stores_of(None, False)
        paths += board.write(claims.findings(every), folder)
        shown = [sweep for store in every for sweep in store.sweeps() if sweep.name == "40_reconstructions"]
        paths += write_card(shown, folder)
        write_atomic(folder / "README.md", gallery(folder))
    print("\n".join(str(path) for path in paths if path.suffix in (".png", ".md")) or "no records yet; run `biasnb reproduce`")
    check_complete(stores)


@command("claims", "claims --profile quick")
@profile_option(None)
@runs_option
def claims(profile, runs):
    """Decide every claim from records alone."""
    from ..evidence import claims
    from ..figures import board

    chosen = stores_of(profile, runs)
    stores, folder = (chosen, chosen[0].folder / "claims") if runs else (stores_of(None, False), places.root() / "figures")
    found = claims.findings(stores)
    paths = board.write(found, folder)
    for f in found:
        if profile in (None, f.profile):
            name = f"{f.claim.id:3} {f.metric:10} {f.profile:7} {f.verdict:13}"
            print(f"{name} {f.row + ': ' if f.row else ''}{f.effect}; n {f.n}; {f.why}")
    print("\n".join(str(path) for path in paths if path.suffix in (".md", ".png")))
    check_complete(stores)


@command("report", "report --profile quick")
@profile_option()
def report(profile):
    """Write your executed notebooks and the claims as static HTML."""
    from ..evidence import claims
    from .report import write

    store = Store(profile)
    print(write(store, claims.findings([store])))


@command("status", "status --watch")
@profile_option()
@click.option("--watch", is_flag=True, help=f"repeat every {EVERY} s until nothing is left to do")
@settings_argument("FIELD=VALUE")
def status(profile, settings, watch):
    """Show which runs and notebooks are done, running, failed or missing."""
    from .status import Screen, page

    if not watch:
        print("\n".join(page(profile, settings)))
        return
    screen, clear, goes_on = Screen(profile, settings), "\x1b[H\x1b[J" if sys.stdout.isatty() else "", True
    while goes_on:
        lines, goes_on = screen.page(*shutil.get_terminal_size((200, 60)))
        stamp = time.strftime(f"%H:%M:%S, every {EVERY} s, Ctrl-C ends")
        print(clear + "\n".join([stamp, *lines]), flush=True)
        time.sleep(EVERY if goes_on else 0)


@command("measure", "measure KEY --other KEY dataset=leaves")
@click.argument("key")
@profile_option()
@click.option("--other", metavar="KEY", help="another run on images of the same size, for CKA between the two")
@data_dir_option
@settings_argument("FIELD=VALUE")
def measure(key, profile, settings, other, data_dir):
    """Measure a trained network from its weights; with dataset=NAME also evaluate its features on that data set.

    KEY is a run in runs/PROFILE, see `biasnb status`."""
    from ..data.datasets import load
    from ..training import measures, run

    given = typed(settings)
    check_names(given, ("dataset", "data_dir"), "setting of the data set to transfer to")
    store = Store(profile)
    record, data, model = run.restore(key, store, data_dir)
    images = run.measured(data.test)
    print(f"{key}: {record['config']['mixer']}, depth {record['config']['depth']}, seed {record['config']['seed']}")
    print("\n".join(f"{name:18} {value}" for name, value in measures.network(model, images)[0].items()))
    if other:
        similarity = measures.cka_layers(model, images, run.restore(other, store, data_dir)[2])
        print(f"cka with {other}")
        print("\n".join("  " + " ".join(f"{value:6.3f}" for value in row) for row in similarity.tolist()))
    if given:
        found = measures.transfer(model, load(run.transfer_config(model.cfg, **given), model.mean.device))
        print(f"transfer: probe {100 * found['test']:.1f} % at layer {found['layer']}, LogME {found['logme']:.3f}")


@command("evaluate", "evaluate --profile quick")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@profile_option()
@data_dir_option
def evaluate(keys, profile, data_dir):
    """Evaluate records of an older protocol again, from saved weights.

    Only their probe and measures are written anew; nothing is trained. Without keys all records in runs/PROFILE are looked
    at."""
    from ..training import run
    from ..training.loop import threads

    with threads(1):
        for line in run.evaluate_again(keys, Store(profile), data_dir):
            print(line, flush=True)


# ---- publishing -----------------------------------------------------------------------------------------------------


@command("publish", "publish --profile quick")
@click.argument("names", nargs=-1, metavar="[SWEEP]...")
@profile_option()
@click.option("--networks", is_flag=True, help="also the weights of one network per preset and cell, for `verify`")
@data_dir_option
def publish(names, profile, networks, data_dir):
    """Make the records of a run the committed reference: of the sweeps named, or of all with the profile's own settings."""
    from .publish import publish, publish_networks

    count, left, dirty = publish(profile, names)
    if left:
        print(f"left out, as their settings are not the profile's (name them to publish them): {', '.join(left)}")
    if dirty:
        print(f"warning: {dirty} records were made from uncommitted code; run again from a clean commit to make them traceable")
    if networks:
        print(f"weights of {', '.join(publish_networks(profile, names, data_dir))}")
    print(
        f"{count} records of {profile} published; next run `biasnb figures` and `biasnb sheet`, inspect the figures and commit"
    )


@command("verify", "verify --profile quick")
@profile_option()
@data_dir_option
def verify(profile, data_dir):
    """Evaluate published networks again and compare with the records."""
    from .publish import verify

    rows = verify(profile, data_dir=data_dir)
    compared(rows)
    if all(row["agrees"] is None for row in rows):
        raise BiasnbError(f"profile: nothing of {profile!r} could be verified, as its data are not here; give --data-dir")


@command("check", "check 3 --profile quick")
@click.argument("count", type=click.IntRange(1))
@profile_option()
@data_dir_option
@click.option("--seed", type=int, help="seed of the random selection (default: a new one each time)")
def check(count, profile, data_dir, seed):
    """Train COUNT committed runs again, picked at random, and compare with their records."""
    from .publish import check

    compared(check(profile, count, seed, data_dir))


def compared(rows):
    """Print rows of `publish.COLUMNS`. Raises BiasnbError if a number differs from the record."""
    for row in rows:
        outcome = {True: "agrees", False: "DIFFERS", None: row["measured"]}[row["agrees"]]
        outcome += " to the digit" if row["agrees"] and row["measured"] == row["recorded"] else ""
        numbers = f"{row['recorded']:>18} {row['measured']:>18} {row['allowed']:9}"
        print(f"{row['network']:16} {row['metric']:10} {numbers} {outcome}")
    wrong = [f"{row['network']} {row['metric']}" for row in rows if row["agrees"] is False]
    if wrong:
        raise BiasnbError(f"{len(wrong)} of {len(rows)} numbers differ from the records: {', '.join(wrong)}")


@command("sheet", "sheet")
def sheet():
    """Fill REPRODUCIBILITY.md and the verdicts in notebooks from the committed records."""
    from .sheet import write

    for path in write():
        print(path)


@command("proofs", "proofs")
def proofs():
    """Measure the biases of every operator and write docs/operators.md."""
    from ..explore.checks import markdown

    text = markdown()
    write_atomic(places.root() / "docs" / "operators.md", text)
    print(text)


@command("lint", "lint")
def lint():
    """Check that every notebook can be run with parameters."""
    found, names = manifest.lint(), manifest.names()
    print("\n".join(found) or f"{len(names)} notebooks: each has one cell of literal parameters and its kernelspec")
    if found:
        raise BiasnbError(f"{len(found)} of {len(names)} notebooks cannot be run with parameters")


@command("list", "list")
def listing():
    """List notebooks, profiles, operators and settings."""
    print("Notebooks")
    for name in manifest.names():
        print(f"  {name:20} {manifest.question(name)}")
    print("\nProfiles")
    for name, profile in PROFILES.items():
        print(f"  {name:20} {profile['about']}; depths {profile['trio']['depth']}, {len(profile['trio']['seed'])} seeds")
    print("\nMixing operators\n  " + ", ".join(MIXERS))
    print("\nSettings (FIELD=VALUE) and their defaults")
    for field in fields(Config):
        choices = field.metadata["choices"]
        allowed = " | ".join(map(str, choices)) if choices else f"{field.type.__name__}"
        print(f"  {field.name:14} {field.default!s:12} {field.metadata['meaning']} ({allowed})")


# ---- the program ----------------------------------------------------------------------------------------------------


def main(words=None):
    """Run a command and return its exit code. Without `words`, the arguments come from the shell, and signals and a closed pipe
    end the process by their default action, without clean-up."""
    program = words is None
    if program:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        quiet = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]  # no warning after a signal ends the process
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, quiet))
        if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":  # allow paths such as ü
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape characters that the terminal cannot encode, as on stderr
    try:
        code = called(sys.argv[1:] if program else words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not program:
            raise
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # not earlier, because Dask must survive lost connections
        os.kill(os.getpid(), signal.SIGPIPE)


def called(words):
    """Run a command and return its exit code. An error is printed to stderr in one line."""
    try:
        with biasnb.make_context("biasnb", list(words)) as context:
            biasnb.invoke(context)
    except click.exceptions.Exit as end:  # raised by --help
        return end.exit_code
    except click.ClickException as error:
        return trouble(usage(error), 2)
    except ConfigError as error:
        return trouble(error, 2)
    except BiasnbError as error:
        return trouble(error, getattr(error, "exit_code", 1))
    except BrokenPipeError:
        raise
    except OSError as error:
        return trouble(f"{error.filename or 'file'}: {error.strerror or error}", 1)
    return 0


def usage(error):
    """Return a one-line message for a usage error; for an unknown option it suggests the most similar one."""
    if isinstance(error, click.NoSuchOption) and error.ctx:
        parameters = error.ctx.command.get_params(error.ctx)
        known = [parameter.opts[-1] for parameter in parameters if isinstance(parameter, click.Option)]
        near = nearest(error.option_name, known)
        return f"{error.option_name}: no such option of `{error.ctx.command_path}`; did you mean {near}?"
    where = f" (see `{error.ctx.command_path} --help`)" if getattr(error, "ctx", None) else ""
    return " ".join(error.format_message().split()).rstrip(".") + where


def trouble(message, code):
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
