"""papermill's command line with kernels that listen on no port.

    python -m fgkd.engine.execute NOTEBOOK OUTPUT -p NAME VALUE ...

papermill's kernels would listen on five TCP ports each, open to every user of the machine but for a key, and
taken from under one another in a race.  Here they talk over sockets in a folder that only its owner can open.
The kernel is forked from the warm process of `fgkd run`, or, on another machine or by hand, from one of its
own (`fgkd.engine.kernels`).
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

from fgkd.engine import kernels


class Portless(NBClientEngine):
    """papermill's own engine, its kernel manager told where to put sockets."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        with tempfile.TemporaryDirectory(prefix="fgkd-", dir=os.environ["FGKD_SOCKETS"]) as folder:
            manager = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            config = Config({"KernelManager": manager})
            return super().execute_managed_notebook(nb_man, kernel_name, config=config, **options)


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


if __name__ == "__main__":
    if "FGKD_EXIT" in os.environ:
        _forget_earlier_run(Path(os.environ["FGKD_EXIT"]))
    papermill_engines.register("portless", Portless)
    options = ["-k", "python3", "--engine", "portless", "--no-progress-bar", "--log-level", "WARNING"]
    with _kernels():
        papermill([*options, *sys.argv[1:]])
