"""Warm kernels: papermill runs notebooks in them, sees when they die, and takes them along when it is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fgkd import kernel


@pytest.fixture(scope="module")
def environment():
    with kernel.warm(dict(os.environ)) as environment:
        yield environment


@pytest.fixture
def start(environment, tmp_path):
    """(source lines) -> a papermill process that runs them, and the notebook that it writes."""
    processes = []

    def started(*sources):
        nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), tmp_path / "in.ipynb")
        command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "--cwd", str(tmp_path), "in.ipynb", "out.ipynb"]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        return process, tmp_path / "out.ipynb"

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def alive(pid):
    """Whether a process runs; one that ended and waits for its parent to notice does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_notebook_runs_in_a_fork_of_the_warm_process(start, tmp_path):
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


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_killing_papermill_ends_the_kernel(start, tmp_path):
    process, _ = start("import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\ntime.sleep(600)")
    assert wait_for((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not alive(pid))


def test_the_socket_is_its_owners_alone_and_goes_with_the_warm_process(environment):
    folder = environment["JUPYTER_PATH"].split(os.pathsep)[0]
    assert os.stat(folder).st_mode & 0o077 == 0 and os.stat(f"{folder}/socket").st_mode & 0o077 == 0
