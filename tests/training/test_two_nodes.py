"""Two nodes, here two launchers on one machine: a signal to one of them stops both, and both continue."""

import os
import signal
import sys

import torch
from safetensors.torch import load_file

from latentae.config import load_config
from latentae.latents import calibration
from latentae.training.trainer import Trainer
from tests.processes import free_port, launch
from tests.training.launch import children, last_step, output_of, start, wait_for_log

KL = ["model.class=KLVAE", "loss.kl.weight=0.01", "loss.adversarial=null", "discriminator=null"]
# Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
SHARED = [
    *KL,
    "optimizer.epsilon=1.0e-3",
    "optimizer.schedule=constant",
    "checkpoint_every=100000",
    "log_every=1",
]


def start_nodes(*arguments):
    """One process on each of two nodes, as two machines would be told to."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=test"]
    return [start(*launcher, "scripts/train_kl_vae.py", *arguments) for _ in range(2)]


def test_two_nodes(tiny, tmp_path, monkeypatch):
    config, run = ["--config", str(tiny.file), *SHARED], tmp_path / "run"
    nodes = start_nodes(*config, "max_steps=100000")
    wait_for_log(run, *nodes)
    (process,) = children(nodes[1])
    os.kill(process, signal.SIGUSR1)
    printed = "".join(output_of(node, code=0) for node in nodes)
    steps = last_step(run)
    assert printed.count("stopped by") == 1
    assert f"stopped by SIGUSR1: the run is saved at step {steps}; the same command continues" in printed

    one_per_node = {"LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}
    launch("scripts/train_kl_vae.py", 2, *config, f"max_steps={steps + 2}", **one_per_node)
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    alone = [f"max_steps={steps + 2}", "batch_size=4", f"output_dir={tmp_path}/alone"]
    Trainer(load_config("kl_vae", [*config, *alone])).fit()
    weights = [
        load_file(path / f"checkpoints/step_{steps + 2:06d}/model.safetensors")
        for path in (run, tmp_path / "alone")
    ]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-5, msg=name)
