"""What to change of a quantizer that leaves codes unused, by what it is and what it was built with."""

from __future__ import annotations

from latentae.quantizers.binary import BinaryQuantizer
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.composition import ComposedQuantizer
from latentae.quantizers.fsq import FiniteScalarQuantizer
from latentae.quantizers.ibq import IBQuantizer
from latentae.quantizers.quantizer import Quantizer
from latentae.quantizers.vector import VectorQuantizer

_REVIVE_AFTER = 20  # the quickstart's; with it ema, cosine and simvq reached all of 1,024 codes
_FEW_DIMENSIONS = 32  # ViT-VQGAN and LlamaGen: far more codes are in use with 8 to 32 than with 256
_FEW_LEVELS = 5  # the paper's advice


def remedies(quantizer: Quantizer) -> list[str]:
    """Changes of its arguments that bring codes into use, the likeliest first, as ``name=value``.

    Those of a composition are its members', as ``member.name=value``.
    """
    if isinstance(quantizer, ComposedQuantizer):
        member, _ = next(quantizer.each())
        return [f"member.{remedy}" for remedy in remedies(member)]
    if isinstance(quantizer, CodebookQuantizer):
        return _of_codebook(quantizer)
    if isinstance(quantizer, IBQuantizer):
        heavier = 0.05 if quantizer.entropy_weight == 0 else 2 * quantizer.entropy_weight
        return [f"entropy_weight={heavier:g}", "type=ema", "type=simvq"]
    if isinstance(quantizer, BinaryQuantizer):
        return _of_signs(quantizer)
    if isinstance(quantizer, FiniteScalarQuantizer):
        return _of_levels(quantizer)
    return []


def _of_codebook(quantizer: CodebookQuantizer) -> list[str]:
    found = []
    if quantizer.init != "data":
        found.append("init=data")
    if quantizer.revive_after is None or quantizer.revive_after > _REVIVE_AFTER:
        found.append(f"revive_after={_REVIVE_AFTER}")
    if quantizer.gradient != "rotation":
        found.append("gradient=rotation")
    if quantizer.code_dim > _FEW_DIMENSIONS:
        found.append("code_dim=8")
    if isinstance(quantizer, VectorQuantizer):
        found += ["type=ema", "type=simvq"]
    return [*found, "type=fsq"]


def _of_signs(quantizer: BinaryQuantizer) -> list[str]:
    found = [f"entropy_weight={0.1 if quantizer.entropy_weight == 0 else 2 * quantizer.entropy_weight:g}"]
    if quantizer.diversity_weight < 1:
        found.append("diversity_weight=1")
    if quantizer.code_dim > 1:
        found.append(f"bits={quantizer.code_dim - 1}")
    return [*found, "type=fsq"]


def _of_levels(quantizer: FiniteScalarQuantizer) -> list[str]:
    found = [] if quantizer.init == "data" else ["init=data"]
    found.append(f"spread_weight={0.1 if quantizer.spread_weight == 0 else 2 * quantizer.spread_weight:g}")
    levels: list[int] = quantizer.levels.tolist()
    most = levels.index(max(levels))
    # Nothing could be revived: there is only a smaller grid, or one of fewer, wider channels.
    if levels[most] > 2:
        levels[most] -= 1
        return [*found, f"levels={levels}"]
    return [*found, f"levels={[_FEW_LEVELS] * max(1, len(levels) // 2)}"]
