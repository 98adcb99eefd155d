"""Shared by all tests: a folder for results, which kernels inherit, one thread, reference values, a study."""

import copy
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # parallel tests wait for a core asleep
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that started them
    RESULTS = tempfile.TemporaryDirectory(prefix="fgkd-tests-")
    os.environ["FGKD_RUNS"] = RESULTS.name

import pytest
import torch
import yaml
from jupyter_client.provisioning import KernelProvisionerFactory
from nbval.plugin import IPyNbCell

from fgkd import study as studies
from fgkd.distillation import stages
from fgkd.engine import kernels

torch.set_num_threads(1)
# A shell's background jobs ignore the interrupts that tests send, and so would what these start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and those of `nohup` this one

TINY = {
    "question": "Does it run?",
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "views": {"resize": 36, "crop": 32},
    "pretext": {"species": 3, "family_size": 3, "train": 4, "test": 2, "seed": 7},
    "datasets": {"birds": {"species": 4, "family_size": 2, "train": 6, "test": 4}},
    "teachers": {
        "byobnet": {"model": "test_byobnet.r160_in1k", "weights": "pretext"},
        "resnet": {"model": "test_resnet"},
        "efficientnet": {"model": "test_efficientnet"},
    },
    "students": {"small": {"model": "test_byobnet"}},
    "strategies": ["FZ", "FT"],
    "recipes": {
        "pretext": {"epochs": 1, "batch_size": 6, "lr": 0.01},
        "FZ": {"epochs": 2, "batch_size": 8, "lr": 0.1, "views": 1},
        "FT": {"epochs": 2, "batch_size": 8, "lr": 0.01},
        "student": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.001},
    },
    "distillation": {"temperature": 2, "beta": 10},
}


@pytest.fixture(scope="session")
def reference():
    """The folder of reference values beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the reference values are not beside this checkout")
    return folder


@pytest.fixture
def write_study(tmp_path, monkeypatch):
    """(changes) -> the path of a study file with its results next to it.

    A change is {'recipes.FT.lr': 1}; the value ... removes the key.
    """
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))

    def write(changes=None, name="tiny"):
        return _write(tmp_path / f"{name}.yaml", changes or {})

    return write


@pytest.fixture
def make_study(write_study):
    """(changes) -> the loaded study."""
    return lambda changes=None, name="tiny": studies.load(str(write_study(changes, name)))


@pytest.fixture
def tiny(make_study):
    """A study of three teachers and one student that runs in seconds, with its results in tmp_path."""
    return make_study()


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory):
    """The folder of the tiny study, run once; to be read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGKD_RUNS", str(folder))
        study = studies.load(str(_write(folder / "tiny.yaml", {})))
        frames = stages.study_tables(study)
        stages.write_study_tables(study, "correlation", frames)
    return folder


@pytest.fixture
def finished(finished_folder, tiny):
    """The tiny study with a copy of its results, which the test may spoil."""
    shutil.copytree(finished_folder / "tiny", tiny.folder)
    return tiny


@pytest.fixture
def in_child():
    """(function) -> the exit status of a forked process that runs it; what it changes is not seen here."""

    def run(function):
        pid = os.fork()
        if pid == 0:
            try:
                function()
                os._exit(0)
            except BaseException:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


@pytest.fixture(scope="session")
def wait_for():
    """(condition, seconds) -> its first true value, or its last when the time is over."""

    def wait(condition, seconds=20):
        end = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    return wait


def _write(file, changes):
    raw = copy.deepcopy(TINY)
    for path, value in changes.items():
        *folders, last = path.split(".")
        target = raw
        for key in folders:
            target = target.setdefault(key, {})
        if value is ...:
            del target[last]
        else:
            target[last] = value
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


@pytest.fixture(scope="session", autouse=True)
def warm_kernels():
    """nbval's kernels are forks of a process that has imported torch, as those of `fgkd run` are."""
    KernelProvisionerFactory.instance().default_provisioner_name = kernels.register()


def pytest_collection_modifyitems(items):
    """Run each notebook's cells a second time in the same kernel, as a reader who changes a value does."""
    cells = [item for item in items if isinstance(item, IPyNbCell) and "solutions" not in item.nodeid]
    for notebook in dict.fromkeys(cell.parent for cell in cells):
        first = [cell for cell in cells if cell.parent is notebook]
        again = [
            IPyNbCell.from_parent(
                notebook, name=f"{c.name} again", cell_num=c.cell_num, cell=c.cell, options=c.options
            )
            for c in first
        ]
        place = items.index(first[-1]) + 1
        items[place:place] = again


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "fault(name): what goes wrong in this test; the summary counts the kinds that were survived",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.faults = [mark.args[0] for mark in item.iter_markers("fault")]
    return report


def pytest_terminal_summary(terminalreporter):
    found = {
        outcome: {name for r in terminalreporter.stats.get(outcome, []) for name in getattr(r, "faults", ())}
        for outcome in ("passed", "failed")
    }
    if tried := found["passed"] | found["failed"]:
        terminalreporter.write_line(
            f"{len(tried)} kinds of fault tried, {len(tried - found['failed'])} survived"
        )
