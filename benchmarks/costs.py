"""Prints what models, optimizers, checkpoints, ranks and other parts cost, as Markdown tables.

models: parameters of every shipped model, and FLOPs for one image of 256x256, a multiply-add counted as two.
optimizers: time of one update of the autoencoder's weights by each optimizer, in turns and in process time on
    the CPU, and the memory of its averages.
latent-losses: time and memory of a quickstart_kl step with each loss of the latents, against a step without.
    Takes key=value overrides. Steps take turns and are measured in process time on the CPU. The time of an
    equivariant step depends on what it draws, so these are means: use --rounds 20 or more.
cached-latents: time of a step that trains a decoder of Stable Diffusion's widths, with the encoder and with
    cached latents instead, in turns and in process time on the CPU. Takes key=value overrides.
checkpoints: seconds and bytes of a checkpoint, and the share of the run's time that saving takes. Models
    other than the quickstarts make steps of one image of 64x64, so their share is left out.
ranks: images per second of two ranks against one, on the CPU. Each rank has the same work, and one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from faults import kill_group
from measuring import ROOT, benchmark_parser, describe_run, in_turns, print_head, print_row, show_ratio
from torch.utils.flop_counter import FlopCounterMode

from latentae.build import build_autoencoder
from latentae.config import RunConfig, load_config, read_config, shipped_configs
from latentae.latents.cache import encode_dataset
from latentae.training.dry_run import measure_memory, tensor_bytes
from latentae.training.log import Meter
from latentae.training.optimizers import Muon, adamw
from latentae.training.run_folder import describe_pretrained
from latentae.training.trainer import Trainer

_SIDE = 256
_LATENT_LOSSES = {
    "none": [],
    "equivariance": ["loss.equivariance={}"],
    "latent noise": ["loss.latent_noise={scale: 0.1}"],
    "spectral": ["loss.spectral={}"],
    "alignment, adaptive": ["loss.alignment={network: vgg16}"],
    "alignment, fixed weight": ["loss.alignment={network: vgg16, adaptive: false}"],
}
_DECODERS = {
    "the whole decoder": [],
    "a quarter of it": ["decoder={widths: [64, 128, 256, 256]}"],
    "a quarter, with a teacher": ["decoder={widths: [64, 128, 256, 256]}", "loss.teacher={}"],
}
_DEFAULT_INTERVAL = RunConfig.model_fields["checkpoint_every"].default
_SMALL_STEPS = ["batch_size=1", "data.image_size=64", "data.name=photos", "data.num_workers=0"]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5)
    tables = {
        "models": models,
        "optimizers": optimizers,
        "latent-losses": latent_losses,
        "cached-latents": cached_latents,
        "checkpoints": checkpoints,
        "ranks": ranks,
    }
    parser.add_argument("table", choices=list(tables))
    parser.add_argument(
        "--configs",
        nargs="+",
        default=["quickstart", "kl_f8"],
        help="models of the tables optimizers and checkpoints",
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as in training, for two tables")
    arguments = parser.parse_intermixed_args()
    if arguments.table != "models":
        print(f"{describe_run()} {len(os.sched_getaffinity(0))} cores.\n")
    tables[arguments.table](arguments)


def models(arguments: argparse.Namespace) -> None:
    print_head("config", "class", "parameters", "factor", "latents", "codes", "encoder", "decoder")
    for name, path in shipped_configs().items():
        run = read_config(path)
        config = run.model
        model = build_autoencoder(config, sample_size=_SIDE, decoder=run.decoder).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        factor = model.downsampling_factor
        side = _SIDE // factor
        codes = f"{model.quantize.num_codes:,}" if hasattr(model, "quantize") else ""
        model = model.to("meta")  # where operations are counted and nothing is computed
        latents = torch.empty(1, config.latent_channels, side, side, device="meta")
        images = torch.empty(1, config.in_channels, _SIDE, _SIDE, device="meta")
        print_row(
            f"`{name}`",
            config.class_,
            f"{parameters / 1e6:.2f} M",
            f"f{factor}",
            f"{config.latent_channels}x{side}x{side}",
            codes,
            f"{_gflop(model.encoder, images):.1f} GFLOP",
            f"{_gflop(model.decoder, latents):.1f} GFLOP",
        )


@torch.no_grad()
def _gflop(module: torch.nn.Module, argument: torch.Tensor) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        module(argument)
    return counter.get_total_flops() / 1e9


def optimizers(arguments: argparse.Namespace) -> None:
    print_head("config", "parameters", "AdamW, s", "Muon, s", "ratio (range)", "AdamW's memory", "Muon's")
    for name in arguments.configs:
        config = read_config(shipped_configs()[name])
        network = build_autoencoder(config.model, sample_size=_SIDE)
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        shared = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "eps": 1e-8}
        rivals = {
            "adamw": adamw(network, **shared),
            "muon": Muon(network, momentum=0.95, update_rms=0.2, **shared),
        }
        steps = {kind: optimizer.step for kind, optimizer in rivals.items()}
        usual, other = in_turns(steps, arguments.rounds, torch.device("cpu")).values()
        memory = (f"{tensor_bytes(dict(optimizer.state)) / 1e6:.0f} MB" for optimizer in rivals.values())
        medians = (f"{statistics.median(spent):.3f}" for spent in (usual, other))
        parameters = sum(weight.numel() for weight in network.parameters())
        print_row(f"`{name}`", f"{parameters / 1e6:.2f} M", *medians, show_ratio(other, usual), *memory)


def latent_losses(arguments: argparse.Namespace) -> None:
    # VGG, since images of 64 pixels become too small for AlexNet when an equivariant step scales them down.
    shared = ["loss.perceptual.trunk=vgg", "trackers=[]", "max_steps=100000", *arguments.overrides]
    steps, memory = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in _LATENT_LOSSES.items():
            config = load_config("kl_vae", [*shared, *changes, f"output_dir={folder}/run"])
            trainer = Trainer(config, rehearsal=True)
            batches = trainer.batches()
            memory[name] = measure_memory(trainer, chain([next(batches)], batches))
            steps[name] = _step(trainer, batches)
        spent = in_turns(steps, arguments.rounds, torch.device("cpu"))
    mean, least = statistics.mean(spent["none"]), memory["none"]
    print_head("", "time of a step", "kept for the backward pass", "frozen networks")
    for name, use in memory.items():
        took, kept = statistics.mean(spent[name]) / mean, use.activations / least.activations
        print_row(name, f"{took:.2f}", f"{kept:.2f}", f"{use.losses / 1e6:.0f} MB")
    print(f"\nWithout: {mean:.3g} s of process time, {least.activations / 1e6:.0f} MB.")


def cached_latents(arguments: argparse.Namespace) -> None:
    shared = ["--config", "decoder_finetune", "trackers=[]", "mixed_precision=no", "batch_size=1"]
    shared += ["gradient_accumulation_steps=1", "data.image_size=128", "data.random_flip=false"]
    shared += ["data.num_workers=0", *arguments.overrides]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("kl_vae", shared)
        shared += [f"model.pretrained={folder}/model", f"output_dir={folder}/run"]
        # A fresh model: its weights do not matter for the time.
        build_autoencoder(config.model, sample_size=config.data.image_size).save_pretrained(f"{folder}/model")
        encode_dataset(f"{folder}/model", "photos", f"{folder}/latents", image_size=config.data.image_size)
        for name, changes in _DECODERS.items():
            steps = {}
            for latents in (None, f"{folder}/latents"):
                words = [*shared, *changes, *([f"data.latents={latents}"] if latents else [])]
                trainer = Trainer(load_config("kl_vae", words, describe_pretrained), rehearsal=True)
                steps[str(latents)] = _step(trainer, trainer.batches())
            usual, cached = in_turns(steps, arguments.rounds, torch.device("cpu")).values()
            medians = (f"{statistics.median(spent):.2f}" for spent in (usual, cached))
            rows.append((name, *medians, show_ratio(usual, cached)))
    print_head("decoder", "with the encoder, s", "with cached latents, s", "ratio (range)")
    for row in rows:
        print_row(*row)


def _step(trainer: Trainer, batches: object) -> Callable[[], None]:
    meter = Meter()
    return lambda: trainer.optimizer_step(batches, meter)


def checkpoints(arguments: argparse.Namespace) -> None:
    print_head(
        "config",
        "parameters",
        "on disk",
        "a checkpoint, s (range)",
        "a step, s",
        "share at 1000",
        "at its own",
    )
    with tempfile.TemporaryDirectory(prefix="checkpoints_") as folder:
        for name in arguments.configs:
            print_row(f"`{name}`", *_checkpoint_costs(name, Path(folder), arguments.rounds))


def _checkpoint_costs(name: str, folder: Path, rounds: int) -> list[str]:
    # Build the run.
    large = not name.startswith("quickstart")
    changes = [
        f"output_dir={folder / name}",
        "trackers=[]",
        "cpu_threads=1",
        *(_SMALL_STEPS if large else []),
    ]
    AcceleratorState._reset_state(reset_partial_state=True)  # of the config before
    family = "kl_vae" if name.startswith("kl") else "vqgan"
    trainer = Trainer(load_config(family, ["--config", name, *changes]))
    batches, meter = trainer.batches(), Meter()

    # Time steps and checkpoints; the first round creates the optimizer's state and is not counted.
    stepping, saving = [], []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        trainer.optimizer_step(batches, meter)
        between = time.perf_counter()
        trainer._save_checkpoint()
        stepping.append(between - started)
        saving.append(time.perf_counter() - between)

    step, save = (statistics.median(seconds[1:]) for seconds in (stepping, saving))
    size = sum(file.stat().st_size for file in trainer.folder.all_checkpoints()[-1].iterdir())
    parameters = sum(value.numel() for value in trainer.networks.autoencoder.parameters())
    own_interval = trainer.config.checkpoint_every
    shares = [
        "" if large else f"{save / (save + interval * step):.2%}"
        for interval in (_DEFAULT_INTERVAL, own_interval)
    ]
    return [
        f"{parameters / 1e6:.2f} M",
        f"{size / 2**20:.0f} MiB",
        f"{save:.2f} ({min(saving[1:]):.2f} to {max(saving[1:]):.2f})",
        "" if large else f"{step:.2f}",
        shares[0],
        f"{shares[1]} ({own_interval})",
    ]


def ranks(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        rounds = [[_throughput(number, Path(folder)) for number in (1, 2)] for _ in range(arguments.rounds)]
    one, two = zip(*rounds, strict=True)
    print_head("images/s of one rank", "of two", "ratio (range)")
    print_row(f"{statistics.median(one):.1f}", f"{statistics.median(two):.1f}", show_ratio(two, one))


def _throughput(processes: int, folder: Path, steps: int = 25) -> float:
    """Returns the images per second of all ranks: the median over the lines of the log but the first."""
    run = folder / f"ranks_{processes}_{time.monotonic_ns()}"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    settings = [f"output_dir={run}", f"max_steps={steps}", "log_every=5", "cpu_threads=1", "trackers=[]"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "scripts/train_vqgan.py", *settings],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log, lines = run / "metrics.jsonl", []
    while len(lines) < steps // 5:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode}:\n{process.stdout.read()[-3000:]}")
        time.sleep(0.2)
        lines = log.read_text().splitlines() if log.exists() else []
    kill_group(process)
    return statistics.median(json.loads(line)["images_per_second"] for line in lines[1:])


if __name__ == "__main__":
    main()
