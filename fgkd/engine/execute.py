"""papermill's command line with kernels that listen on no port.

    python -m fgkd.engine.execute NOTEBOOK OUTPUT -p NAME VALUE ...

papermill's kernels would listen on five TCP ports each, open to every user of the machine but for a key, and
taken from under one another in a race.  Here they talk over sockets in a folder that only its owner can open.
The kernel is forked from the warm process of `fgkd run`, or, on another machine or by hand, from one of its
own (`fgkd.engine.kernels`).
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from fgkd.engine import kernels

START_SECONDS = "86400"  # for a kernel to answer: on a slow disk its imports take minutes


class Portless(NBClientEngine):
    """papermill's own engine, its kernel manager told where to put sockets."""

    @classmethod
    def execute_notebook(cls, nb, *given, **options):
        # Names alone: the paths would say who ran it, and where.
        paths = {
            name: os.path.basename(nb.metadata.papermill[name]) for name in ("input_path", "output_path")
        }
        nb.metadata.papermill.update(paths)
        return super().execute_notebook(nb, *given, **options)

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        with tempfile.TemporaryDirectory(prefix="fgkd-", dir=os.environ["FGKD_SOCKETS"]) as folder:
            manager = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            config = Config({"KernelManager": manager})
            return super().execute_managed_notebook(nb_man, kernel_name, config=config, **options)


def main(notebook: str, output: str, *words: str) -> None:
    """Execute the notebook; words: papermill's further ones."""
    ending = os.path.abspath(os.environ["FGKD_EXIT"]) if "FGKD_EXIT" in os.environ else None
    if ending:
        os.environ["FGKD_EXIT"] = ending
        _forget_earlier_run(Path(ending))
    papermill_engines.register("portless", Portless)
    options = ["-k", "python3", "--engine", "portless", "--no-progress-bar", "--log-level", "WARNING"]
    # papermill takes paths for templates.
    paths = [path.replace("{", "{{").replace("}", "}}") for path in (notebook, output)]
    with _kernels():
        try:
            papermill([*options, "--start-timeout", START_SECONDS, *paths, *words])
        except PapermillExecutionError:  # the notebook holds it
            raise
        except Exception as error:
            if ending:
                _add_error(Path(ending), error)
            raise


@contextlib.contextmanager
def _kernels():
    """Take kernels from the warm process that there is, or from one of this process's own."""
    if os.path.isdir(os.environ.get("FGKD_SOCKETS", "")):
        yield
    else:
        with kernels.warm(dict(os.environ)) as (environment, _):
            os.environ.update(environment)
            yield


def _forget_earlier_run(ending: Path) -> None:
    """Delete what an earlier run of the job left that says nothing of this one: its end, its progress."""
    ending.unlink(missing_ok=True)
    for pattern in ("progress.json", "students/*/*/progress.json"):
        for file in ending.parent.glob(pattern):
            file.unlink(missing_ok=True)


def _add_error(ending: Path, error: Exception) -> None:
    """Note beside how the kernel ended why papermill gave up, which its notebook does not say."""
    value = {"exit_status": 0, "peak_memory_mb": 0}
    with contextlib.suppress(OSError):  # a full disk, say: the engine's log has it
        if ending.exists():
            value = json.loads(ending.read_text())
        ending.write_text(json.dumps(value | {"error": f"its notebook did not run: {error}"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
