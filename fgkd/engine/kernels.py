"""Warm kernels: notebooks of a batch start from a process that has torch, timm and the figures imported.

A batch of small runs would spend most of its time on imports (about 5 CPU seconds a notebook).  `fgkd run`
therefore starts one *warm* process, which imports once and forks a kernel for each notebook.  It stands in
for the kernelspec `python3` through JUPYTER_PATH alone: papermill's command line, the notebooks and their
results are the same with and without it.

The kernelspec runs this file as a light process that passes its arguments to the warm one, forwards signals,
and ends with the kernel's exit status; when it is killed, so is its kernel.  How a kernel ended and its peak
memory go to the file FGKD_EXIT names.  The socket is a file that only its owner can open.

FGKD_WARM=0 keeps the warm process from importing anything: it then starts each kernel as a new Python.  That
is the default on macOS, where libraries that torch uses may not survive a fork, and costs each notebook its
imports; FGKD_WARM=1 forks there too.  Locks, signals and peak memory are those of Linux and macOS; Windows
has none of them.

Nothing outlives `fgkd run`, even when that is killed.  The warm process watches a pipe whose other end
`fgkd run` alone holds, a kernel one that its parent alone holds, and the system closes a pipe with its
holder.  The warm process then kills its process group, to which the engine and papermill belong; a kernel,
which leads a session of its own, ends itself.
"""

import array
import contextlib
import fcntl
import functools
import io
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

SOCKET_PATH = 103  # characters of a socket's path that Linux (107) and macOS (103) both take
BELOW = 2 * len("/fgkd-abcdefgh") + len("/kernel-ipc-5")  # what `warm`, `execute` and ZeroMQ add to it
HOMES = {  # where programs keep files below the home folder, unless a variable says where
    "XDG_CACHE_HOME": ".cache",
    "MPLCONFIGDIR": ".config/matplotlib",
    "IPYTHONDIR": ".ipython",
    "JUPYTER_CONFIG_DIR": ".jupyter",
    "JUPYTER_DATA_DIR": ".local/share/jupyter",
}
KERNELSPEC = "kernels/python3/kernel.json"
LOG_LINES = 3  # of a log, shown where its engine ended
LOG_SECONDS = 5  # for the last lines of an engine to reach its log
START_SECONDS = 0.01  # between two looks whether the warm process listens
SLOT_SECONDS = 0.2  # between two looks for a free GPU slot


@contextlib.contextmanager
def warm(environment: dict[str, str], lock_fds: tuple[int, ...] = (), log=None):
    """Run a warm process; yields the environment of papermill, and the process group.

    In that environment papermill's `python3` kernels come from the warm process, which has imported all that
    it will.  Who joins the group is killed at the end, or when this process ends.
    lock_fds: descriptors that stay open until the last kernel ends, such as a lock's.
    log: where it prints to, by default where this process does.
    Raises ValueError where FGKD_WARM in the environment is neither 0 nor 1, and OSError where the warm
    process cannot start.
    """
    _forks(environment)
    with _own_folder() as folder:
        address = f"{folder}/socket"
        _write_kernelspec(Path(folder), address)
        server = subprocess.Popen(
            [sys.executable, "-m", "fgkd.engine.kernels", address],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,
            pass_fds=lock_fds,
        )
        try:
            while not os.path.exists(address):
                if server.poll() is not None:
                    raise ChildProcessError(
                        "the process that notebooks start from ended while it imported what they need "
                        f"(exit status {server.returncode})"
                    )
                time.sleep(START_SECONDS)
            paths = [folder, environment.get("JUPYTER_PATH")]
            own = {"FGKD_SOCKETS": folder, "JUPYTER_PATH": os.pathsep.join(filter(None, paths))}
            if os.path.dirname(folder) == tempfile.gettempdir():
                own["TMPDIR"] = folder  # what Snakemake leaves there when it is killed goes with it
            yield environment | own, server.pid
        finally:
            if server.stdin:
                server.stdin.close()
            server.wait()


@contextlib.contextmanager
def log_to(file: Path):
    """Yield what commands print to: a pipe to a file, without this user, host and home folder."""
    reading, writing = os.pipe()
    with open(file, "wb") as log:
        copying = threading.Thread(target=_copy, args=(reading, log), daemon=True)
        copying.start()
        try:
            with open(writing, "w") as pipe:
                yield pipe
        except ChildProcessError as error:
            copying.join(LOG_SECONDS)
            raise OSError(f"{error}; '{file}' ends with\n{last_lines(file)}") from None
        finally:
            copying.join(LOG_SECONDS)


def last_lines(log: Path) -> str:
    """The last lines of a log, indented; none where there is no log."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])


def _copy(reading: int, log: io.BufferedWriter) -> None:
    with open(reading, "rb") as lines:
        for line in lines:
            with contextlib.suppress(OSError):  # a full disk: the commands go on without a log
                log.write(conceal(line))
                log.flush()


def conceal(text: bytes) -> bytes:
    """The text without the home folder, and the names of this user and of this host."""
    for pattern, other in _personal().items():
        text = re.sub(pattern, other, text)
    return text


@functools.cache
def _personal() -> dict[bytes, bytes]:
    """Patterns of what says who runs this, and where; and what stands for it."""
    homes = {os.path.expanduser("~")}
    users = set()
    with contextlib.suppress(KeyError):  # a container's user may have no name
        user = pwd.getpwuid(os.getuid())
        homes.add(user.pw_dir)
        users.add(user.pw_name)
    words = {home.rstrip("/"): (rb"(?<![\w.-])", b"~") for home in homes}
    words |= dict.fromkeys(users, (b"(?<=/)", b"USER"))
    words[socket.gethostname()] = (rb"(?<![\w-])", b"HOST")
    patterns = {}
    for word, (before, other) in words.items():
        if len(word) > 1:
            patterns[before + re.escape(os.fsencode(word)) + rb"(?![\w-])"] = other
    return patterns


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


def start(
    command: list[str], log, environment: dict[str, str], group: int | None, lock: int, *, folder: Path
) -> subprocess.Popen:
    """Start a command without input in a folder, all that it prints going to a log.

    environment, group: as `warm` yields them; lock: a descriptor that stays open until the command ends.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        process_group=group,
        pass_fds=[lock],
    )


def _write_kernelspec(folder: Path, address: str) -> None:
    """A kernelspec `python3` that asks the warm process at `address` for its kernel."""
    spec = folder / KERNELSPEC
    spec.parent.mkdir(parents=True)
    value = {
        "argv": [sys.executable, "-I", "-S", __file__, address, "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    spec.write_text(json.dumps(value))


def _forks(environment: dict[str, str]) -> bool:
    """Whether kernels are forks of a process that has imported what they need."""
    wish = environment.get("FGKD_WARM") or ("0" if sys.platform == "darwin" else "1")
    if wish not in ("0", "1"):
        raise ValueError(
            f"FGKD_WARM is {wish!r}: expected 1, to fork kernels from a warm process, or 0, a new Python each"
        )
    return wish == "1"


@contextlib.contextmanager
def _own_folder():
    """A temporary folder, locked while this process lives; deletes those of dead ones."""
    parent = _sockets_folder()
    for other in Path(parent).glob("fgkd-" + "?" * 8):
        # One that has no kernelspec is no such folder, or another process is about to lock it.
        with contextlib.suppress(OSError):
            if (other / KERNELSPEC).exists() and other.stat().st_uid == os.getuid():
                with _lock(other):
                    shutil.rmtree(other)
    with tempfile.TemporaryDirectory(prefix="fgkd-", dir=parent) as folder, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not every file system has locks
            stack.enter_context(_lock(folder))
        yield folder


@contextlib.contextmanager
def _lock(folder):
    """Hold a folder's lock.  Raises OSError where another process holds it, or there are none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sockets_folder() -> str:
    """The folder for temporary files, or /tmp where its path is too long for the sockets in it."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + BELOW <= SOCKET_PATH else "/tmp"


def serve(address: str) -> None:
    """Import what notebooks import, then fork a kernel for each connection.

    Kills the process group when stdin closes.
    """
    # Since Python 3.12 a fork beside threads warns: the one of `_when_closed` reads a pipe and holds no lock.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    _when_closed(sys.stdin.fileno(), _kill_group)
    forks = _forks(dict(os.environ))
    if forks:
        import ipykernel.kernelapp  # noqa: F401
        import matplotlib_inline.backend_inline  # noqa: F401
        import seaborn  # noqa: F401

        from fgkd import stages  # noqa: F401
        from fgkd.report import plots  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    listener.bind(f"{address}.new")
    os.umask(old)
    listener.listen(64)
    os.rename(f"{address}.new", address)  # it is there once it can be asked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection, forks)
        connection.close()


def _handle(connection: socket.socket, forks: bool) -> None:
    """Fork the kernel, pass it the client's signals and the client its exit status; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (received := _receive(connection)) is None:
        os._exit(1)
    request, descriptors = received
    watched, own_end = os.pipe()  # its own end stays open until this process ends
    kernel = os.fork()
    if kernel == 0:
        connection.close()
        os.close(own_end)
        _become_kernel(request, descriptors, watched, forks)
    # Ends at once: Python's own end takes seconds with torch imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _when_closed(sys.stdin.fileno(), _kill_group)  # the warm process may have been killed before

    def forward():
        while number := connection.recv(1):
            os.kill(kernel, number[0])
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(kernel, signal.SIGKILL)

    threading.Thread(target=forward, daemon=True).start()
    _, wait_status, usage = os.wait4(kernel, 0)
    status = os.waitstatus_to_exitcode(wait_status)
    if file := request["environment"].get("FGKD_EXIT"):
        peak = usage.ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
        with contextlib.suppress(OSError):  # how it ended is worth knowing, and not worth failing for
            Path(file).write_text(json.dumps({"exit_status": status, "peak_memory_mb": peak}))
    with contextlib.suppress(OSError):
        connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _become_kernel(request: dict, descriptors: list[int], watched: int, forks: bool) -> None:
    """Take the client's place, then run the kernel in this process or in a new Python; never returns."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop("JPY_PARENT_PID", None)  # the kernel's parent is not papermill; `forward` ends it instead
    if not forks:
        os.set_inheritable(watched, True)
        module = ["-m", "fgkd.engine.kernels", "--kernel", str(watched)]
        os.execv(sys.executable, [sys.executable, *module, *request["arguments"]])
    sys.path.insert(0, "")
    _run_kernel(watched, request["arguments"])


def _run_kernel(watched: int, arguments: list[str]) -> None:
    """ipykernel's own program, on the GPU of a slot (FGKD_GPU=1) or without one (0); never returns.

    It ends with the process that holds the other end of the pipe `watched`.
    """
    _when_closed(watched, lambda: os._exit(1))
    if os.environ.get("FGKD_GPU") == "0":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif os.environ.get("FGKD_GPU") == "1" and (slots := os.environ.get("FGKD_GPUS")):
        os.environ["CUDA_VISIBLE_DEVICES"] = take_gpu(slots.split(","), Path(os.environ["FGKD_RUNS"]))
    sys.argv = ["ipykernel_launcher", "--IPKernelApp.log_level=ERROR", *arguments]
    from ipykernel.iostream import IOPubThread
    from ipykernel.kernelapp import IPKernelApp

    # It would listen on a TCP port for what forks of the kernel print.
    setattr(IOPubThread, "_setup_pipe_in", _setup_no_pipe)  # noqa: B010  mypy refuses to assign to a method
    IPKernelApp.launch_instance()
    sys.stdout.flush()
    os._exit(0)


def _setup_no_pipe(thread) -> None:
    thread._pipe_flag = False


def take_gpu(slots: list[str], folder: Path) -> str:
    """Lock a free GPU slot until this process ends, waiting for one; returns the GPU's name.

    slots: a GPU's name for each run that it takes; folder: where the slots' locks lie.
    """
    while True:
        for number, gpu in enumerate(slots):
            lock_fd = os.open(folder / f".gpu-{number}", os.O_CREAT | os.O_RDWR)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return gpu
            os.close(lock_fd)
        time.sleep(SLOT_SECONDS)


def _when_closed(pipe: int, act: Callable[[], None]) -> None:
    """Call `act` in a thread when no process holds the pipe's other end any more."""

    def watch():
        os.read(pipe, 1)
        act()

    threading.Thread(target=watch, daemon=True).start()


def _kill_group() -> None:
    os.kill(0, signal.SIGKILL)


def _receive(connection: socket.socket) -> tuple[dict, list[int]] | None:
    """The request of `connect` and its standard streams; None where it closed before it had asked."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not message.endswith(b"\n"):
        if not (more := connection.recv(1 << 20)):
            return None
        message += more
    return json.loads(message), list(array.array("i", descriptors))


def connect(address: str, *arguments: str) -> int:
    """Ask the warm process for a kernel and live as long as it does: the kernelspec's command."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError as error:
        sys.exit(f"the process that kernels start from was killed, or ran out of memory ({error})")
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    message = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [message], [0, 1, 2])
    connection.sendall(message[sent:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: connection.send(bytes([n])))
    parent = int(os.environ["JPY_PARENT_PID"])
    while not select.select([connection], [], [], 1)[0]:
        if os.getppid() != parent:  # papermill is gone, and with it all who would stop the kernel
            return 1
    status = connection.recv(1)
    return status[0] if status else 1


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    elif sys.argv[1] == "--kernel":
        _run_kernel(int(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(connect(*sys.argv[1:]))
