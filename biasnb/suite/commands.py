"""The command line."""

import argparse
import os
import shutil
import sys
import time

from ..config import PROFILES, BiasnbError, ConfigError, check_names, check_profile, configure, fields_of, short
from ..operators import MIXERS
from ..records import places
from ..records.keys import key
from ..records.store import Store
from ..sweep.experiments import EXPERIMENTS, experiment

EPILOG = "Settings are Config fields as FIELD=VALUE; a comma separates several values of a varied field: seed=0,1,2"
EVERY = 2  # seconds between two looks of `status --watch`


class Incomplete(BiasnbError):
    """What was drawn or decided has gaps."""

    exit_code = 3


def settings(words):
    """['depth=2', 'lr=0.01'] -> {'depth': '2', 'lr': '0.01'}. Raises ConfigError."""
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise ConfigError(f"{short(word)}: not FIELD=VALUE, e.g. depth=2")
        found[name] = value
    return found


def typed(words):
    """Settings as values of the Config fields. Raises ConfigError."""
    from .parameters import parse_field

    given = settings(words)
    check_names(given, fields_of())
    return {name: parse_field(name, value) for name, value in given.items()}


def reproduce(args):
    from .reproduce import reproduce

    failed = reproduce(args.profile, settings(args.settings), args.fresh)
    if failed:
        raise BiasnbError(f"{len(failed)} of {len(EXPERIMENTS)} notebooks failed: {', '.join(failed)}")


def run(args):
    cfg = configure(args.profile, **typed(args.settings))
    from ..training import run

    store = Store(args.profile)
    store.tidy()
    record = run.run(cfg, store)
    if record["status"] == "diverged":
        raise BiasnbError(f"{record['key']}: diverged at step {record['steps']}; lower lr")
    baseline = run.baseline(cfg, store)
    chosen, start = record["probe"]["chosen"], record["init_probe"]["chosen"]
    print(f"record       {store.path(key(cfg))}")
    psnr, accuracy = (record[name]["test"] for name in ("psnr", "accuracy"))
    if cfg.pretext == "bert":
        print(f"masked PSNR  {psnr:.2f} dB (visible-neighbour mean {baseline['psnr']['neighbour_mean']:.2f} dB)")
    elif psnr is not None:
        print(f"PSNR         {psnr:.2f} dB")
    if accuracy is not None:
        print(f"accuracy     {100 * accuracy:.1f} %")
    print(f"probe        {100 * chosen['test']:.1f} % at layer {chosen['layer']} (random init {100 * start['test']:.1f} %)")


def tune(args):
    from ..sweep.search import tune

    given = typed(args.settings)
    configs = experiment(args.name).runs(args.profile, given)
    if not configs:
        raise ConfigError(f"notebook: {args.name!r} trains nothing that has a learning rate")
    for record in tune(configs, Store(args.profile)):
        tried = [f"{row['lr']:g}: {row['loss']:.4f}" if row["loss"] else f"{row['lr']:g}: diverged" for row in record["rates"]]
        print(f"{record['config']['mixer']:22} lr {record['chosen']:<8g} validation loss by rate: {', '.join(tried)}")
    print("use them with lr=tuned")


def proofs(args):
    from ..explore.checks import markdown
    from ..records.files import write_atomic

    text = markdown()
    write_atomic(places.root() / "docs" / "operators.md", text)
    print(text)


def measure(args):
    from ..data.datasets import load
    from ..training import run
    from ..training.measures import cka_layers, network, transfer

    given = typed(args.settings)
    check_names(given, ("dataset", "data_dir"), "setting of the data set to transfer to")
    store = Store(args.profile)
    record, data, model = run.restore(args.key, store, args.data_dir)
    images = run.measured(data.test)
    measures, _ = network(model, images)
    print(f"{args.key}: {record['config']['mixer']}, depth {record['config']['depth']}, seed {record['config']['seed']}")
    print("\n".join(f"{name:18} {value}" for name, value in measures.items()))
    if args.other:
        other = run.restore(args.other, store, args.data_dir)[2]
        print(f"cka with {args.other}")
        print("\n".join("  " + " ".join(f"{v:6.3f}" for v in row) for row in cka_layers(model, images, other).tolist()))
    if given:
        found = transfer(model, load(run.transfer_config(model.cfg, **given), model.mean.device))
        print(f"transfer: probe {100 * found['test']:.1f} % at layer {found['layer']}, LogME {found['logme']:.3f}")


def notebook(args):
    from .notebook import execute

    given = settings(args.settings)
    given.setdefault("profile", args.profile)
    print(execute(args.name, given, cell_timeout=args.cell_timeout))


def lint(args):
    from .parameters import lint

    found = lint()
    print("\n".join(found) or f"{len(EXPERIMENTS)} notebooks: each has one cell of literal parameters and its kernelspec")
    if found:
        raise BiasnbError(f"{len(found)} of {len(EXPERIMENTS)} notebooks cannot be run so")


def check_complete(stores):
    """Print a line for every sweep that lacks records. Raises Incomplete if there is one."""
    lacking = [(store, sweep, len(sweep.missing())) for store in stores for sweep in store.sweeps() if sweep.missing()]
    for store, sweep, n in lacking:
        print(f"{store.base}/{store.profile} {sweep.name}: {n} of {len(sweep.keys)} records are missing")
    if lacking:
        raise Incomplete(f"{len(lacking)} sweeps lack records and were shown with gaps; `biasnb status` says which and why")


def figures(args):
    from .reproduce import published, render, render_reference

    paths = render(Store(args.profile)) if args.runs else render_reference([args.profile] if args.profile else None)
    print("\n".join(str(path) for path in paths if path.suffix in (".png", ".md")) or "no records yet; run `biasnb reproduce`")
    check_complete([Store(args.profile)] if args.runs else [Store(name, "results") for name in published(args.profile)])


def claims(args):
    from ..evidence import claims
    from ..figures import board as verdicts
    from .reproduce import published

    if args.runs:
        stores, folder = [Store(args.profile)], Store(args.profile).folder / "claims"
    else:
        stores, folder = [Store(name, "results") for name in published(args.profile)], places.root() / "figures"
    found = claims.findings(stores)
    paths = verdicts.write(found, folder)
    for f in found:
        if args.profile in (None, f.profile):
            print(f"{f.claim.id:3} {f.metric:10} {f.profile:7} {f.verdict:12} {f.effect}; n {f.n}; {f.why}")
    print("\n".join(str(path) for path in paths if path.suffix in (".md", ".png")))
    check_complete(stores)


def report(args):
    from ..evidence import claims
    from .report import write

    store = Store(args.profile)
    print(write(store, claims.findings([store])))


def verify(args):
    from .verify import verify

    rows = verify(args.profile, data_dir=args.data_dir)
    for row in rows:
        outcome = {True: "agrees", False: "DIFFERS", None: row["measured"]}[row["agrees"]]
        outcome += " to the digit" if row["agrees"] and row["measured"] == row["recorded"] else ""
        numbers = f"{row['recorded']:>18} {row['measured']:>18} {row['allowed']:9}"
        print(f"{row['network']:12} {row['metric']:10} {numbers} {outcome}")
    wrong = [f"{row['network']} {row['metric']}" for row in rows if row["agrees"] is False]
    if wrong:
        raise BiasnbError(f"{len(wrong)} of {len(rows)} numbers differ from the records: {', '.join(wrong)}")
    if all(row["agrees"] is None for row in rows):
        raise BiasnbError(f"profile: nothing of {args.profile!r} could be verified, as its data are not here; give --data-dir")


def cost(args):
    from ..sweep.estimate import predict

    rows, lines = predict(args.profile, typed(args.settings))
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        print("  ".join(f"{row[name]!s:{'<' if name == 'notebook' else '>'}{width}}" for name, width in widths.items()))
    print("\n".join(lines))


def sheet(args):
    from .sheet import write

    print(write())


def publish(args):
    from .reproduce import publish

    count, left, dirty = publish(args.profile, args.names)
    if left:
        print(f"left out, as their settings are not the profile's (name them to publish them): {', '.join(left)}")
    if dirty:
        print(f"warning: {dirty} records were made from uncommitted code; run again from a clean commit to make them traceable")
    if args.networks:
        from .verify import publish as publish_networks

        print(f"weights of {', '.join(publish_networks(args.profile, args.data_dir))}")
    print(f"{count} records of {args.profile} published; now `biasnb figures` and `biasnb sheet`, look, and commit")


def listing(args):
    from dataclasses import fields

    from ..config import Config

    print("Notebooks")
    for name, e in EXPERIMENTS.items():
        print(f"  {name:20} {e.question}")
    print("\nProfiles")
    for name, profile in PROFILES.items():
        print(f"  {name:20} {profile['about']}; depths {profile['depths']}, {len(profile['seeds'])} seeds")
    print("\nMixing operators\n  " + ", ".join(MIXERS))
    print("\nSettings (FIELD=VALUE) and their defaults")
    for f in fields(Config):
        choices = f.metadata["choices"]
        allowed = " | ".join(map(str, choices)) if choices else f"{f.type.__name__}"
        print(f"  {f.name:14} {f.default!s:12} {f.metadata['meaning']} ({allowed})")


def status(args):
    from .status import Screen, page

    given = typed(args.settings)
    if not args.watch:
        return print("\n".join(page(args.profile, given)))
    screen, clear, goes_on = Screen(args.profile, given), "\x1b[H\x1b[J" if sys.stdout.isatty() else "", True
    while goes_on:
        lines, goes_on = screen.page(*shutil.get_terminal_size((200, 60)))
        stamp = time.strftime(f"%H:%M:%S, every {EVERY} s, Ctrl-C ends")
        print(clear + "\n".join([stamp, *lines]), flush=True)
        time.sleep(EVERY if goes_on else 0)


def parser():
    top = argparse.ArgumentParser("biasnb", description="Reproducibility suite for On the Bias Against Inductive Biases.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, action, words, example, profile="quick"):
        p = commands.add_parser(name, help=words, description=words, epilog=f"Example: biasnb {example}.")
        p.set_defaults(action=action)
        p.add_argument("--profile", default=profile, help=f"{', '.join(PROFILES)} (default: {profile or 'all published'})")
        return p

    def training(p):
        p.add_argument(
            "--tensorboard", action="store_true", help="also write events to runs/PROFILE/tensorboard, a folder per run"
        )

    def settable(p, metavar="FIELD=VALUE", **words):
        p.add_argument("settings", nargs="*", metavar=metavar, **words)
        p.epilog += f" {EPILOG}"

    p = command("reproduce", reproduce, "run every notebook, draw, and compare with the reference", "reproduce --profile quick")
    p.add_argument("--fresh", action="store_true", help="start anew; earlier runs are set aside as runs/PROFILE.old1 and so on")
    training(p)
    settable(p)
    p = command("run", run, "train and evaluate one network", "run --profile quick mixer=igpt depth=4")
    training(p)
    settable(p)
    p = command("notebook", notebook, "run one notebook, strictly checked", "notebook 20_trio --profile smoke seed=0,1")
    p.add_argument("name", help="a name from `biasnb list`")
    p.add_argument("--cell-timeout", metavar="SECONDS", type=int, help="a cell that takes longer fails the notebook")
    training(p)
    settable(p, metavar="NAME=VALUE", help="its parameters, or Config fields")
    p = command("tune", tune, "search the learning rate of every run of a notebook", "tune 21_cube --profile laptop")
    p.add_argument("name", help="a name from `biasnb list`")
    training(p)
    settable(p)
    p = commands.add_parser("proofs", help="measure what every operator is; writes docs/operators.md")
    p.set_defaults(action=proofs)
    p = command("measure", measure, "measures of a trained network, from its weights", "measure KEY --other KEY dataset=leaves")
    p.add_argument("key", help="key of a run in runs/PROFILE, see `biasnb status`")
    p.add_argument("--other", help="another run on images of the same size, for CKA between the two")
    p.add_argument("--data-dir", default="", help="where the data of the run lie, if it is a folder")
    settable(p, help="dataset=NAME (and data_dir) to transfer to")
    p = command("figures", figures, "draw tables and figures from records alone", "figures", profile=None)
    p.add_argument("--runs", action="store_true", help="from your runs in runs/PROFILE instead of results/")
    p = command("publish", publish, "make the records of a run the committed reference", "publish --profile quick")
    p.add_argument("names", nargs="*", metavar="GRID", help="grids to publish (default: all with the profile's own settings)")
    p.add_argument("--networks", action="store_true", help="also the weights of one network per preset and cell, for `verify`")
    p.add_argument("--data-dir", default="", help="where the data of the networks lie, if it is a folder")
    p = command("claims", claims, "decide every claim from records alone", "claims --profile quick", profile=None)
    p.add_argument("--runs", action="store_true", help="from your runs in runs/PROFILE instead of results/")
    p = command("report", report, "your executed notebooks and claims as static HTML", "report --profile quick")
    p = command("verify", verify, "re-evaluate published networks and compare with the records", "verify --profile quick")
    p.add_argument("--data-dir", default="", help="where the data of the networks lie, if it is a folder")
    p = command(
        "plan",
        cost,
        "time, memory and FLOP of a profile before it is trained, by a minute's calibration",
        "plan --profile laptop",
    )
    settable(p)
    p = commands.add_parser("lint", help="check that every notebook can be run with parameters", epilog="Example: biasnb lint")
    p.set_defaults(action=lint)
    p = commands.add_parser("sheet", help="fill REPRODUCIBILITY.md from the committed records", epilog="Example: biasnb sheet")
    p.set_defaults(action=sheet)
    p = commands.add_parser("list", help="notebooks, profiles, operators, settings", epilog="Example: biasnb list")
    p.set_defaults(action=listing)
    p = command("status", status, "which runs and notebooks are done, running, failed, missing", "status --watch")
    p.add_argument("--watch", action="store_true", help=f"again every {EVERY} s, until nothing is left to do")
    settable(p)
    return top


def main(words=None):
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a terminal that lacks a sign gets its number
    top = parser()
    args, late = top.parse_known_args(words)  # argparse takes no positional after an option that follows another
    if [word for word in late if word.startswith("-") or not hasattr(args, "settings")]:
        top.error(f"unrecognized: {' '.join(late)}")
    if late:
        args.settings += late
    if args.command in ("figures", "claims") and args.runs and args.profile is None:
        args.profile = "quick"
    try:
        if getattr(args, "profile", None) is not None:
            check_profile(args.profile)
        if getattr(args, "tensorboard", False):
            from ..training.checkpoint import tensorboard

            os.environ["BIASNB_TENSORBOARD"] = "1"  # processes that train inherit it
            tensorboard()
        args.action(args)
    except ConfigError as error:
        return trouble(f"error: {error}", 2)
    except BiasnbError as error:
        return trouble(f"error: {error}", getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        return trouble("\ninterrupted; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return trouble(f"error: {error.filename or 'file'}: {error.strerror or error}", 1)
    return 0


def trouble(line, code):
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
