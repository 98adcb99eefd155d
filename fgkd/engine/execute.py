"""papermill with kernels that listen on no port.

    python -m fgkd.engine.execute NOTEBOOK OUTPUT '{"parameter": 1}'

papermill's kernels would listen on five TCP ports each, open to every user of the machine but for a key, and
taken from under one another in a race.  Here they talk over sockets in a folder that only its owner can open.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from fgkd.engine import kernels

START_SECONDS = 86_400  # for a kernel to answer: on a slow disk its imports take minutes


class Placeless(NBClientEngine):
    """papermill's own engine; the notebook does not say who ran it, and where."""

    @classmethod
    def execute_notebook(cls, nb, *given, **options):
        for name in ("input_path", "output_path"):
            nb.metadata.papermill[name] = os.path.basename(nb.metadata.papermill[name])
        return super().execute_notebook(nb, *given, **options)


def execute(
    notebook: str, output: str, parameters: dict[str, Any], *, gpu: str = "", ending: str = ""
) -> None:
    """Execute a notebook.

    gpu: 1 for the GPU of a free slot, 0 for none, '' for those that there are.
    ending: the file that takes how its kernel ended.
    Raises what papermill raises.
    """
    if ending:
        _forget_earlier_run(Path(ending))
    try:
        sockets = os.environ.get("FGKD_SOCKETS", "")
        sockets = sockets if os.path.isdir(sockets) else kernels.sockets_folder()
        with tempfile.TemporaryDirectory(prefix="fgkd-", dir=sockets) as folder:
            client = {"kernel_manager_class": kernels.ForkedManager}
            manager = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            papermill_engines.register("placeless", Placeless)
            papermill.execute_notebook(
                *(path.replace("{", "{{").replace("}", "}}") for path in (notebook, output)),  # no templates
                parameters,
                engine_name="placeless",
                kernel_name="python3",
                progress_bar=False,
                start_timeout=START_SECONDS,
                config=Config(
                    NotebookClient=client, KernelManager=manager, Forked={"gpu": gpu, "ending": ending}
                ),
            )
    except PapermillExecutionError:  # the notebook holds it
        raise
    except Exception as error:
        if ending and not str(error).startswith("Kernel died"):  # of which `Forked` notes more
            _add_error(Path(ending), error)
        raise


def _forget_earlier_run(ending: Path) -> None:
    """Delete what an earlier run of the job left that says nothing of this one: its end, its progress."""
    ending.unlink(missing_ok=True)
    for pattern in ("progress.json", "students/*/*/progress.json"):
        for file in ending.parent.glob(pattern):
            file.unlink(missing_ok=True)


def _add_error(ending: Path, error: Exception) -> None:
    """Note beside how the kernel ended why papermill gave up, which its notebook does not say."""
    value = {"exit_status": 0, "peak_memory_mb": 0, "error": f"its notebook did not run: {error}"}
    with contextlib.suppress(OSError):  # a full disk, say: the engine's log has it
        ending.write_text(json.dumps(value))


def main(notebook: str, output: str, parameters: str = "{}") -> None:
    """Execute a notebook; parameters: as JSON."""
    kernels.end_with_driver()
    gpu, ending = (os.environ.get(name, "") for name in ("FGKD_GPU", "FGKD_EXIT"))
    execute(notebook, output, json.loads(parameters), gpu=gpu, ending=ending)


if __name__ == "__main__":
    main(*sys.argv[1:])
