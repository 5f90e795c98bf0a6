"""The faults that the suite must survive, and the table of the tests that show it: fault -> tests -> result."""

import collections

FAULTS = {
    "F1": ("same settings and seed in two processes",
           "equal tensors, rows and key"),
    "F3": ("SIGKILL at a random step; every operator, pretext and input, with augmentation",
           "the result equals that of an undisturbed run; no step is repeated or missing"),
    "F4": ("SIGKILL while a checkpoint is written",
           "the one before it loads, nothing torn under a final name, leftovers removed"),
    "F5": ("newest checkpoint truncated, or a byte flipped",
           "named, the one before it used; with none left an error, never a silent restart"),
    "F6": ("SIGTERM, SIGINT, SIGKILL or an interrupted cell in any phase",
           "the process ends at once, with the exit code of the signal; the next call ends equal to an undisturbed run"),
    "F7": ("a second signal while a checkpoint is written",
           "the one before it stays, nothing torn"),
    "F8": ("a signal to `biasnb reproduce`",
           "the command ends at once and leaves no process; the next call resumes"),
    "F9": ("the kernel of a notebook killed",
           "named as killed, the other notebooks go on"),
    "F10": ("disk full while anything is written",
           "non-zero exit naming the path, earlier files byte-identical"),
    "F11": ("loss or gradient not finite",
           "stopped before the update, diverged with step and last loss, shown in tables and in no average"),
    "F12": ("two processes start one run",
           "one record, the other waits for it; without file locks both write the same files"),
    "F14": ("a worker of a sweep killed, its task started again, also twice",
           "one complete record"),
    "F15": ("malicious pickle as checkpoint, weights or data",
           "refused, payload not run"),
    "F16": ("checkpoint of other settings or an older schema",
           "refused naming the fields that differ"),
    "F17": ("unknown, misspelt, mistyped or missing parameter",
           "refused before a kernel starts, exit 2, nothing written"),
    "F18": ("a notebook without its tag or kernelspec",
           "`make lint` fails, the runner refuses"),
    "F19": ("a cell leaves the kernel or takes too long",
           "failed, never done"),
    "F20": ("a finished suite started again",
           "nothing trained, figures byte-identical"),
    "F21": ("a record of a table missing",
           "a gap with n per cell, exit 3"),
    "F22": ("corrupt or partial download; two at once",
           "fetched again once, then an error; one download"),
    "F23": ("read-only results, no network, no GPU, no home",
           "figures work, training says what it needs"),
    "F25": ("locale, time zone, path with spaces and umlauts",
           "same key, same results"),
    "T1": ("Papermill: an unknown parameter only warns",
           "refused, the nearest name suggested"),
    "T2": ("Papermill: an annotated parameter is not seen",
           "read from the syntax tree"),
    "T3": ("Papermill: types are guessed",
           "typed by the notebook's defaults and the Config"),
    "T4": ("Papermill: without a parameters cell the defaults win",
           "refused"),
    "T5": ("Papermill: sys.exit(0) half-way is a success",
           "success is the promised records"),
    "T6": ("Papermill: after a time-out all cells read completed",
           "own state: failed, with the reason"),
    "T7": ("Papermill: a failing write destroys the output before it",
           "attempt beside it, then renamed"),
    "T8": ("Papermill: SIGTERM does not reach the kernel",
           "the kernel ends with whoever runs it"),
    "T9": ("Papermill: two runs on one output, the last wins",
           "the second waits for the first"),
    "T10": ("Papermill: the kernel depends on the machine",
           "this interpreter"),
    "T11": ("Papermill: progress bars stay at zero in a log",
           "plain lines"),
    "T12": ("nbstripout keeps paths in metadata",
           "stripped"),
}  # fmt: skip


class Table:
    """Plugin: collects the results of all tests marked `fault`, shows the table, and writes it with --faults=PATH."""

    def pytest_addoption(self, parser):
        parser.addoption("--faults", metavar="PATH", help="write the table fault -> tests -> result there, as Markdown")

    def pytest_collection_modifyitems(self, items):
        for item in items:
            item.user_properties += [("fault", mark.args[0]) for mark in item.iter_markers("fault")]

    def pytest_terminal_summary(self, terminalreporter, config):
        found = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
        for outcome in ("passed", "failed", "error", "skipped"):
            for report in terminalreporter.stats.get(outcome, ()):
                for name, fault in getattr(report, "user_properties", ()):
                    if name == "fault":
                        why = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}" if outcome == "skipped" else outcome
                        found[fault][report.nodeid.partition("[")[0].removeprefix("tests/")][why] += 1
        if found:
            terminalreporter.section("faults")
            for line in plain(found):
                terminalreporter.write_line(line)
        if path := config.getoption("--faults"):
            with open(path, "w", encoding="utf-8") as file:
                file.write(markdown(found))


def result(counts):
    if counts.keys() == {"passed"}:
        return f"{counts['passed']} passed"
    return ", ".join(f"{n} {outcome}" if outcome in ("passed", "failed", "error") else outcome for outcome, n in counts.items())


def plain(found):
    for fault in filter(found.get, FAULTS):
        yield f"{fault:4} {FAULTS[fault][0][:70]:70} {result(sum(found[fault].values(), collections.Counter()))}"


def markdown(found):
    lines = [
        "# Faults and how they end",
        "",
        "This page lists the faults that the suite survives, what must happen in each case, and the tests that show it.",
        "`make faults` writes it from a run of these tests, with real processes and real signals. The numbers of faults that",
        "no longer exist, such as one network trained by several processes, are not used again.",
        "",
        "| | fault | expected | test | result |",
        "|---|---|---|---|---|",
    ]
    for fault, (what, expected) in FAULTS.items():
        for i, (test, counts) in enumerate(sorted(found.get(fault, {"none": {"not run": 1}}).items())):
            first = (fault, what, expected) if i == 0 else ("", "", "")
            lines.append(f"| {' | '.join(first)} | `{test}` | {result(collections.Counter(counts))} |")
    return "\n".join([*lines, ""])
