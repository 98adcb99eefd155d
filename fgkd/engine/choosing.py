"""`fgkd choose`: a papermill run of notebook 08, its progress in the terminal, and its page."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fgkd import records
from fgkd.choose import LOG, NOTEBOOK, page
from fgkd.engine import kernels, states
from fgkd.study import PROJECT, StudyError

POLL_SECONDS = 0.5
BAD_INPUT = ("StudyError", "DataError", "UnreadableImages", "OSError")


def run(parameters: dict[str, str | int | float], folder: Path) -> Path:
    """Run the notebook with these parameters, print its progress, write its page; return that.

    folder: of the results.
    Raises StudyError where another run works in the folder, or the notebook refuses its input, and
    RuntimeError where it fails otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".choose", "w") as lock:
        if not states.try_lock(lock):
            raise StudyError(f"another run works in '{folder}': wait for it, or name another --out")
        executed = folder / f"{NOTEBOOK}.ipynb"
        for file in (executed, folder / LOG):
            file.unlink(missing_ok=True)
        status = _execute(parameters | {"out": str(folder)}, folder, lock.fileno())
        if status:
            raise _error(executed, folder)
        return page.write(folder, executed)


def _execute(parameters: dict[str, str | int | float], folder: Path, lock: int) -> int:
    """Run papermill in a group that ends with this process, and print what it says; its exit status."""
    notebook = PROJECT / "notebooks" / f"{NOTEBOOK}.ipynb"
    words = [str(notebook), str(folder / f"{NOTEBOOK}.ipynb")]
    for name, value in parameters.items():
        words += ["-r" if isinstance(value, str) else "-p", name, str(value)]
    environment = kernels.homes(folder) | {
        "FGKD_RUNS": str(folder),
        "FGKD_EXIT": str(folder / "exit.json"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [sys.executable, "-m", "fgkd.engine.execute", *words]
    with kernels.started(command, folder / "engine.log", environment, lock) as process:
        for line in _follow(folder / LOG, process):
            print(line, flush=True)
    return process.returncode


def _follow(log: Path, process: subprocess.Popen) -> Iterator[str]:
    """Whole lines of a file as it grows, until the process has ended."""
    position = 0
    has_ended = False
    while not has_ended:
        has_ended = process.poll() is not None
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as lines:
            lines.seek(position)
            for line in lines:
                if line.endswith(b"\n"):
                    position += len(line)
                    yield line.decode().rstrip("\n")
        if not has_ended:
            time.sleep(POLL_SECONDS)


def _error(executed: Path, folder: Path) -> Exception:
    """What the notebook failed of: StudyError where it refused its input."""
    failure = states.first_error(records.read_json(executed) or {})
    if failure is None:
        log = folder / "engine.log"
        return RuntimeError(
            f"its kernel was killed, or ran out of memory: see '{log}'; the same command goes on"
        )
    name, _, message = failure.partition(": ")
    if name in BAD_INPUT:
        return StudyError(message)
    return RuntimeError(f"{failure}; the notebook as far as it came is '{executed}'")
