"""Warm kernels: papermill runs notebooks in them, sees when they die, and takes them along when it is killed."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fgkd import kernel
from fgkd.study import PROJECT

PAPERMILL = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "--cwd", ".", "in.ipynb", "out.ipynb"]
SLEEP = "import os, time\nopen('pids.part', 'w').write(f'{os.getpid()} {os.getppid()}')\nos.rename('pids.part', 'pids')\ntime.sleep(600)"
DRIVER = f"""
import fcntl, os, subprocess, time
from fgkd import kernel
with open("lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with kernel.warm(dict(os.environ), (lock.fileno(),)) as (environment, group):
        papermill = subprocess.Popen({PAPERMILL}, env=environment, process_group=group)
        open("group", "w").write(f"{{group}} {{papermill.pid}}")
        time.sleep(600)
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


@pytest.fixture(scope="module")
def environment():
    with kernel.warm(dict(os.environ)) as (environment, _):
        yield environment


@pytest.fixture
def start(environment, tmp_path):
    """(source lines) -> a papermill process that runs them, and the notebook that it writes."""
    processes = []

    def started(*sources):
        write(tmp_path, *sources)
        process = subprocess.Popen(PAPERMILL, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        return process, tmp_path / "out.ipynb"

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def write(folder, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), folder / "in.ipynb")


def alive(pid):
    """Whether a process runs; one that ended and waits for its parent to notice does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_a_notebook_runs_in_a_fork_of_the_warm_process(start, tmp_path, wait_for):
    process, notebook = start(
        "import os, sys\npreloaded = 'fgkd.stages' in sys.modules\nimport fgkd.stages",
        "print(os.getpid(), preloaded, os.getcwd(), os.environ['FGKD_RUNS'], 'JPY_PARENT_PID' in os.environ)",
        "import torch\ntorch.ones(2, 2, requires_grad=True).sum().backward()\nopen('done', 'w').close()")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    pid, preloaded, *rest = nbformat.read(notebook, 4).cells[1].outputs[0].text.split()
    assert preloaded == "True" and rest == [os.path.realpath(tmp_path), os.environ["FGKD_RUNS"], "False"]
    assert (tmp_path / "done").exists() and wait_for(lambda: not alive(int(pid)))


def test_a_kernel_that_dies_ends_papermill_with_an_error(start):
    process, notebook = start("import os, signal\nprint('here', flush=True)", "os.kill(os.getpid(), signal.SIGKILL)", "print('never')")
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "DeadKernelError" in output
    assert not nbformat.read(notebook, 4).cells[2].outputs


@needs_proc
@pytest.mark.fault("papermill killed")
def test_killing_papermill_ends_the_kernel(start, tmp_path, wait_for):
    process, _ = start(SLEEP)
    assert wait_for((tmp_path / "pids").exists)
    kernel, _ = map(int, (tmp_path / "pids").read_text().split())
    assert alive(kernel)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not alive(kernel))


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_a_kernel_ends_with_the_process_that_forked_it(start, tmp_path, wait_for, number):
    process, _ = start(SLEEP)
    assert wait_for((tmp_path / "pids").exists)
    kernel, parent = map(int, (tmp_path / "pids").read_text().split())
    os.kill(parent, number)
    assert wait_for(lambda: not alive(kernel))
    assert "DeadKernelError" in process.communicate(timeout=60)[0] and process.returncode != 0


@needs_proc
@pytest.mark.fault("fgkd run killed")
def test_what_a_process_started_is_killed_with_it_and_a_lock_ends_with_the_last_kernel(tmp_path, wait_for):
    write(tmp_path, SLEEP)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    try:
        assert wait_for((tmp_path / "pids").exists, 60)
        kernel, _ = map(int, (tmp_path / "pids").read_text().split())
        server, papermill = map(int, (tmp_path / "group").read_text().split())
        os.kill(kernel, signal.SIGSTOP)
    finally:
        driver.kill()
        driver.wait()
    assert wait_for(lambda: not alive(server) and not alive(papermill)) and alive(kernel)
    with open(tmp_path / "lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(kernel, signal.SIGCONT)
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert wait_for(lambda: not alive(kernel))


def test_the_socket_is_its_owners_alone_and_goes_with_the_warm_process(environment):
    folder = environment["JUPYTER_PATH"].split(os.pathsep)[0]
    assert os.stat(folder).st_mode & 0o077 == 0 and os.stat(f"{folder}/socket").st_mode & 0o077 == 0


SLOT = """
import sys, time
from pathlib import Path
from fgkd.kernel import take_gpu
print(take_gpu(["3", "3", "5"], Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.mark.fault("a GPU's holder killed")
def test_no_more_runs_see_a_gpu_than_it_has_slots_and_a_killed_one_frees_its_own(tmp_path):
    holders = []
    try:
        for expected in ("3", "3", "5", None):
            holders.append(subprocess.Popen([sys.executable, "-c", SLOT, str(tmp_path)], stdout=subprocess.PIPE, text=True))
            if expected:
                assert holders[-1].stdout.readline() == f"{expected}\n"
        assert not select.select([holders[-1].stdout], [], [], 1)[0]
        holders[2].kill()
        assert holders[-1].stdout.readline() == "5\n"
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_a_notebook_and_its_kernel_listen_on_no_port(tmp_path):
    listening = "import psutil\n[str(c) for p in (psutil.Process(), *psutil.Process().parents()[:3]) for c in p.net_connections('inet') if c.status == 'LISTEN']"
    nbformat.write(new_notebook(cells=[new_code_cell(listening)], metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}), tmp_path / "in.ipynb")
    done = subprocess.run([sys.executable, "-m", "fgkd.execute", "in.ipynb", "out.ipynb"], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(PROJECT)})
    assert done.returncode == 0, done.stderr
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].data["text/plain"] == "[]"
