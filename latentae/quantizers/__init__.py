"""Quantizers: from continuous latents to the codes of a finite table, one paper a file."""

from typing import Any

from latentae.quantizers.codebook import CodebookHealth, CodebookQuantizer, codebook_health
from latentae.quantizers.ema import EMAQuantizer
from latentae.quantizers.lookup import nearest_code
from latentae.quantizers.result import QuantizerOutput
from latentae.quantizers.vector import VectorQuantizer

QUANTIZERS: dict[str, type[CodebookQuantizer]] = {"vector": VectorQuantizer, "ema": EMAQuantizer}


def create_quantizer(type: str, **arguments: Any) -> CodebookQuantizer:
    """The quantizer called ``type``, built with its class's arguments.

    Raises:
        ValueError: no such quantizer, or an argument it rejects.
    """
    if type not in QUANTIZERS:
        raise ValueError(f"quantizer type is {type!r}, but must be one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[type](**arguments)


__all__ = [
    "QUANTIZERS",
    "CodebookHealth",
    "CodebookQuantizer",
    "EMAQuantizer",
    "QuantizerOutput",
    "VectorQuantizer",
    "codebook_health",
    "create_quantizer",
    "nearest_code",
]
