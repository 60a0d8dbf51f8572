"""`latentae export`: a trained model, or anything `load_autoencoder` reads, in a format that others read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentae.console import FAMILIES
from latentae.export import DTYPES, FORMATS

if TYPE_CHECKING:
    from latentae.export import ExportReport

_DESCRIPTION = """\
Writes a model in a format that others read: diffusers, a folder of the stock class; ldm, one file in latent
diffusion's layout, with scale and shift in its metadata; comfyui, the same with the normalisation folded into
the weights, so that the scale and shift which ComfyUI applies for a family are right. What was written is
reopened and compared with the model before it takes its place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports a model; returns the exit code: 0 done, 2 bad input, and nothing was written."""
    parser = _parser()
    try:
        chosen = parser.parse_args(arguments)
        if chosen.format == "comfyui" and chosen.family is None:
            parser.error(f"--format comfyui needs --family, one of {', '.join(FAMILIES)}")
    except SystemExit as stopped:  # argparse has said what is wrong, or printed the help
        return int(stopped.code or 0)

    # Not before: torch takes seconds to load, and --help shall not.
    from safetensors import SafetensorError

    from latentae.export import export_autoencoder
    from latentae.models import load_autoencoder

    try:
        groups = chosen.norm_num_groups
        known = {} if groups is None else {"norm_num_groups": groups}
        model = load_autoencoder(chosen.model, **known)
        notes = []
        if chosen.family is not None and model.config.scaling_factor is None:
            model = load_autoencoder(chosen.model, family=chosen.family, **known)
            notes.append(f"{chosen.model} does not record its scale, which was taken to be {chosen.family}'s")
        report = export_autoencoder(
            model,
            chosen.out,
            format=chosen.format,
            family=chosen.family,
            dtype=chosen.dtype,
            overwrite=chosen.overwrite,
        )
    except (ValueError, OSError, SafetensorError) as error:  # the last for a disk that is full
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(_describe(report, notes, chosen.dtype))
    return 0


def _describe(report: ExportReport, notes: Sequence[str], dtype: str) -> str:
    errors = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    lines = [
        *(f"note: {remark}" for remark in (*notes, *report.remarks)),
        f"reopened and compared with the model: max error {report.max_error:.1e} of the largest value "
        f"({errors}; {dtype} allows {report.tolerance:.0e})",
        f"wrote {report.path} ({report.format}, {dtype}: {', '.join(report.files)})",
        f"to load it: {report.load_hint}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentae export", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="RUN_OR_MODEL", help="a run's output_dir, or a model: folder, file or hub id")
    add("--format", choices=FORMATS, required=True, help="diffusers: a folder; ldm, comfyui: one file")
    add(
        "--family",
        choices=FAMILIES,
        help="the family whose scale and shift ComfyUI applies; it also gives the model its scale and shift "
        "where the model records none",
    )
    add("--dtype", choices=DTYPES, default="fp32", help="of the weights (default: fp32)")
    add("--out", type=Path, required=True, metavar="PATH", help="the folder, or the .safetensors file")
    add("--overwrite", action="store_true", help="replace an earlier export at PATH")
    add(
        "--norm-num-groups",
        type=int,
        metavar="N",
        help="groups of the model's normalisation, where its file does not tell them",
    )
    return parser
