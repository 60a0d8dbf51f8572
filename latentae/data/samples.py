"""One training sample of the first image that can be decoded among some candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from latentae.data.decode import BrokenImageError
from latentae.data.image_source import Pixels
from latentae.data.transforms import Transform
from latentae.data.workers import announce


class Sample(TypedDict):
    """One image: `images` [C, H, W] in [-1, 1], the `index` asked for, the `name` of what is shown, `broken`.

    `broken` describes the images that could not be decoded and were replaced, each `name: reason`, one
    a line; it is empty where all went well, and `name` is then the name of image `index`.
    """

    images: torch.Tensor
    index: int
    name: str
    broken: str


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet.

    Attributes:
        name: what to call it in messages.
        load: (channels, minimum_side) -> pixels, as `ImageSource.load` has it.
        row: where it stands in its shard, if it comes from one.
    """

    name: str
    load: Callable[[int, int | None], Pixels]
    row: int = 0


def make_sample(
    candidates: Iterable[EncodedImage],
    transform: Transform,
    rng: np.random.Generator,
    *,
    channels: int,
    minimum_side: int | None,
    index: int,
) -> Sample:
    """The sample of the first of the candidates that can be decoded.

    Raises BrokenImageError where none can.
    """
    broken: list[str] = []
    for candidate in candidates:
        announce(candidate.name)
        try:
            picture = candidate.load(channels, minimum_side)
        except BrokenImageError as error:
            broken.append(str(error))
            continue
        return Sample(
            images=transform(picture, rng), index=index, name=candidate.name, broken="\n".join(broken)
        )
    raise BrokenImageError(
        f"{len(broken)} images in a row cannot be decoded, the first being {broken[0]}; "
        "check the data and the number of channels"
    )
