"""Autoencoders whose halves lie in two files, such as taesd_encoder.pth and taesd_decoder.pth."""

from __future__ import annotations

import re
from pathlib import Path

from latentae.models.checkpoints.folders import WEIGHTS
from latentae.models.checkpoints.taesd import DECODER, ENCODER

_OTHER = {ENCODER: DECODER, DECODER: ENCODER}
_WORD = re.compile(f"({ENCODER}|{DECODER})(?!.*({ENCODER}|{DECODER}))", re.IGNORECASE)  # the last one


def find_other_half(path: Path, side: str) -> Path:
    """The file that holds the other half of a model, by its name.

    Args:
        path: of the file with the half ``side``.

    Raises:
        ValueError: there is none; the message says how it must be called.
    """
    other = _OTHER[side]
    named = _named(path, other)
    if named is None:
        raise ValueError(
            f"holds the {side} of a TAESD, and the name does not tell where its {other} is: call the two "
            f"files NAME_{ENCODER}{path.suffix} and NAME_{DECODER}{path.suffix}, in one folder"
        )
    if named.name == path.name:
        raise ValueError(f"holds the {side} of a TAESD, and its name says that it is the {other}: rename it")
    if (place := _in_any_format(named)) is not None:
        return place
    raise ValueError(f"holds the {side} of a TAESD: its {other} must lie beside it, as {named.name}")


def find_pair(folder: Path) -> Path | None:
    """The encoder's file of the one pair of files in a folder; None where there is no pair.

    Raises:
        ValueError: there are several pairs.
    """
    pairs: dict[str, Path] = {}
    for suffix in WEIGHTS:  # of a pair in two formats, the first of them
        for path in sorted(folder.glob(f"*{suffix}")):
            word = _WORD.search(path.stem)
            decoder = _named(path, DECODER)
            if word and word[1].lower() == ENCODER and decoder is not None and _in_any_format(decoder):
                pairs.setdefault(path.stem, path)
    if len(pairs) > 1:
        names = sorted(path.name for path in pairs.values())
        raise ValueError(
            f"{folder} holds {len(pairs)} autoencoders in two files each: name one, such as "
            f"{', '.join(names[:3])}"
        )
    return next(iter(pairs.values()), None)


def _in_any_format(path: Path) -> Path | None:
    """The file of that name, or of that name with another suffix of weights; None where there is none."""
    places = (path.with_suffix(suffix) for suffix in (path.suffix, *WEIGHTS))
    return next((place for place in places if place.is_file()), None)


def _named(path: Path, side: str) -> Path | None:
    """The path with the last "encoder" or "decoder" of its name exchanged; None where there is neither."""
    word = _WORD.search(path.stem)
    if word is None:
        return None
    new = side.upper() if word[1].isupper() else side.capitalize() if word[1][0].isupper() else side
    return path.with_name(path.stem[: word.start()] + new + path.stem[word.end() :] + path.suffix)
