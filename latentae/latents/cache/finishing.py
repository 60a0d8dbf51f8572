"""The end of an encoding: the index, written when all shards are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentae.data import BrokenImageError
from latentae.data.annotations import Annotations
from latentae.distributed import on_main
from latentae.latents.cache.folder import CacheIndex, CacheSettings, read_index
from latentae.latents.cache.planning import ShardPlan
from latentae.latents.cache.report import CacheReport
from latentae.latents.cache.shard import describe_shard, is_whole, shard_names


def finish(
    folder: Path,
    settings: CacheSettings,
    shards: Sequence[ShardPlan],
    annotations: Annotations,
    *,
    encoded: int,
    seconds: float,
) -> CacheReport:
    """Writes the index from the main rank, and says what there is; every rank must call it.

    Raises:
        ValueError: a shard is missing, since ranks see different folders; or none holds an image.
    """
    missing = [shard.file for shard in shards if not is_whole(folder / shard.file)]
    if missing:
        raise ValueError(
            f"{folder / missing[0]} is missing: with several processes all must see the same output folder"
        )
    described = [describe_shard(folder / shard.file, shard.size) for shard in shards]
    entries = [entry for entry, _ in described if entry.images]
    # Once each: an image may have been met again where it was to replace another one.
    skipped = list(dict.fromkeys(reason for _, reasons in described for reason in reasons))
    if not entries:
        raise BrokenImageError(f"none of {len(skipped)} images can be decoded, the first being {skipped[0]}")
    labels = annotations.labels
    names = annotations.label_names
    index = CacheIndex(
        settings=settings,
        shards=entries,
        posterior="std" in shard_names(folder / entries[0].file),
        label_names=names,
        num_classes=None if labels is None else len(names) if names else int(labels.max()) + 1,
        captions=annotations.captions is not None,
        skipped=skipped,
    )
    on_main(lambda: index.write(folder), f"write to {folder}")
    written = read_index(folder)
    return CacheReport(
        folder=folder,
        images=written.images,
        shards=len(written.shards),
        bytes=sum(shard.bytes for shard in written.shards),
        encoded=encoded,
        seconds=seconds,
        skipped=written.skipped,
    )
