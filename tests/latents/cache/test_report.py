from pathlib import Path

from latentae.latents.cache.report import CacheReport


def test_bytes_an_image_and_speed():
    report = CacheReport(
        Path("out"), images=1000, shards=2, bytes=3 * 2**20, encoded=500, seconds=4.0, skipped=[]
    )
    assert report.bytes_per_image == 3145.728
    assert str(report) == (
        "1000 images in 2 shard(s), 3.0 MiB, 3,146 bytes an image: out; 500 encoded now, 125.0 a second"
    )


def test_nothing_to_do():
    report = CacheReport(Path("out"), images=4, shards=1, bytes=2**20, encoded=0, seconds=0.0, skipped=[])
    assert str(report).startswith("complete, nothing to do: 4 images in 1 shard(s)")
