"""Images of a stream that are kept in memory, to be taken in any order: those to measure on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from latentae.data.dataset import ImageDataset
from latentae.data.image_source import Pixels
from latentae.data.samples import EncodedImage
from latentae.data.shards import Shards
from latentae.data.stream import ImageStream

_MOST_SAMPLED_SHARDS = 16


class EncodedSource:
    """Images in memory that are not decoded yet, as an `ImageSource`."""

    def __init__(self, images: Sequence[EncodedImage]) -> None:
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index].name

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return self.images[index].load(channels, minimum_side)


def choose_held_out(
    shards: Shards, share: float, most: int, before: Mapping[str, int] | None = None
) -> dict[int, int]:
    """How many images to keep out of training at the beginning of each shard; shards without are left out.

    Of each shard, from the first one with images on, the share `share` of what a shard typically has (one
    image at least), until the same share of all, and at most `most`, is reached. It is a function of the
    data, the share and the limit; and of `before`, what was chosen before there were more shards.

    Args:
        before: label of a shard -> how many of its images were held out; None or empty: choose anew.

    Raises ValueError unless 0 < share < 1 and there are two images.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"holdout={share} must lie between 0 and 1: the share of the images kept for validation"
        )
    remembered = _still_held_out(shards, before) if before else {}
    if remembered:
        return remembered
    typical = shards.typical_count()
    if typical * len(shards) < 2:
        raise ValueError(
            f"{typical * len(shards)} image(s) are too few to hold one out for validation; give the data a "
            "validation split"
        )
    first = next((shard for shard in range(len(shards)) if any(True for _ in shards.read(shard))), 0)
    quota = max(1, int(share * typical))
    wanted = min(most, max(1, int(share * typical * len(shards))), quota * (len(shards) - first))
    full, rest = divmod(wanted, quota)
    return dict.fromkeys(range(first, first + full), quota) | ({first + full: rest} if rest else {})


def _still_held_out(shards: Shards, before: Mapping[str, int]) -> dict[int, int]:
    """What was held out before, of the shards as they are called now.

    A label is a path from the folder that all shards have in common, which more of them may change: so a
    shard counts as another's successor where the one's path ends in the other's.
    """
    held_out = {}
    for shard in range(len(shards)):
        label = f"/{shards.label(shard)}"
        counts = [n for old, n in before.items() if label.endswith(f"/{old}") or f"/{old}".endswith(label)]
        if counts:
            held_out[shard] = max(counts)
    return held_out


def read_held_out(shards: Shards, held_out: Mapping[int, int]) -> EncodedSource:
    """The images that `choose_held_out` has kept out of training, in memory."""
    return EncodedSource(
        [image for shard, count in held_out.items() for image in itertools.islice(shards.read(shard), count)]
    )


def read_first(shards: Shards, count: int, held_out: Mapping[int, int] | None = None) -> EncodedSource:
    """About `count` images in memory: equally many of up to 16 shards spread over all, from their beginnings.

    Images that are held out do not count. The same images whenever it is asked, and fewer where shards
    have fewer.
    """
    chosen = min(count, len(shards), _MOST_SAMPLED_SHARDS)
    images: list[EncodedImage] = []
    for number in range(chosen):
        shard = number * len(shards) // chosen
        wanted = count * (number + 1) // chosen - count * number // chosen
        images += itertools.islice(shards.read(shard, (held_out or {}).get(shard, 0)), wanted)
    return EncodedSource(images)


def sample_dataset(dataset: ImageDataset | ImageStream, count: int = 2048) -> ImageDataset:
    """A dataset itself; of a stream, one of about `count` of its training images, for what needs any order.

    Raises ValueError if there is no image.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    source = read_first(dataset.shards, count, dataset.held_out)
    return ImageDataset(source, dataset.transform, dataset.channels, dataset.seed, dataset.max_retries)


def epoch_size(dataset: ImageDataset | ImageStream) -> int:
    """How many images an epoch has; of a stream about how many, found with little work."""
    if isinstance(dataset, ImageDataset):
        return len(dataset)
    return max(1, len(dataset.shards) * dataset.shards.typical_count() - sum(dataset.held_out.values()))


def describe_size(dataset: ImageDataset | ImageStream) -> str:
    """How much there is, for people: `1200`, or `32 shards of`, before the word images."""
    if isinstance(dataset, ImageDataset):
        return str(len(dataset))
    shards = len(dataset.shards)
    return f"{shards} shard{'s' if shards > 1 else ''} of"
