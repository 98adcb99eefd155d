"""Warm kernels: notebooks of a batch start from a process that has torch, timm and the figures imported.

A batch of small runs would spend most of its time on imports (about 5 CPU seconds a notebook).  Kernels are
therefore forks of Python's own `multiprocessing` forkserver, which imports once; jupyter_client asks `Forked`
for them, and the notebooks and their results are the same with and without it.

FGKD_WARM=0 starts each kernel as a new Python.  That is the default on macOS, where libraries that torch uses
may not survive a fork, and costs each notebook its imports; FGKD_WARM=1 forks there too.

Nothing outlives `fgkd run`, even when that is killed.  The engine watches a pipe whose other end `fgkd run`
alone holds, and kills its process group, to which the forkserver belongs; a kernel, which leads a session of
its own, ends with the engine.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import IO

import psutil
from filelock import AcquireReturnProxy, FileLock, Timeout
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from traitlets import Unicode

from fgkd.study import contents

SOCKET_PATH = 103  # characters of a socket's path that Linux (107) and macOS (103) both take
BELOW = 2 * len("/fgkd-abcdefgh") + len("/kernel-ipc-5")  # what `started`, `execute` and ZeroMQ add to it
HOMES = {  # where programs keep files below the home folder, unless a variable says where
    "XDG_CACHE_HOME": ".cache",
    "MPLCONFIGDIR": ".config/matplotlib",
    "IPYTHONDIR": ".ipython",
    "JUPYTER_CONFIG_DIR": ".jupyter",
    "JUPYTER_DATA_DIR": ".local/share/jupyter",
}
LOG_SECONDS = 5  # for the last lines of an engine to reach its log
LOG_LINES = 3  # of a log, shown where its engine ended
LOST = 255  # the exit status of a kernel whose forkserver was killed
SLOT_SECONDS = 0.2  # between two looks for a free GPU slot
SLOTS: list[AcquireReturnProxy] = []  # that this kernel holds


class Kernel:
    """A process of `multiprocessing` as jupyter_client expects one of `subprocess`."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process = process
        self.pid = process.pid
        self.peak_mb = 0

    def poll(self) -> int | None:
        """Its exit status, None while it runs; looks how much memory it takes."""
        with contextlib.suppress(psutil.Error):
            self.peak_mb = max(self.peak_mb, psutil.Process(self.pid).memory_info().rss >> 20)
        return self.process.exitcode

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)


class Forked(LocalProvisioner):
    """jupyter_client's own local provisioner, its kernels from the forkserver."""

    gpu = Unicode(config=True)  # 1: on the GPU of a slot, 0: on none, '': on those that there are
    ending = Unicode(config=True)  # the file that takes how the kernel ended
    kernel: Kernel | None = None

    async def launch_kernel(self, cmd, **options):
        """Start the kernel; returns how to reach it."""
        variables = options["env"] | {"FGKD_GPU": self.gpu}
        arguments = ["-f", self.parent.connection_file]
        given = (arguments, options.get("cwd") or os.getcwd(), variables)
        process = _context().Process(target=_run_kernel, args=given)
        process.start()
        self.process = self.kernel = Kernel(process)
        self.pid = self.pgid = process.pid
        return self.connection_info

    async def cleanup(self, restart=False):
        """Note how the kernel ended, and its peak memory."""
        await super().cleanup(restart)
        status = self.kernel.poll() if self.kernel else None
        if status == LOST:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.kernel.pid, signal.SIGKILL)
        if self.ending and status is not None:
            value = {"exit_status": status, "peak_memory_mb": self.kernel.peak_mb}
            with contextlib.suppress(OSError):  # worth knowing, and not worth failing for
                Path(self.ending).write_text(json.dumps(value))


def register() -> str:
    """Make `Forked` known to jupyter_client; its name there.

    Raises ValueError where FGKD_WARM is neither 0 nor 1.
    """
    _context()
    name, factory = "forked", KernelProvisionerFactory.instance()
    factory.provisioners[name] = EntryPoint(name, f"{__name__}:Forked", factory.GROUP_NAME)
    return name


class ForkedManager(AsyncKernelManager):
    """jupyter_client's own manager of a kernel, which `Forked` starts."""

    @property
    def kernel_spec(self):
        """The kernel's specification, which names its provisioner."""
        specification = super().kernel_spec
        specification.metadata["kernel_provisioner"] = {"provisioner_name": register()}
        return specification


@functools.cache
def _context():
    wish = os.environ.get("FGKD_WARM") or ("0" if sys.platform == "darwin" else "1")
    if wish not in ("0", "1"):
        raise ValueError(
            f"FGKD_WARM is {wish!r}: expected 1, to fork kernels from a warm process, or 0, a new Python each"
        )
    context = multiprocessing.get_context("forkserver" if wish == "1" else "spawn")
    if wish == "1":
        context.set_forkserver_preload(["fgkd.engine.warm"])
    return context


def _run_kernel(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """ipykernel's own program; never returns.  It ends with the process that asked for it."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)  # ipykernel's own watch, which knows no forkserver
    if os.environ["FGKD_GPU"] == "0":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif os.environ["FGKD_GPU"] == "1" and (slots := os.environ.get("FGKD_GPUS")):
        os.environ["CUDA_VISIBLE_DEVICES"] = take_gpu(slots.split(","), Path(os.environ["FGKD_RUNS"]))
    sys.path.insert(0, "")
    sys.argv = ["ipykernel_launcher", "--IPKernelApp.log_level=ERROR", *arguments]
    from ipykernel.iostream import IOPubThread
    from ipykernel.kernelapp import IPKernelApp

    # It would listen on a TCP port for what forks of the kernel print.
    setattr(IOPubThread, "_setup_pipe_in", _setup_no_pipe)  # noqa: B010  mypy refuses to assign to a method
    IPKernelApp.launch_instance()
    sys.stdout.flush()
    os._exit(0)  # at once: Python's own end takes seconds with torch imported


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _setup_no_pipe(thread) -> None:
    thread._pipe_flag = False


def take_gpu(slots: list[str], folder: Path) -> str:
    """Lock a free GPU slot until this process ends, waiting for one; returns the GPU's name.

    slots: a GPU's name for each run that it takes; folder: where the slots' locks lie.
    """
    while True:
        for number, gpu in enumerate(slots):
            with contextlib.suppress(Timeout):
                SLOTS.append(
                    FileLock(folder / f".gpu-{number}", fallback_to_soft=False).acquire(blocking=False)
                )
                return gpu
        time.sleep(SLOT_SECONDS)


@contextlib.contextmanager
def started(command: list[str], log: Path, environment: dict[str, str], *, outlives: bool = False):
    """Run an engine in the folder of its log, with kernels of its own; yields its process.

    outlives: it goes on when this process is killed; else it and all that it started ends with that, and its
    log names neither user, host nor home folder, however it ends.
    """
    with open(log, "wb") as out, _own_folder(log.parent) as temporary:
        environment = environment | {"FGKD_SOCKETS": temporary, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        if os.path.dirname(temporary) == tempfile.gettempdir():
            environment["TMPDIR"] = temporary  # what Snakemake leaves there when it is killed goes with it
        if not outlives:
            environment["FGKD_WATCH"] = "1"
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdin=subprocess.DEVNULL if outlives else subprocess.PIPE,
            stdout=out if outlives else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=None if outlives else 0,
        )
        copying = threading.Thread(target=_copy, args=(process.stdout, out), daemon=True)
        copying.start()
        try:
            yield process
            process.wait()
        finally:
            if process.stdin:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.stdin.close()
                process.wait()
            copying.join(LOG_SECONDS)


def _copy(lines: IO[bytes] | None, log: IO[bytes]) -> None:
    """Copy what an engine prints to its log; nothing where the engine writes there by itself."""
    with lines or contextlib.nullcontext(()) as printed:
        for line in printed:
            with contextlib.suppress(OSError, ValueError):  # a full disk, or the log's end: the run goes on
                log.write(conceal(line))
                log.flush()


def end_with_driver() -> None:
    """End this group of processes with the process that called `started`, if one did."""
    if os.environ.pop("FGKD_WATCH", None):
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(0, signal.SIGKILL)


def last_lines(log: Path) -> str:
    """The last lines of a log, indented; none where there is no log."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])


def conceal(text: bytes) -> bytes:
    """The text without the home folder, and the names of this user and of this host."""
    words = [(rb"(?<![\w.-])", os.path.expanduser("~").rstrip("/"), b"~")]
    with contextlib.suppress(KeyError):  # a container's user may have no name
        user = pwd.getpwuid(os.getuid())
        words += [(words[0][0], user.pw_dir.rstrip("/"), b"~"), (b"(?<=/)", user.pw_name, b"USER")]
    words.append((rb"(?<![\w-])", socket.gethostname(), b"HOST"))
    for before, word, other in words:
        if len(word) > 1:
            text = re.sub(before + re.escape(os.fsencode(word)) + rb"(?![\w-])", other, text)
    return text


def homes(folder: Path) -> dict[str, str]:
    """The environment, with places in a folder for what a home folder does not take."""
    home = os.path.expanduser("~")
    places = {}
    for name, place in HOMES.items():
        if not _takes_files(os.environ.get(name) or os.path.join(home, place)):
            places[name] = str(folder.resolve() / ".home" / place)
    kept = {"HF_HOME": "huggingface", "TORCH_HOME": "torch"}  # weights that are there can be read
    for name, place in kept.items():
        if "XDG_CACHE_HOME" in places and os.path.isdir(weights := os.path.join(home, ".cache", place)):
            places[name] = weights
    return os.environ | places


def _takes_files(folder: str) -> bool:
    """Whether a file can be made in a folder, or in the one above it that is there."""
    if not os.path.isabs(folder):  # there is no home folder
        return False
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _own_folder(place: Path):
    """The temporary folder of the runs in a place, which are one at a time, without what a killed one left.

    Raises OSError where another user has made one of this name.
    """
    name = contents.of_text(f"{os.getuid()} {place.resolve()}")[:8]
    folder = Path(sockets_folder(), f"fgkd-{name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sockets_folder() -> str:
    """The folder for temporary files, or /tmp where its path is too long for the sockets in it."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + BELOW <= SOCKET_PATH else "/tmp"
