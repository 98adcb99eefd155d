"""The command line: what a study would run, running it, how far it is, its report; a teacher for photos.

Each command imports what it needs: `fgkd --help` loads no other module of the package.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns 0 done, 1 failed, 2 bad input, 128 + signal interrupted.

    An error is a sentence; FGKD_DEBUG=1 raises it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    options = _parser().parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores one
            signal.signal(number, _interrupt)
    try:
        if "study" in options:
            from fgkd.study import load

            options.study = load(options.study)
        status = options.command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("fgkd: interrupted: finished runs are kept, the same command continues", file=sys.stderr)
        return 128 + (interrupt.args or (signal.SIGINT,))[0]
    except Exception as error:
        if os.environ.get("FGKD_DEBUG"):
            raise
        print(f"fgkd: {_sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1


def _sentence(error: Exception) -> str:
    """What went wrong, as a terminal may show it."""
    from fgkd.study.errors import printable

    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"'{error.filename}' cannot be used ({error.strerror}): check the path and who may use it"
        text += "; FGKD_RUNS names another folder for results"
    elif not isinstance(error, ValueError | OSError):
        text = f"{type(error).__name__}: {error}. This should not happen: FGKD_DEBUG=1 shows where it did"
    return printable(text)


def _interrupt(number: int, _) -> None:
    raise KeyboardInterrupt(number)


def plan(options: argparse.Namespace) -> int:
    """Print what the study consists of, what it takes, and what is left to run and why."""
    from fgkd.engine import cost, run, states, terminal

    study = options.study
    missing = run.missing_inputs(study)
    left = states.left(study)
    if all(map(os.path.isfile, study.plugins)):
        run.check_models(study, left)
    if not missing:
        run.check_weights(study, left)
    counts = cost.counts(study)
    estimate = cost.estimate(study, left, options.images_per_second)
    if options.json:
        terminal.show_json(counts | terminal.reasons_json(left) | {"lacking": missing} | estimate)
    else:
        terminal.show_plan(study, counts, estimate, left, missing)
    return 0


def run(options: argparse.Namespace) -> int:
    """Run what is left through Snakemake and papermill, build the report, print its answer."""
    from fgkd.engine import live, run, states, terminal

    study = options.study
    if options.retry_failed and not states.failed(states.rows(study)):
        print("nothing has failed", file=sys.stderr if options.json else sys.stdout)
    show = functools.partial(live.show, as_json=options.json)
    how = {"retry_failed": options.retry_failed, "profile": options.profile}
    status = run.run_left(study, show, cores=int(options.cores), **how)
    failed = terminal.show_failures(states.rows(study))
    if status and not failed:
        terminal.show_engine_log(study.folder / run.LOG, status)
    index = run.build_report(study)
    if options.json:
        failed_ids = [job.id for job in failed]
        live.print_json("end", status=int(status != 0), failed=failed_ids, report=str(index))
    else:
        terminal.show_results(study, index)
    return int(status != 0)


def status(options: argparse.Namespace) -> int:
    """Print each job's state, seconds and log."""
    from fgkd.engine import events, live, run, states, terminal

    study = options.study
    missing = run.missing_inputs(study)
    if options.watch and states.is_driven(study):
        happening = events.follow(study, lambda: states.is_driven(study))
        live.show(study, events.jobs(study), happening, as_json=options.json)
    rows = states.rows(study)
    value = terminal.status_json(study, rows) | {"lacking": missing}
    if options.json and options.watch:
        live.print_json("status", **value)
    elif options.json:
        terminal.show_json(value)
    else:
        terminal.show_status(study, rows, missing)
    return int(any(row["state"] == "failed" for row in rows.values()))


def report(options: argparse.Namespace) -> int:
    """Build the report from the records there are; print its path and its main tables."""
    from fgkd.engine import run, terminal

    study = options.study
    terminal.show_results(study, run.build_report(study, _path(options.out) if options.out else None))
    return 0


def pack(options: argparse.Namespace) -> int:
    """Write the records of a study to one file, as it is committed."""
    from fgkd.analysis import records

    print(f"packed {records.pack(options.study)}: with it alone, all is done in another clone")
    return 0


def export(options: argparse.Namespace) -> int:
    """Hand over a trained student, or a teacher: a folder for timm, with ONNX and a model card."""
    from fgkd.distillation import export

    study = options.study
    job = export.find_job(study, options.job)
    folder = export.hand_over(
        study.at(study.seed_of(job)), job, options.student, options.loss, _path(options.out)
    )
    print(f"handed over to {folder}: its README.md says what it is and how to load it")
    return 0


def choose(options: argparse.Namespace) -> int:
    """Choose a teacher for a folder of photos; hand over the student that it taught."""
    from fgkd.choose import run
    from fgkd.engine import terminal

    photos = _path(options.photos)
    folder = _path(options.out or f"{photos.name}-teacher")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out is '{folder}', which is a file: name a folder")
    parameters = {
        "photos": str(photos),
        "weights": options.weights and str(_path(options.weights)),
        "plugins": ",".join(str(_path(file)) for file in options.plugins.split(",") if file),
    }
    for name in ("student", "teachers", "recipe", "minutes", "verify", "size", "device"):
        parameters[name] = getattr(options, name)
    try:
        index = run.run(parameters, folder)
    except RuntimeError as error:
        print(f"fgkd choose: {error}", file=sys.stderr)
        return 1
    terminal.show_choice(folder, index)
    return 0


def data(options: argparse.Namespace) -> int:
    """Fetch, check and cache one of the paper's eight datasets, or list them."""
    from fgkd.data import fetching, official
    from fgkd.engine import terminal

    if options.list or options.key is None:
        terminal.show(terminal.frame_table(official.overview()))
        return 0
    if options.resize < 1:
        raise ValueError(f"--resize is {options.resize}: expected 1 or more")
    root = official.root_of(options.key, options.root)
    try:
        table = fetching.prepare(options.key, root, resize=options.resize)
    except KeyboardInterrupt:
        raise ValueError("interrupted: what was fetched is kept, the same command continues") from None
    terminal.show(terminal.frame_table(table))
    return int("wrong" in set(table.verdict))


def check(options: argparse.Namespace) -> int:
    """Check that records, weights, test logits, banks and caches on disk belong together."""
    from fgkd.distillation import check

    study = options.study
    counts, faults = check.check(study)
    for job, words in faults.items():
        print(f"{job.id}: {words}")
    checked = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(f"{len(faults) or 'none'} of these does not fit: {checked}")
    if faults and options.repair:
        check.repair(study, faults)
        print(f"what does not fit is removed: 'fgkd run {study.file}' computes it again")
    return int(bool(faults))


def bench(options: argparse.Namespace) -> int:
    """Measure what steps, views, metrics, banks and notebooks cost next to alternatives."""
    from fgkd.distillation import training
    from fgkd.engine import terminal
    from fgkd.study import PROJECT

    sys.path.insert(0, str(PROJECT / "benchmarks"))
    import measure  # outside the package, as the notebooks are

    results = measure.measure(training.device(options.device), only=options.only)
    if options.json:
        terminal.show_json(results)
    else:
        print(measure.table(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgkd", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, options in OPTIONS.items():
        words = command.__doc__
        sub = commands.add_parser(command.__name__, help=words, description=words)
        sub.set_defaults(command=command)
        for name, meaning, how in options:
            sub.add_argument(name, help=meaning, **how)
    return parser


def _path(text: str) -> Path:
    from fgkd.study.contents import absolute

    return Path(absolute(text))


def _checked(is_valid: Callable[[str], bool], expected: str) -> Callable[[str], str]:
    """What argparse calls with an option's text, which it returns unless it is refused."""

    def check(text: str) -> str:
        if not is_valid(text):
            raise argparse.ArgumentTypeError(f"'{text}' {expected}")
        return text

    return check


def _dataset(key: str) -> str:
    from fgkd.study import OFFICIAL

    if key not in OFFICIAL:
        raise argparse.ArgumentTypeError(f"'{key}' is unknown: expected one of {', '.join(OFFICIAL)}")
    return key


CORES = _checked(lambda text: text.isdecimal() and int(text) > 0, "is no number of cores: expected 1 or more")
PROFILE = _checked(
    lambda folder: (Path(folder) / "config.yaml").is_file(),
    "has no config.yaml: expected a folder such as profiles/slurm",
)
FLAG: dict[str, Any] = {"action": "store_true"}
FOLDER: dict[str, Any] = {"metavar": "FOLDER"}
TEXT: dict[str, Any] = {"default": ""}
DEVICE: dict[str, Any] = {"choices": ("auto", "cpu", "cuda"), "default": "auto"}
PART: dict[str, Any] = {"metavar": "PART"}
RECIPE: dict[str, Any] = {"choices": ("fz", "ft", "cal"), "default": "fz"}
SIZE: dict[str, Any] = {"type": int, "default": 0}
VERIFY: dict[str, Any] = {"type": int, "default": 2, "metavar": "K"}
STUDY: tuple[str, str, dict] = ("study", "a study's YAML file, or the name of one in runs/", {})
JSON: tuple[str, str, dict] = ("--json", "all of it as JSON", FLAG)
RATES = """throughput of all networks on one device, or a YAML or JSON file by timm name: 'model: 700' or
'model: {train: 700, forward: 2000}', and 'device: name' (default: as this study measured)"""
OPTIONS: dict[Callable, list[tuple[str, str | None, dict]]] = {  # of each command: name, meaning, how
    plan: [STUDY, JSON, ("--images-per-second", RATES, {"metavar": "NUMBER_OR_FILE"})],
    run: [
        STUDY,
        ("--json", "a line of JSON for each event, instead of a view", FLAG),
        ("--retry-failed", "run what failed, with what it needs, alone (default: all that is left)", FLAG),
        ("--profile", "Snakemake's for a cluster, such as profiles/slurm", FOLDER | {"type": PROFILE}),
        ("--cores", "CPU cores to use (default: all)", {"type": CORES, "default": os.cpu_count()}),
    ],
    status: [STUDY, JSON, ("--watch", "first show what an `fgkd run` does, until it ends", FLAG)],
    pack: [STUDY],
    report: [STUDY, ("--out", "of tables and report (default: the study's)", FOLDER)],
    export: [
        STUDY,
        ("job", "whose network: a job as `fgkd status` names it, distill/... or teacher/...", {}),
        ("--student", "of a distill job (default: the only one)", {}),
        ("--loss", "of a distill job (default: kd, and ce without a teacher)", {}),
        ("--out", "a new folder, or an earlier hand-over's", FOLDER | {"required": True}),
    ],
    choose: [
        ("photos", "a folder of photos: train/ and test/ with a folder per class, or one per class", {}),
        ("--student", "the small network to deploy, by its timm name", {"required": True}),
        ("--teachers", "these candidates alone (default: all)", TEXT | {"metavar": "A,B,C"}),
        ("--weights", "of the candidates (default: plugins' networks, else timm's hub)", FOLDER | TEXT),
        ("--plugins", "Python files that register networks with timm", TEXT | {"metavar": "A.py,B.py"}),
        ("--recipe", "of teachers: a linear head on frozen features, everything, with attention", RECIPE),
        ("--minutes", "for pilots (default: 30)", {"type": float, "default": 30.0}),
        ("--verify", "train the first K's student to its end and test it (default: 2; 0: no model)", VERIFY),
        ("--size", "pixels that the student sees (default: its own on a GPU, 96 on a CPU)", SIZE),
        ("--device", None, DEVICE),
        ("--out", "of the results (default: PHOTOS-teacher, here)", FOLDER),
    ],
    data: [
        ("key", "one of those that --list shows", {"nargs": "?", "type": _dataset, "metavar": "KEY"}),
        ("--list", "the eight: counts, terms, and what there is of each", FLAG),
        ("--root", "the dataset's folder (default: FGKD_DATA/KEY)", {}),
        ("--resize", "pixels of cached images (default: 300, the paper's)", {"type": int, "default": 300}),
    ],
    check: [STUDY, ("--repair", "remove what does not fit, so that it runs again (default: name it)", FLAG)],
    bench: [
        ("--device", "where networks run (default: a GPU where there is one)", DEVICE),
        ("--only", "step, student, views, metrics, bank, growth, notebook (default: all)", PART),
        JSON,
    ],
}


if __name__ == "__main__":
    sys.exit(main())
