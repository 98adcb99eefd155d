"""`fgkd choose`: a papermill run of notebook 08, its progress in the terminal, and its page."""

from __future__ import annotations

import sys
from pathlib import Path

from fgkd import records
from fgkd.choose import LOG, NOTEBOOK, page
from fgkd.engine import events, kernels, states
from fgkd.study import PROJECT, StudyError

BAD_INPUT = ("StudyError", "DataError", "UnreadableImages", "OSError")


def run(parameters: dict[str, str | int | float], folder: Path) -> Path:
    """Run the notebook with these parameters, print its progress, write its page; return that.

    folder: of the results.
    Raises StudyError where another run works in the folder, or the notebook refuses its input, and
    RuntimeError where it fails otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = states.lock(folder / ".choose")
    if held is None:
        raise StudyError(f"another run works in '{folder}': wait for it, or name another --out")
    with held:
        executed = folder / f"{NOTEBOOK}.ipynb"
        for file in (executed, folder / LOG):
            file.unlink(missing_ok=True)
        status = _execute(parameters | {"out": str(folder)}, folder)
        if status:
            raise _error(executed, folder)
        return page.write(folder, executed)


def _execute(parameters: dict[str, str | int | float], folder: Path) -> int:
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
    with kernels.started(command, folder / "engine.log", environment) as process:
        for line in filter(None, events.tail(folder / LOG, lambda: process.poll() is None)):
            print(line, flush=True)
    return process.returncode


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
