"""Quantizers: map continuous latents to codes of a finite table."""

from latentae.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.composition import ComposedQuantizer, GroupedQuantizer, ResidualQuantizer
from latentae.quantizers.create import QUANTIZERS, create_quantizer, implied_size, quantizer_size
from latentae.quantizers.ema import EMAQuantizer
from latentae.quantizers.fsq import FiniteScalarQuantizer
from latentae.quantizers.health import (
    CodebookHealth,
    code_counts,
    codebook_health,
    reachable_usage,
    table_healths,
    usage_deciles,
)
from latentae.quantizers.ibq import IBQuantizer
from latentae.quantizers.lookup import nearest_code
from latentae.quantizers.quantizer import Quantizer, QuantizerOutput
from latentae.quantizers.start import LatentMap
from latentae.quantizers.vector import (
    CosineQuantizer,
    SimVQuantizer,
    VectorQuantizer,
    plain_quantizer,
)

__all__ = [
    "QUANTIZERS",
    "BinarySphericalQuantizer",
    "CodebookHealth",
    "CodebookQuantizer",
    "ComposedQuantizer",
    "CosineQuantizer",
    "EMAQuantizer",
    "FiniteScalarQuantizer",
    "GroupedQuantizer",
    "IBQuantizer",
    "LatentMap",
    "LookupFreeQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "SimVQuantizer",
    "VectorQuantizer",
    "code_counts",
    "codebook_health",
    "create_quantizer",
    "implied_size",
    "nearest_code",
    "plain_quantizer",
    "quantizer_size",
    "reachable_usage",
    "table_healths",
    "usage_deciles",
]
