"""The table pipeline × autoencoder: `python -m tests.pipelines.table` writes it."""

from importlib.metadata import version
from pathlib import Path

from diffusers.utils import logging

from tests.pipelines.autoencoders import AUTOENCODERS
from tests.pipelines.cases import CASES
from tests.pipelines.running import outcome

PATH = Path(__file__).parents[2] / "benchmarks/results/pipelines.md"
_LIBRARIES = ("diffusers", "transformers", "torch")
_TEXT = """# Which autoencoder works in which pipeline

Each cell is a call of the pipeline, built of diffusers' and transformers' own classes with tiny random
weights, with a new autoencoder of that class as `vae=`, `vqvae=` or `movq=`. The autoencoders are built alike
and differ from their classes' defaults in size only. `works`: an image came out. `-`: the pipeline asks for
codes, which a KL-VAE does not have. The first three columns are latentae's, the other two diffusers' own.

Written by `python -m tests.pipelines.table`, held by `tests/pipelines/test_table.py`; with {versions}.

{table}
"""


def versions() -> str:
    """What the outcomes of diffusers' own classes depend on."""
    return ", ".join(f"{library} {version(library).split('+')[0]}" for library in _LIBRARIES)


def rows() -> dict[str, list[str]]:
    """For each pipeline the cells in the order of ``AUTOENCODERS``; this runs every pipeline."""
    return {case: [outcome(case, autoencoder) for autoencoder in AUTOENCODERS] for case in CASES}


def text(cells: dict[str, list[str]]) -> str:
    """The file's contents."""
    lines = [
        "| pipeline | " + " | ".join(f"`{name}`" for name in AUTOENCODERS) + " |",
        "| --- |" + " --- |" * len(AUTOENCODERS),
        *(f"| {case} | " + " | ".join(row) + " |" for case, row in cells.items()),
    ]
    return _TEXT.format(versions=versions(), table="\n".join(lines))


if __name__ == "__main__":
    logging.set_verbosity_error()
    PATH.write_text(text(rows()), encoding="utf-8")
