"""Several real processes on one machine, joined over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra):
    """For a process that computes on the CPU with one thread, and finds the package."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def torchrun(processes):
    """The command that starts a script in several processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return [*launcher, "--master_addr=127.0.0.1", f"--master_port={free_port()}"]


def launch(script, processes, *arguments, **extra):
    """Runs a script in several processes to its end, which must be a good one; ``extra`` is environment."""
    result = subprocess.run(
        [*torchrun(processes), str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**extra),
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result
