"""What a finished run says of itself."""

from __future__ import annotations

import json
from typing import Any

from latentae.config import RunConfig
from latentae.training.folder import RunFolder

_ROWS = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f} (alex)"),
    "codebook_usage": ("codes in use", "{:.0%}"),
}


def finished_summary(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """The summary of the run in ``folder`` if it already has all of ``config``'s steps, else None."""
    if not folder.summary.exists() or not folder.model.is_dir():
        return None
    summary: dict[str, Any] = json.loads(folder.summary.read_text())
    return summary if summary["step"] >= config.max_steps else None


def describe(folder: RunFolder, summary: dict[str, Any]) -> str:
    """The closing words of a run: its numbers, where everything lies, and what to try next."""
    rows = [
        f"  {label:<14}{form.format(summary[key])}" for key, (label, form) in _ROWS.items() if key in summary
    ]
    return "\n".join(
        [
            f"Validation on {summary['images']} images after {summary['step']} steps "
            f"({summary['seconds']:.0f} s of training):",
            *rows,
            "",
            f"  pictures      {folder.sample(summary['step'])} (images above, reconstructions below)",
            f"  model         {folder.model}",
            f"  log           {folder.metrics}; tensorboard --logdir {folder.root}",
            "",
            "Next:",
            f"  use it        diffusers.VQModel.from_pretrained({str(folder.model)!r})",
            "  your images   accelerate launch scripts/train_vqgan.py data.name=path/to/images "
            "output_dir=my_run",
            f"  train longer  the same command with max_steps={2 * summary['step']}",
        ]
    )
