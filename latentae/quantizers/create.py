"""Creates quantizers by name, and tells their sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from latentae.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from latentae.quantizers.composition import GroupedQuantizer, ResidualQuantizer
from latentae.quantizers.ema import EMAQuantizer
from latentae.quantizers.fsq import FiniteScalarQuantizer, check_levels
from latentae.quantizers.ibq import IBQuantizer
from latentae.quantizers.quantizer import Quantizer, check_counts
from latentae.quantizers.vector import CosineQuantizer, SimVQuantizer, VectorQuantizer

# Those that take ``num_codes`` and ``code_dim``.
TABLES: dict[str, type[Quantizer]] = {
    "vector": VectorQuantizer,
    "ema": EMAQuantizer,
    "cosine": CosineQuantizer,
    "simvq": SimVQuantizer,
    "ibq": IBQuantizer,
}
# Those whose other arguments determine the number of codes and their length.
LOOKUP_FREE: dict[str, type[Quantizer]] = {
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
}
# Those made of several of the above, and the argument that says how many.
COMPOSITIONS: dict[str, type[ResidualQuantizer | GroupedQuantizer]] = {
    "residual": ResidualQuantizer,
    "grouped": GroupedQuantizer,
}
_NUMBERS = {"residual": "depth", "grouped": "groups"}
QUANTIZERS: dict[str, type[Quantizer]] = {**TABLES, **LOOKUP_FREE, **COMPOSITIONS}


def create_quantizer(
    type: str, *, num_codes: int | None = None, code_dim: int | None = None, **arguments: Any
) -> Quantizer:
    """Creates the quantizer named ``type`` from the arguments of its class.

    A composition takes ``member``, the ``type`` and arguments of what it repeats, and the number of members:
    ``depth`` for ``residual``, ``groups`` for ``grouped``.

    Args:
        type: one of ``QUANTIZERS``.
        num_codes, code_dim: number of codes of each table, and length of what is quantized. The arguments of
            ``fsq``, ``lfq`` and ``bsq`` determine both; if given, they must agree.
        arguments: the class's.

    Raises:
        ValueError: no such quantizer, or an argument it rejects.
    """
    num_codes, code_dim = quantizer_size(type, num_codes=num_codes, code_dim=code_dim, **arguments)
    if type in TABLES:
        return TABLES[type](num_codes=num_codes, code_dim=code_dim, **arguments)
    if type in LOOKUP_FREE:
        return LOOKUP_FREE[type](**arguments)
    number, member = _repeated(type, arguments)
    member |= {"num_codes": num_codes, "code_dim": code_dim // number if type == "grouped" else code_dim}
    others = {name: value for name, value in arguments.items() if name not in ("member", _NUMBERS[type])}
    return COMPOSITIONS[type]([create_quantizer(**member) for _ in range(number)], **others)


def quantizer_size(
    type: str, *, num_codes: int | None = None, code_dim: int | None = None, **arguments: Any
) -> tuple[int, int]:
    """Returns ``num_codes`` and ``code_dim`` of the quantizer that ``create_quantizer`` would build.

    Raises:
        ValueError: no such quantizer, sizes that are missing or do not fit its other arguments.
    """
    own = implied_size(type, **arguments)
    if own is not None:
        for name, given, known in (("num_codes", num_codes, own[0]), ("code_dim", code_dim, own[1])):
            if given is not None and given != known:
                raise ValueError(
                    f"{name} is {given}, but the {type} quantizer's other arguments make it {known}"
                )
        return own
    if num_codes is None or code_dim is None:
        raise ValueError(f"the {type} quantizer needs num_codes and code_dim")
    groups = arguments["groups"] if type == "grouped" else 1
    if code_dim % groups:
        raise ValueError(f"code_dim is {code_dim}, which {groups} groups cannot share equally")
    return num_codes, code_dim


def implied_size(type: str, **arguments: Any) -> tuple[int, int] | None:
    """Returns ``num_codes`` and ``code_dim`` if the other arguments determine them; None: they must be given.

    Raises:
        ValueError: no such quantizer, or invalid arguments.
    """
    if type not in QUANTIZERS:
        raise ValueError(f"quantizer type is {type!r}, but must be one of {', '.join(QUANTIZERS)}")
    if type == "fsq":
        levels = arguments.get("levels") or ()
        check_levels(levels)
        return math.prod(levels), len(levels)
    if type in LOOKUP_FREE:
        bits = arguments.get("bits", 0)
        check_counts(bits=bits)
        return 2**bits, bits
    if type in COMPOSITIONS:
        number, member = _repeated(type, arguments)
        size = implied_size(**member)
        return None if size is None else (size[0], size[1] * (number if type == "grouped" else 1))
    given = arguments.get("num_codes"), arguments.get("code_dim")
    return None if given[0] is None or given[1] is None else (given[0], given[1])


def _repeated(type: str, arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Returns the number of members of a composition, and the arguments of each."""
    name, member = _NUMBERS[type], arguments.get("member")
    check_counts(**{name: arguments.get(name, 0)})
    if not isinstance(member, Mapping) or "type" not in member:
        raise ValueError(f"member of the {type} quantizer is {member!r}, but must be a mapping with a `type`")
    return arguments[name], dict(member)
