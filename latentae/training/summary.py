"""What a finished run says of itself."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from latentae.config import RunConfig
from latentae.training.folder import RunFolder
from latentae.training.start_command import Start, how_started, is_training_script, program_name

_STOCK_CLASSES = ("AutoencoderKL", "VQModel")
_SOURCE, _MEASURED = "scale_source", "measured on the training images"
_ROWS = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f} (alex)"),
    "codebook_usage": ("codes in use", "{:.0%}"),
    "scaling_factor": ("latent scale", "{:.4f} ({scale_source})"),
}


def finished_summary(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """The summary of the run in ``folder`` if it already has all of ``config``'s steps, else None."""
    if not folder.summary.exists() or not folder.model.is_dir():
        return None
    try:
        summary: dict[str, Any] = json.loads(folder.summary.read_text())
    except json.JSONDecodeError:
        return None  # cut short: the run's end writes it anew
    return summary if summary["step"] >= config.max_steps else None


def describe(folder: RunFolder, summary: dict[str, Any]) -> str:
    """The closing words of a run: its numbers, where everything lies, and what to try next."""
    rows = [
        f"  {label:<14}{form.format(summary[key], **{_SOURCE: summary.get(_SOURCE, _MEASURED)})}"
        for key, (label, form) in _ROWS.items()
        if summary.get(key) is not None
    ]
    start = how_started()
    return "\n".join(
        [
            f"Validation on {summary['images']} images after {summary['step']} steps "
            f"({summary['seconds']:.0f} s of training):",
            *rows,
            "",
            f"  pictures      {folder.sample(summary['step'])}  (images above, reconstructions below)",
            f"  model         {folder.model}  (loads with {_loader(folder)})",
            f"  log           {folder.metrics}",
            "",
            "Next:",
            f"  {_command(start)} data.name=path/to/images output_dir=my_run",
            f"  {_command(start, same_run=True)} max_steps={2 * summary['step']}"
            f"  # continues this run{start.beside}",
            f"  {program_name('tensorboard')} --logdir {folder.root}",
        ]
    )


def _loader(folder: RunFolder) -> str:
    """The call that opens the exported model: diffusers' own wherever the stock class can hold it."""
    name = json.loads((folder.model / "config.json").read_text())["_class_name"]
    return f"diffusers.{name}.from_pretrained" if name in _STOCK_CLASSES else "latentae.load_autoencoder"


def _command(start: Start, *, same_run: bool = False) -> str:
    """The command that starts this program again; ``same_run`` keeps its arguments."""
    words, given = list(start.words), sys.argv[1:]
    if not is_training_script(sys.argv[0]):  # `latentae train FAMILY`
        words, given = [*words, *given[:2]], given[2:]
    if same_run:
        words += [argument for argument in given if not argument.startswith(("max_steps=", "resume="))]
    elif "--config" in given:
        words += given[given.index("--config") :][:2]
    return shlex.join(words)
