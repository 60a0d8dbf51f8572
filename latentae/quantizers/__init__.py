"""Quantizers: from continuous latents to the codes of a finite table, one paper a file."""

from latentae.quantizers.bsq import BinarySphericalQuantizer
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.composition import ComposedQuantizer
from latentae.quantizers.cosine import CosineQuantizer
from latentae.quantizers.create import QUANTIZERS, create_quantizer, own_size, quantizer_size
from latentae.quantizers.ema import EMAQuantizer
from latentae.quantizers.fsq import FiniteScalarQuantizer
from latentae.quantizers.grouped import GroupedQuantizer
from latentae.quantizers.health import (
    CodebookHealth,
    code_counts,
    codebook_health,
    reachable_usage,
    table_healths,
    usage_deciles,
)
from latentae.quantizers.ibq import IBQuantizer
from latentae.quantizers.lfq import LookupFreeQuantizer
from latentae.quantizers.lookup import nearest_code
from latentae.quantizers.quantizer import Quantizer
from latentae.quantizers.remedies import remedies
from latentae.quantizers.residual import ResidualQuantizer
from latentae.quantizers.result import QuantizerOutput
from latentae.quantizers.simvq import SimVQuantizer
from latentae.quantizers.vector import VectorQuantizer, plain_quantizer
from latentae.quantizers.whitening import LatentMap

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
    "nearest_code",
    "own_size",
    "plain_quantizer",
    "quantizer_size",
    "reachable_usage",
    "remedies",
    "table_healths",
    "usage_deciles",
]
