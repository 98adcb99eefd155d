"""`fgkd choose`: a papermill run of notebook 08, its progress in the terminal, and its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fgkd.analysis import records
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
    executed = folder / f"{NOTEBOOK}.ipynb"
    with held:
        for file in (executed, folder / LOG):
            file.unlink(missing_ok=True)
        notebook = PROJECT / "notebooks" / executed.name
        values = json.dumps(parameters | {"out": str(folder)})
        command = [sys.executable, "-m", "fgkd.engine.execute", str(notebook), str(executed), values]
        own = {"FGKD_RUNS": str(folder), "FGKD_EXIT": str(folder / "exit.json")}
        with kernels.started(command, folder / "engine.log", kernels.homes(folder) | own) as process:
            for line in filter(None, events.tail(folder / LOG, lambda: process.poll() is None)):
                print(line, flush=True)
        if process.returncode:
            raise _error(executed, folder)
        return page.write(folder, executed)


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
