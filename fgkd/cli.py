"""The command line: what a study would run, running it, how far it is, its report.

    fgkd plan runs/demo.yaml        how many trainings, banks, groups; images and hours; what is left to run
    fgkd run runs/demo.yaml         run what is left, then build the report
    fgkd status runs/demo.yaml      done, running, failed, waiting; seconds; where each log is
    fgkd report runs/demo.yaml      build the report anew from what there is
    fgkd data cub                   fetch, check and cache one of the paper's data sets; --list shows the eight
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fgkd import cost, kernel, tables
from fgkd import study as studies
from fgkd.study import PROJECT, Cell, Study, StudyError

POLL_SECONDS = 0.5


def main(words: list[str] | None = None) -> int:
    """Entry point of `fgkd`; returns the exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(words)
    try:
        return options.command(studies.load(options.study) if "study" in options else None, options)
    except (StudyError, ValueError, OSError) as error:
        print(f"fgkd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgkd: interrupted: finished runs are kept, the same command continues", file=sys.stderr)
        return 130


def plan(study: Study, options) -> int:
    """Print what the study consists of, what it takes, and what is left to run and why."""
    waiting = [c for c in study.cells() if state(study, c)["state"] != "done"]
    counts, takes = counted(study), cost.estimate(study, waiting, options.images_per_second)
    reasons = collections.Counter((c.notebook, why(study, c)) for c in waiting)
    if options.json:
        left = [{"notebook": notebook, "reason": reason, "number": number} for (notebook, reason), number in reasons.items()]
        print(json.dumps(counts | {"notebooks_left": len(waiting), "left": left} | takes, indent=1))
        return 0
    _check_models(study)
    for name, value in counts.items():
        print(f"{name.replace('_', ' '):28} {f'{value / 1e6:,.1f} MB' if name.endswith('bytes') else f'{value:,}'}")
    print("no more banks lie on disk at once than runs go on at once")
    _print_estimate(**takes)
    print(f"\n{counts['notebooks'] - len(waiting)} of {counts['notebooks']} notebooks are done" + ("; left to run:" if waiting else ""))
    for (notebook, reason), number in reasons.items():
        print(f"  {number:4} x {notebook:22} {reason}")
    _say_what_lacks(study)
    return 0


def run(study: Study, options) -> int:
    """Run what is left through Snakemake and papermill, then build the report and print the table that matters."""
    status = 0
    if options.retry_failed and not _failed(study):
        print("nothing has failed")
    elif any(state(study, c)["state"] != "done" for c in study.cells()):
        _check_models(study)
        _check_weights(study)
        with _only_driver(study) as lock:
            status = _engine(study, options.cores, lock, _failed(study) if options.retry_failed else (), options.profile)
    failed = _failed(study)
    for cell in failed:
        found = state(study, cell)
        print(f"\nfailed: {cell.id}\n  {found['error']}\n  {found['log']}", file=sys.stderr)
    if status and not failed:
        print(f"the engine ended with exit status {status}; its log is {study.folder / 'engine.log'}", file=sys.stderr)
    return report(study, options) or int(status != 0)


def status(study: Study, options) -> int:
    """Print one line a cell: its state, seconds and log."""
    rows = [{"cell": c.id} | state(study, c) for c in study.cells()]
    counts = collections.Counter(r["state"] for r in rows)
    for row in rows:
        seconds = f"{row['seconds']:8.1f} s" if row["seconds"] is not None else " " * 10
        print(f"{row['state']:12}{seconds}  {row['cell']:44}{row['log'] or ''}")
        if row["error"]:
            print(textwrap.indent("\n".join([row["error"], *_last_lines(row["log"])]), " " * 24))
    _say_what_lacks(study)
    print(", ".join(f"{n} {name}" for name, n in counts.items()))
    return int(counts["failed"] > 0)


def report(study: Study, options) -> int:
    """Build the report from the records there are; print its path and the table that matters."""
    from fgkd import report as pages

    index = pages.build(study, {c: state(study, c) for c in study.cells()})
    headline = tables.collect(study).get("headline")
    if headline is not None:
        print("\n" + headline.round(3).to_string(index=False))
    print(f"\nreport: {index}")
    return 0


def data(_, options) -> int:
    """Fetch, check and cache one of the paper's eight data sets, or list them."""
    from fgkd import official

    if options.list or options.key is None:
        print(_aligned(official.overview()))
        return 0
    if options.resize < 1:
        raise StudyError(f"--resize is {options.resize}: expected 1 or more")
    try:
        table = official.prepare(options.key, official.root_of(options.key, options.root), resize=options.resize)
    except KeyboardInterrupt:
        raise StudyError("interrupted: what was fetched is kept, the same command continues") from None
    print(_aligned(table))
    return int("wrong" in set(table.verdict))


def counted(study: Study) -> dict[str, int]:
    """How many runs and groups the study has, and the bytes of its banks."""
    cells = study.cells()
    per = collections.Counter(c.stage for c in cells)
    pretext = sum(c.dataset == studies.PRETEXT and c.stage == "teacher" for c in cells)
    trainings = {c: sum(len(study.losses_of(k, c.strategy)) for k in study.students) for c in cells if c.stage == "distill"}
    baselines = sum(n for c, n in trainings.items() if c.strategy == "CE")
    distillations = sum(trainings.values()) - baselines
    sizes = [cost.bank_bytes(study, c) for c in cells if c.stage == "bank"]
    teachers = per["teacher"] - pretext
    return {"pretext_trainings": pretext, "teacher_trainings": teachers, "banks": per["bank"], "distillations": distillations,
            "runs": teachers + distillations, "ce_baselines": baselines, "groups": distillations // (len(study.teachers) * len(study.seeds)),
            "notebooks": len(cells), "largest_bank_bytes": max(sizes, default=0), "bank_bytes": sum(sizes)}


def state(study: Study, cell: Cell) -> dict:
    """A cell's state (done, running, failed, interrupted, stale, waiting), seconds, log and error, from its files alone."""
    folder = study.path(cell)
    log = folder / f"{cell.notebook}.ipynb"
    found = {"state": "waiting", "seconds": None, "log": str(log) if log.exists() else None, "error": None}
    notebook = tables.read_json(log) or {}
    meta = notebook.get("metadata", {}).get("papermill", {})
    result = tables.read_json(folder / "result.json")
    ended = meta.get("end_time") or meta.get("exception")  # papermill may be killed after the notebook wrote its result
    if result and result.get("fingerprint") != study.fingerprint(cell):
        return found | {"state": "stale", "seconds": meta.get("duration")}
    if result and (ended or not log.exists()):
        return found | {"state": "done", "seconds": meta.get("duration")}
    if not (result or meta):
        return found
    if not ended:
        return found | {"state": "running" if _driven(study) else "interrupted"}
    return found | {"state": "failed", "seconds": meta.get("duration"), "error": _error(notebook) + _ending(folder)}


def why(study: Study, cell: Cell) -> str:
    """Why a cell that is not done is to run: its state, what changed in its own settings, or that something which it reads is made anew."""
    found = state(study, cell)
    if found["state"] != "stale":
        return {"waiting": "never ran", "failed": f"failed: {found['error']}", "interrupted": "was interrupted"}.get(found["state"], found["state"])
    now = json.loads(json.dumps(study.values(cell), default=str))
    record = tables.read_json(study.path(cell) / "record.json")
    before, now = _flat(record["provenance"]["parameters"] if record else now), _flat(now)
    changed = [f"{key} {before.get(key)} -> {now.get(key)}" for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "") or "what it reads is made anew"


def _flat(value, name: str = "") -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for k, v in value.items() for key, leaf in _flat(v, f"{name}.{k}" if name else str(k)).items()}


def _failed(study: Study) -> list[Cell]:
    return [c for c in study.cells() if state(study, c)["state"] == "failed"]


def _engine(study: Study, cores: int, lock: int, only: Sequence[Cell] = (), profile: str | None = None) -> int:
    """Snakemake in the process group that ends with this process, a progress bar over its finished cells; its exit status.

    only: the cells to run, with what they need; all unless given.  profile: a folder with Snakemake's settings for a cluster, whose nodes start
    plain kernels; without one the GPUs of this machine are shared out in slots.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile"), "--directory", str(study.folder), "--cores", str(cores),
               "--config", f"study={study.file}", "--keep-going", "--nolock", "--rerun-incomplete", "--rerun-triggers", "params", "--quiet", "progress",
               *(f"{study.path(c)}/result.json" for c in only)]
    threads = str(study.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "FGKD_RUNS": str(study.folder.parent.resolve()),
                                "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if os.environ.get("FGKD_DATA"):  # notebooks run in other folders
        environment["FGKD_DATA"] = os.path.abspath(os.environ["FGKD_DATA"])
    for cell in study.cells():
        if state(study, cell)["state"] != "done":  # made with other values, or its notebook was cut short: Snakemake is to make it anew
            (study.path(cell) / "result.json").unlink(missing_ok=True)
    if profile:
        command += ["--profile", os.path.abspath(profile)]
    elif slots := _gpu_slots(study):
        command += ["--resources", f"gpu={len(slots)}"]
        environment["FGKD_GPUS"] = ",".join(slots)
    engine = contextlib.nullcontext((environment, None)) if profile else kernel.warm(environment, (lock,))
    with open(study.folder / "engine.log", "w") as log, engine as (environment, group):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=group, pass_fds=[lock])
        _follow(study, process)
    return process.returncode


def _gpu_slots(study: Study) -> list[str]:
    """This machine's GPUs by name, each as often as runs share it; none where the study runs on the CPU."""
    import torch

    count = 0 if study.device == "cpu" else torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    return [name for name in names for _ in range(study.runs_per_gpu)]


def _follow(study: Study, process: subprocess.Popen) -> None:
    left = [c for c in study.cells() if state(study, c)["state"] != "done"]
    with tqdm(total=len(left), unit="notebook", desc=study.name, disable=not left) as bar:
        while left:
            ended = process.poll() is not None
            for cell in [c for c in left if (study.path(c) / "result.json").exists() and state(study, c)["state"] == "done"]:
                left.remove(cell)
                bar.write(f"  {cell.id:44} {_summary(study, cell)}")
                bar.update()
            if ended:
                break
            time.sleep(POLL_SECONDS)
    process.wait()


def _summary(study: Study, cell: Cell) -> str:
    found = tables.record(study, cell)
    row = found["rows"][0] if found and found["rows"] else {}
    parts = {"tac": "TAC {:.1%}", "ratio12": "R12 {:.3f}", "accuracy": "student {:.1%}"}
    return "  ".join(text.format(row[name]) for name, text in parts.items() if name in row)


def _error(notebook: dict) -> str:
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return f"{output['ename']}: {output['evalue']}"
    return "its kernel ended without an error message: it was killed, or ran out of memory"


def _ending(folder) -> str:
    """How the cell's kernel ended and its peak memory, where they are known."""
    found = tables.read_json(folder / "exit.json")
    if found is None:
        return ""
    ended = f"signal {-found['exit_status']}" if found["exit_status"] < 0 else f"exit status {found['exit_status']}"
    return f" ({ended}, peak memory {found['peak_memory_mb']:,} MB)"


def _last_lines(log: str, number: int = 3) -> list[str]:
    """The last lines that a notebook printed."""
    outputs = [o for cell in tables.read_json(Path(log))["cells"] for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    return [line.rpartition("\r")[2] for line in "".join("".join(o["text"]) for o in outputs).split("\n") if line.strip()][-number:]


@contextlib.contextmanager
def _only_driver(study: Study):
    """Refuse a second driver of the same study, and wait for what one that was killed left; yields a lock for the processes that are started.

    A lock ends with the last process that holds it, however that ends.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with open(study.folder / ".driver", "w") as driver, open(study.folder / ".engine", "w") as engine:
        if not _locked(driver):
            raise StudyError(f"study '{study.name}' is being run already: wait for it, or see 'fgkd status {study.file}'")
        if not _locked(engine):
            print("waiting for the processes of a run that was killed to end", file=sys.stderr)
            fcntl.flock(engine, fcntl.LOCK_EX)
        yield engine.fileno()


def _locked(file, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the file could be locked at once."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    return False


def _driven(study: Study) -> bool:
    with contextlib.suppress(FileNotFoundError), open(study.folder / ".driver") as driver:
        return not _locked(driver, fcntl.LOCK_SH)
    return False


def _check_models(study: Study) -> None:
    """Find unknown model names before anything runs."""
    from fgkd import models

    models.load_plugins(study.plugins)
    for model in (*study.teachers.values(), *study.students.values()):
        models.check_name(model.model)


def _check_weights(study: Study) -> None:
    for model in (*study.teachers.values(), *study.students.values()):
        studies.check_weights(model)


def _say_what_lacks(study: Study) -> None:
    """Print which weights' file a run needs and does not find; cells that were trained from it count as stale meanwhile."""
    try:
        _check_weights(study)
    except StudyError as error:
        print(f"lacking: {error}")


def _print_estimate(device: str | None, hours: float, hours_left: float, without_throughput: list[str], not_counted: list[str], networks: list[dict]) -> None:
    def shown(value, digits=0):
        return "-" if value is None else f"{value:,.{digits}f}"

    print(f"\n{'images through each network':40}{'forward+backward':>18}{'forward':>16}{'images a second':>20}{'hours':>10}{'left':>10}")
    for row in networks:
        rate = f"{shown(row['train_per_second'])} / {shown(row['forward_per_second'])}"
        print(f"{row['model']:40}{row['train']:18,}{row['forward']:16,}{rate:>20}{shown(row['hours'], 1):>10}{shown(row['hours_left'], 1):>10}")
    if device:
        print(f"hours of {device}: {'at least ' if without_throughput else ''}{hours:,.1f}, of which {hours_left:,.1f} are left; "
              "passes through networks only: decoding, metrics and the start of notebooks come on top")
    if without_throughput:
        names = ", ".join(without_throughput) if device else "these"
        print(f"no throughput is known of {names}: run some of their cells, or give --images-per-second")
    if not_counted:
        print(f"not counted: {', '.join(not_counted)}, whose images were not read yet")


def _aligned(table) -> str:
    """A table of text, its columns to the left."""
    return table.astype(str).apply(lambda column: column.str.ljust(column.str.len().max())).to_string(index=False, justify="left")


def _profile(folder: str) -> str:
    if not (Path(folder) / "config.yaml").is_file():
        raise argparse.ArgumentTypeError(f"'{folder}' has no config.yaml: expected a folder such as profiles/slurm")
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgkd", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (plan, run, status, report):
        sub = commands.add_parser(command.__name__, help=command.__doc__.split("\n")[0], description=command.__doc__)
        sub.add_argument("study", help="a study's YAML file, or the name of one in runs/")
        sub.set_defaults(command=command)
        if command is plan:
            sub.add_argument("--json", action="store_true", help="all of it as JSON")
            sub.add_argument("--images-per-second", metavar="NUMBER_OR_FILE", help="throughput of all networks on one device, or a YAML or JSON file by "
                             "timm name: 'model: 700' or 'model: {train: 700, forward: 2000}', and 'device: name' (default: as this study measured)")
        if command is run:
            sub.add_argument("--retry-failed", action="store_true", help="run again what failed, with what it needs, and nothing else (default: all that is left)")
            sub.add_argument("--profile", type=_profile, metavar="FOLDER", help="Snakemake's settings for a cluster, such as profiles/slurm")
            sub.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU cores to use (default: all)")
    sub = commands.add_parser("data", help=data.__doc__, description=data.__doc__)
    sub.add_argument("key", nargs="?", choices=studies.OFFICIAL, metavar="KEY", help=f"one of {', '.join(studies.OFFICIAL)}")
    sub.add_argument("--list", action="store_true", help="the eight sets, their counts and terms, and what there is of them")
    sub.add_argument("--root", help="where the set lies or is to lie (default: FGKD_DATA/KEY)")
    sub.add_argument("--resize", type=int, default=300, help="pixels of the cached square images (default: 300, the paper's)")
    sub.set_defaults(command=data)
    return parser


if __name__ == "__main__":
    sys.exit(main())
