"""What Linux has and other systems do not: without it, every module loads and a run trains to its end."""

import subprocess
import sys

from tests.processes import ROOT, environment
from tests.training.conftest import TINY, draw_images

# Windows has none of what is removed here; macOS has all but sched_getaffinity and posix_fadvise.
SCRIPT = """
import enum, importlib, os, pkgutil, signal, sys

# Libraries first: what they do on other systems is their own affair.
import accelerate, datasets, diffusers, lpips, multiprocessing.util, psutil, tempfile, torch, torchvision
import torch.utils.data, torch.utils.tensorboard
from diffusers import AutoencoderKL, DiTPipeline, VQModel

for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "fork", "O_DIRECTORY"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios", "pwd"):
    sys.modules[name] = None
known = {number.name: number.value for number in signal.Signals}
left = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV")
for name in (*(known.keys() - set(left)), "alarm", "pthread_kill"):
    delattr(signal, name)
signal.Signals = enum.IntEnum("Signals", {name: known[name] for name in left})

import latentae
from latentae import cli
from latentae.latents import calibration

for module in pkgutil.walk_packages(latentae.__path__, "latentae."):
    importlib.import_module(module.name)
calibration.FEWEST_VIEWS = 16
sys.exit(cli.main(["train", "vqgan", *sys.argv[1:]]))
"""


def test_a_system_with_none_of_what_only_unix_has(tmp_path, alexnet_trunk):
    draw_images(tmp_path / "images")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    command = [sys.executable, "-c", SCRIPT, "--config", str(tmp_path / "tiny.yaml"), "max_steps=2"]
    result = subprocess.run(
        [*command, "cpu_threads=null"],
        cwd=ROOT,
        env=environment(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run/summary.json").exists()
