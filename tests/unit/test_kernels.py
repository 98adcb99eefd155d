"""Warm kernels: papermill runs notebooks in them, sees when they die, and takes them along when killed."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fgkd.engine import kernels
from fgkd.study import PROJECT

EXECUTE = [sys.executable, "-m", "fgkd.engine.execute", "in.ipynb", "out.ipynb"]
SLEEP = """
import os, time
open('pids.part', 'w').write(f'{os.getpid()} {os.getppid()}')
os.rename('pids.part', 'pids')
time.sleep(600)
"""
DRIVER = f"""
import os, time
from pathlib import Path
from fgkd.engine import kernels
with kernels.started({EXECUTE}, Path("engine.log").absolute(), dict(os.environ)) as process:
    Path("engine").write_text(str(process.pid))
    time.sleep(600)
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT)}
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


@pytest.fixture
def start(tmp_path):
    """(source lines, variables) -> a papermill process that runs them, and the notebook that it writes."""
    processes = []

    def started(*sources, **variables):
        write(tmp_path, *sources)
        process = subprocess.Popen(
            EXECUTE,
            env=ENVIRONMENT | variables,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process, tmp_path / "out.ipynb"

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def write(folder, *sources):
    python3 = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata=python3), folder / "in.ipynb")


def alive(pid):
    """Whether a process runs; one that ended and waits for its parent to notice does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


STAGES = "fgkd.distillation.stages"


def test_a_notebook_runs_in_a_fork_of_the_warm_process(start, tmp_path, wait_for):
    process, notebook = start(
        f"import os, sys\npreloaded = '{STAGES}' in sys.modules\nimport {STAGES}",
        "print(os.getpid(), preloaded, os.getcwd(), os.environ['FGKD_RUNS'], 'JPY_PARENT_PID' in os.environ)",
        "import torch\ntorch.ones(2, 2, requires_grad=True).sum().backward()\nopen('done', 'w').close()",
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    pid, preloaded, *rest = nbformat.read(notebook, 4).cells[1].outputs[0].text.split()
    assert preloaded == "True" and rest == [os.path.realpath(tmp_path), os.environ["FGKD_RUNS"], "False"]
    assert (tmp_path / "done").exists() and wait_for(lambda: not alive(int(pid)))


def test_a_kernel_that_dies_ends_papermill_with_an_error(start):
    process, notebook = start(
        "import os, signal\nprint('here', flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "print('never')",
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "DeadKernelError" in output
    assert not nbformat.read(notebook, 4).cells[2].outputs


@needs_proc
@pytest.mark.fault("papermill killed")
@pytest.mark.parametrize("warm", ["0", "1"])
def test_killing_papermill_ends_the_kernel_and_all_that_it_came_from(start, tmp_path, wait_for, warm):
    process, _ = start(SLEEP, FGKD_WARM=warm)
    assert wait_for((tmp_path / "pids").exists, 60)
    kernel, parent = map(int, (tmp_path / "pids").read_text().split())
    assert alive(kernel) and (parent == process.pid) == (warm == "0")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not alive(kernel)) and wait_for(lambda: not alive(parent), 60)


@needs_proc
@pytest.mark.fault("the warm process killed")
def test_a_kernel_ends_with_the_process_that_forked_it(start, tmp_path, wait_for):
    process, _ = start(SLEEP)
    assert wait_for((tmp_path / "pids").exists, 60)
    kernel, parent = map(int, (tmp_path / "pids").read_text().split())
    os.kill(parent, signal.SIGKILL)
    assert wait_for(lambda: not alive(kernel))
    assert "DeadKernelError" in process.communicate(timeout=60)[0] and process.returncode != 0


@needs_proc
@pytest.mark.fault("fgkd run killed")
def test_what_a_process_started_is_killed_with_it(tmp_path, wait_for):
    write(tmp_path, SLEEP)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, env=ENVIRONMENT)
    try:
        assert wait_for((tmp_path / "pids").exists, 60)
        kernel, server = map(int, (tmp_path / "pids").read_text().split())
        engine = int((tmp_path / "engine").read_text())
    finally:
        driver.kill()
        driver.wait()
    assert wait_for(lambda: not alive(server) and not alive(engine) and not alive(kernel))


SLOT = """
import sys, time
from pathlib import Path
from fgkd.engine.kernels import take_gpu
print(take_gpu(["3", "3", "5"], Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.mark.fault("a GPU's holder killed")
def test_no_more_runs_see_a_gpu_than_it_has_slots_and_a_killed_one_frees_its_own(tmp_path):
    holders = []
    try:
        for expected in ("3", "3", "5", None):
            holders.append(
                subprocess.Popen(
                    [sys.executable, "-c", SLOT, str(tmp_path)], stdout=subprocess.PIPE, text=True
                )
            )
            if expected:
                assert holders[-1].stdout.readline() == f"{expected}\n"
        assert not select.select([holders[-1].stdout], [], [], 1)[0]
        holders[2].kill()
        assert holders[-1].stdout.readline() == "5\n"
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


LISTENING = """
import psutil
family = (psutil.Process(), *psutil.Process().parents()[:3])
[str(c) for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
"""


def execute(folder, *sources, variables):
    """Run the lines through the command that the engine uses; its end, and the values of the notebook's
    cells."""
    write(folder, *sources)
    done = subprocess.run(
        EXECUTE,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | variables,
    )
    if done.returncode:
        return done, []
    return done, [
        c.outputs[0].data["text/plain"]
        for c in nbformat.read(folder / "out.ipynb", 4).cells
        if c.get("outputs")
    ]


@pytest.mark.parametrize("warm", ["0", "1"])
def test_a_notebook_shows_the_same_and_listens_on_no_port_warm_or_not(tmp_path, warm):
    loaded = "import sys\n'torch' in sys.modules"
    columns = "import pandas\npandas.get_option('display.max_columns')"
    done, values = execute(
        tmp_path,
        loaded,
        LISTENING,
        columns,
        variables={"FGKD_WARM": warm, "FGKD_EXIT": str(tmp_path / "exit.json")},
    )
    assert done.returncode == 0, done.stderr
    assert values == [str(warm == "1"), "[]", "20"]
    ended = json.loads((tmp_path / "exit.json").read_text())
    assert ended["exit_status"] == 0 and ended["peak_memory_mb"] > 10


FILE = "import os\nfrom ipykernel.connect import get_connection_file\nget_connection_file()"


@pytest.mark.fault("a temporary folder with a long path")
@pytest.mark.parametrize("length", [62, 63, 90, 200])
def test_a_notebook_runs_whatever_the_length_of_the_temporary_folders_path(length, request):
    """62 characters is the longest below which the sockets lie in the folder itself."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(short))
    folder = Path(f"{short}/{'d' * (length - len(str(short)) - 1)}")
    folder.mkdir()
    where = f"{FILE}.startswith(os.environ['TMPDIR'])"
    done, values = execute(short, where, variables={"TMPDIR": str(folder), "FGKD_WARM": "0"})
    assert done.returncode == 0, done.stderr
    assert values == [str(length == 62)] and not list(folder.iterdir())


@pytest.mark.parametrize(
    "gpu, slots, visible", [("0", "5,7", ""), ("1", "5,7", "5"), ("1", "", "3"), ("", "5,7", "3")]
)
def test_a_run_sees_the_gpu_of_its_slot_and_none_where_it_asks_for_none(tmp_path, gpu, slots, visible):
    variables = {
        "FGKD_GPU": gpu,
        "FGKD_GPUS": slots,
        "CUDA_VISIBLE_DEVICES": "3",
        "FGKD_RUNS": str(tmp_path),
        "FGKD_WARM": "0",
    }
    done, values = execute(tmp_path, "import os\nos.environ['CUDA_VISIBLE_DEVICES']", variables=variables)
    assert done.returncode == 0 and values == [repr(visible)]


HELD = """
import fcntl, os
held = False
lock = open(os.environ["FGKD_RUNS"] + "/.gpu-0")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    held = True
held
"""


def test_a_slot_is_held_until_the_kernel_ends(tmp_path):
    for warm in ("0", "1"):
        variables = {"FGKD_GPU": "1", "FGKD_GPUS": "5", "FGKD_RUNS": str(tmp_path), "FGKD_WARM": warm}
        done, values = execute(tmp_path, HELD, variables=variables)
        assert done.returncode == 0 and values == ["True"]


@pytest.mark.fault("a run that starts no kernel")
def test_how_an_earlier_run_ended_is_not_believed(tmp_path):
    stale = tmp_path / "exit.json"
    stale.write_text('{"exit_status": -9, "peak_memory_mb": 1}')
    done, _ = execute(tmp_path, "1", variables={"FGKD_EXIT": str(stale), "FGKD_WARM": "no"})
    error = "FGKD_WARM is 'no': expected 1, to fork kernels from a warm process, or 0"
    assert done.returncode != 0 and error in done.stderr
    ending = json.loads(stale.read_text())
    assert ending["exit_status"] == 0 and error in ending["error"]


@pytest.mark.fault("an import that fails")
@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_an_import_that_fails_is_the_notebooks_error_and_no_other(tmp_path, error):
    (tmp_path / "seaborn.py").write_text(f"raise {error}('libcairo.so.2 is missing')")
    done, _ = execute(
        tmp_path, "import seaborn", variables={"PYTHONPATH": f"{tmp_path}:{PROJECT}", "FGKD_WARM": "1"}
    )
    assert done.returncode != 0 and f"{error}: libcairo.so.2 is missing" in done.stderr


@pytest.mark.fault("a notebook that cannot start")
def test_what_kept_a_notebook_from_running_is_noted_beside_it(tmp_path):
    ending = tmp_path / "exit.json"
    (tmp_path / "in.ipynb").mkdir()
    command = [sys.executable, "-m", "fgkd.engine.execute", "in.ipynb", "out.ipynb"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "FGKD_EXIT": "exit.json", "FGKD_WARM": "0"}
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode != 0
    assert "its notebook did not run: " in json.loads(ending.read_text())["error"]


def test_a_path_is_no_template_and_an_executed_notebook_does_not_say_where_it_lies(tmp_path):
    folder = tmp_path / "a {b} #: c"
    folder.mkdir()
    done, values = execute(folder, "1 + 1", variables={"FGKD_WARM": "0"})
    assert done.returncode == 0 and values == ["2"]
    paths = nbformat.read(folder / "out.ipynb", 4).metadata.papermill
    assert (paths.input_path, paths.output_path) == ("in.ipynb", "out.ipynb")


@pytest.mark.fault("temporary folders of killed runs")
def test_the_temporary_folder_of_a_killed_run_is_emptied_by_the_next_and_no_other(monkeypatch, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # long ones are no places for sockets
        monkeypatch.setattr(tempfile, "tempdir", short)
        with kernels._own_folder(tmp_path) as killed, kernels._own_folder(tmp_path / "other") as other:
            assert os.stat(killed).st_mode & 0o077 == 0
            for folder in (killed, other):
                Path(folder, "socket").touch()
            with kernels._own_folder(tmp_path) as folder:
                assert folder == killed and os.listdir(folder) == [] and os.listdir(other) == ["socket"]
        assert os.listdir(short) == []


@pytest.mark.parametrize("home", ["/proc/nohome", "file", "here", "", "relative"])
@pytest.mark.fault("a home folder that takes no files")
def test_what_programs_keep_at_home_lies_in_the_study_where_home_takes_no_files(tmp_path, monkeypatch, home):
    (tmp_path / "file").touch()
    (tmp_path / "here" / ".cache" / "torch").mkdir(parents=True)
    for name in kernels.HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home) if home in ("file", "here") else home)
    given = kernels.homes(tmp_path)
    if home in ("here", ""):  # the root folder, which the tests may write to or not
        assert home == "" or not given.keys() & kernels.HOMES.keys()
    else:
        assert {name: given[name] for name in kernels.HOMES} == {
            name: str(tmp_path / ".home" / place) for name, place in kernels.HOMES.items()
        }


def test_a_log_names_neither_user_nor_host_nor_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/maria")
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    user = types.SimpleNamespace(pw_dir="/home/maria", pw_name="maria")
    monkeypatch.setattr(kernels.pwd, "getpwuid", lambda uid: user)
    text = "/home/maria/x on node-7, /scratch/maria/y, /home/mariana"
    command = [sys.executable, "-c", f"print({text!r})"]
    with kernels.started(command, tmp_path / "log", dict(os.environ)):
        pass
    assert (tmp_path / "log").read_text() == "~/x on HOST, /scratch/USER/y, /home/mariana\n"
    assert kernels.last_lines(tmp_path / "log") == f"  {(tmp_path / 'log').read_text().strip()}"
