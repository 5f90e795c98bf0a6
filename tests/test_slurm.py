"""A real Slurm of one node: jobs that are cancelled, drained or out of time go on where they were. Takes ten minutes and needs
root and Debian's packages slurm-wlm and munge: `pytest tests/test_slurm.py --slurm`."""

import subprocess
import sys
from pathlib import Path

import pytest
from chaos import content
from forked import CHECKOUT, environment, until

ASKED = "notebook 20_trio --profile smoke mixers=attn depths=1 seeds=0 steps=30000"  # more than a minute, the least time limit
SCRIPT = CHECKOUT / "examples" / "slurm.sbatch"


@pytest.fixture(scope="module")
def slurm(request, tmp_path_factory):
    """The path of the configuration of a running Slurm."""
    if not request.config.getoption("--slurm"):
        pytest.skip("asked for by --slurm")
    top = tmp_path_factory.mktemp("slurm")
    subprocess.run([CHECKOUT / "tests/slurm.sh", "start", top], check=True)
    yield top / "slurm.conf"
    subprocess.run([CHECKOUT / "tests/slurm.sh", "stop", top], check=True)


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    """The folder of a suite that ran on this machine, without Slurm."""
    root = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, "-m", "biasnb", *ASKED.split()], env=environment(root), check=True)
    return root


class Job:
    def __init__(self, root, conf):
        self.root, path = root, f"{Path(sys.executable).parent}:{environment(root)['PATH']}"
        self.env = environment(root, SLURM_CONF=str(conf), PATH=path, BIASNB_CHECKPOINT_SECONDS="1")

    def say(self, *words):
        done = subprocess.run(words, env=self.env, cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def submit(self, *options):
        number = self.say("sbatch", "--parsable", "--ntasks=1", *options, str(SCRIPT), *ASKED.split())
        until(self.begun, 600)
        return number

    def begun(self):
        return list((self.root / "runs" / "smoke" / "checkpoints").glob("*/*"))

    def gone(self):
        return not self.say("squeue", "--noheader")


def cancel(job):
    job.say("scancel", job.submit())
    until(job.gone)
    assert job.begun(), "it was cancelled before it was done"


def drain(job):
    number, node = job.submit(), job.say("hostname", "-s")
    job.say("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    job.say("scontrol", "requeue", number)
    job.say("scontrol", "update", f"nodename={node}", "state=resume")
    until(job.gone, 900)  # it goes on by itself, which Slurm allows after two minutes


def run_out_of_time(job):
    job.submit("--time=1")
    until(job.gone, 300)
    assert job.begun(), "its time was over before it was done"


@pytest.mark.parametrize("how", [cancel, drain, run_out_of_time])
def test_a_job_that_ended_early_goes_on_when_it_is_submitted_again(how, slurm, undisturbed, tmp_path):
    job = Job(tmp_path, slurm)
    how(job)
    job.say("sbatch", "--wait", "--ntasks=1", str(SCRIPT), *ASKED.split())
    found, expected = (content(root) for root in (tmp_path, undisturbed))
    for value in (*found.values(), *expected.values()):
        if isinstance(value, dict):
            value.pop("environment", None)  # a commit may have been made meanwhile
    assert found == expected
