"""The smoke study through a real Slurm of one node on this machine, in five minutes: `make test-slurm`."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fgkd.study import PROJECT

pytestmark = pytest.mark.skipif(
    os.environ.get("FGKD_TEST_SLURM") != "1", reason="starts Slurm's daemons: make test-slurm"
)
ETC = Path("/etc/slurm")  # where a job's own commands look: Snakemake's executor hands on no SLURM_CONF
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=fgkd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=100000
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(number):
    """Ports of 127.0.0.1 that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def installed():
    """Whether Slurm's daemons are there, after an attempt to install Debian's packages."""
    if not all(map(shutil.which, DAEMONS)) and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "munge", "slurmctld", "slurmd", "slurm-client"]):
            subprocess.run(
                ["apt-get", "-q", *words],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
            )
    return os.geteuid() == 0 and all(map(shutil.which, DAEMONS))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which Slurm's commands find a node of their own, which ends with the tests."""
    if not installed():
        pytest.skip(
            "Slurm could not be installed here: it takes root, and Debian's packages munge, slurmctld, slurmd"
        )
    if (ETC / "slurm.conf").exists():
        pytest.skip(f"{ETC} has a slurm.conf: this machine belongs to a cluster of its own")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname()
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller, node = free_ports(2)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, host=host, controller=controller, node=node)
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    environment = dict(os.environ)
    munge = [
        "munged",
        "--force",
        "--foreground",
        *(
            f"--{what}={folder}/munge.{end}"
            for what, end in (
                ("key-file", "key"),
                ("socket", "socket"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ),
    ]
    ETC.mkdir(exist_ok=True)
    for name in ("slurm.conf", "cgroup.conf"):
        (ETC / name).unlink(missing_ok=True)
        (ETC / name).symlink_to(folder / name)
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in ask(environment, "sinfo", "-h", "-o", "%T"):
            assert time.monotonic() < deadline, "\n".join(f.read_text()[-1500:] for f in folder.glob("*.log"))
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        for name in ("slurm.conf", "cgroup.conf"):
            (ETC / name).unlink()


def ask(environment, *words):
    return subprocess.run(words, env=environment, capture_output=True, text=True).stdout


def fgkd(environment, runs, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "fgkd.cli", "run", "smoke", *words],
        cwd=PROJECT,
        env=environment | {"FGKD_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.fault("a Slurm job killed")
def test_smoke_on_a_cluster_that_loses_a_job_ends_with_the_tables_of_this_machine(slurm, tmp_path):
    here = fgkd(slurm, tmp_path / "here")
    output = here.communicate(timeout=900)[0]
    assert here.returncode == 0, output

    there = fgkd(slurm, tmp_path / "there", "--profile", "profiles/slurm")
    killed, seen = None, set()
    while there.poll() is None:
        jobs = [line.split() for line in ask(slurm, "squeue", "-h", "-o", "%i %T %k").splitlines()]
        seen |= {job[0] for job in jobs}
        running = [job[0] for job in jobs if job[1] == "RUNNING" and "teacher" in job[2]]
        if killed is None and running and len(seen) > 5:
            killed = running[0]
            ask(slurm, "scancel", "--full", "--signal=KILL", killed)
        time.sleep(0.5)
    output = there.communicate()[0]
    log = (tmp_path / "there" / "smoke" / "engine.log").read_text()
    assert killed and len(seen) > 30, f"{output}\n{log[-3000:]}"
    if there.returncode:  # the job was lost for good: the same command goes on
        again = fgkd(slurm, tmp_path / "there", "--profile", "profiles/slurm")
        output = again.communicate(timeout=900)[0]
        assert again.returncode == 0, output
    for name in ("teachers", "metrics", "students", "correlations", "epochs"):
        tables = [
            pd.read_csv(tmp_path / run / "smoke" / "tables" / f"{name}.csv").drop(
                columns=["commit", "seconds", "peak_memory_mb"], errors="ignore"
            )
            for run in ("here", "there")
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    print(f"{len(seen)} Slurm jobs, of which {killed} was killed; exit status of that run {there.returncode}")


def test_a_study_for_gpus_reaches_its_first_job_from_a_node_that_has_none(slurm, tmp_path):
    """Data, introduction and conclusions run on the node that starts it; a teacher's job misses its GPU."""
    text = (PROJECT / "runs" / "smoke.yaml").read_text()
    small = text.replace("strategies: [FZ, FT, CAL, TGDA]", "strategies: [FT]").replace("[TGDA]", "[FT]")
    (tmp_path / "far.yaml").write_text("device: cuda\n" + small)
    words = [
        sys.executable,
        "-m",
        "fgkd.cli",
        "run",
        str(tmp_path / "far.yaml"),
        "--profile",
        "profiles/slurm",
    ]
    done = subprocess.run(
        words,
        cwd=PROJECT,
        env=slurm | {"FGKD_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1 and "failed: teacher/pretext/pretext/byobnet" in done.stderr
    assert "device is 'cuda', but PyTorch sees no GPU" in done.stderr
    assert {f.relative_to(tmp_path / "far").parts[0] for f in tmp_path.rglob("result.json")} == {"data"}
    assert list((tmp_path / "far" / ".snakemake" / "slurm_logs").rglob("*.log"))
