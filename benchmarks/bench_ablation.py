"""Compares how losses and quantizers of an autoencoder affect the denoiser that is trained on its latents.

Trains one autoencoder per row of MODELS, with the same backbone on the same crops for the same steps. Then
trains the same denoiser on the latents of each, and prints a table of reconstruction and generation. The
runs and the probe's report are kept in OUT; a second call resumes from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import benchmark_parser, commit, hardware, print_head, print_row

MODELS: dict[str, tuple[str, str, list[str]]] = {
    "ae": ("kl_vae", "quickstart_ae", []),
    "kl_1e-6": ("kl_vae", "quickstart_kl", []),
    "kl_1e-3": ("kl_vae", "quickstart_kl", ["loss.kl.weight=1e-3"]),
    "kl_1e-2": ("kl_vae", "quickstart_kl", ["loss.kl.weight=1e-2"]),
    "kl_1e-6_seed1": ("kl_vae", "quickstart_kl", ["seed=1"]),
    "kl_1e-6_eq": ("kl_vae", "quickstart_kl", ["loss.equivariance={min_scale: 0.5}"]),
    "kl_1e-6_noise": ("kl_vae", "quickstart_kl", ["loss.latent_noise={scale: 0.1}"]),
    "kl_1e-6_align": ("kl_vae", "quickstart_kl", ["loss.alignment={network: vgg16}"]),
    "kl_1e-6_spectral": ("kl_vae", "quickstart_kl", ["loss.spectral={factors: [2]}"]),
    "vq": ("vq_vae", "quickstart_vq", []),
    "vqgan": ("vqgan", "quickstart", ["loss.adversarial.weight=0.8"]),  # the paper's
}
"""Name -> family, config, changes to it."""

_RECONSTRUCTION = {"psnr": ("PSNR, dB", ".2f"), "lpips_alex": ("LPIPS", ".3f"), "ssim": ("SSIM", ".3f")}
_GENERATION = {
    "fd_vgg16_reconstructed": ("FD, reconstructed", ".0f"),
    "fd_vgg16_generated": ("FD, generated", ".0f"),
    "fd_vgg16_noise": ("FD, noise", ".0f"),
    "relative_flow_loss": ("flow loss, relative", ".3f"),
    "copied_share": ("suspiciously near", ".3f"),
}
"""Key in the report -> column and number format."""


def main() -> None:
    arguments = _parse()
    names = arguments.only or list(MODELS)
    runs = {name: _train(name, arguments) for name in names}
    report = arguments.out / "probe"
    _latentae(
        "probe",
        *(f"{name}={run}" for name, run in runs.items()),
        f"--data={arguments.data}",
        f"--out={report}",
        f"--steps={arguments.probe_steps}",
        f"--samples={arguments.samples}",
        f"--image-size={arguments.size}",
        f"--width={arguments.width}",
        f"--depth={arguments.depth}",
        f"--largest-side={arguments.largest_side}",
    )
    results = json.loads((report / "results.json").read_text())
    print(
        f"{hardware()}, commit {commit()}. Autoencoders: {arguments.steps} steps of {arguments.batch_size} "
        f"crops of {arguments.size} px; denoisers, {arguments.width} wide and {arguments.depth} deep, at "
        f"most {arguments.largest_side} x {arguments.largest_side} tokens: "
        f"{arguments.probe_steps} steps of 32; "
        f"{arguments.samples} samples.\n"
    )
    print_table(results)


def _train(name: str, arguments: argparse.Namespace) -> Path:
    family, config, changes = MODELS[name]
    run: Path = arguments.out / name
    if not (run / "summary.json").exists():
        steps = arguments.steps
        adversary = [f"loss.adversarial.start_step={steps // 2}"] if family == "vqgan" else []
        _latentae(
            "train",
            family,
            f"--config={config}",
            f"output_dir={run}",
            f"max_steps={steps}",
            f"batch_size={arguments.batch_size}",
            f"data.name={arguments.data}",
            f"data.image_size={arguments.size}",
            "data.downscale=null",
            "cpu_threads=1",
            "trackers=[]",
            *adversary,
            *changes,
        )
    return run


def _latentae(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "latentae.cli", *arguments], check=True, stdout=sys.stderr)


def print_table(results: dict[str, Any]) -> None:
    """Prints one row per model of a probe's results.json: reconstruction, then generation."""
    print_head("model", *(name for name, _ in [*_RECONSTRUCTION.values(), *_GENERATION.values()]))
    for name, model in results["models"].items():
        measured = results["reconstruction"][name]
        cells = [format(measured[key]["value"], digits) for key, (_, digits) in _RECONSTRUCTION.items()]
        cells += [format(model["metrics"][key], digits) for key, (_, digits) in _GENERATION.items()]
        print_row(name, *cells)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("data", help="folder of images")
    parser.add_argument("out", type=Path, help="folder of the runs and of the report")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each autoencoder")
    parser.add_argument("--probe-steps", type=int, default=1000, help="training steps of each denoiser")
    parser.add_argument("--width", type=int, default=192, help="channels of a denoiser's token")
    parser.add_argument("--depth", type=int, default=6, help="blocks of a denoiser")
    parser.add_argument("--largest-side", type=int, default=16, help="most tokens along a side")
    parser.add_argument("--samples", type=int, default=256, help="images each denoiser generates")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=8, help="batch size of the autoencoders")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), help="these models only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
