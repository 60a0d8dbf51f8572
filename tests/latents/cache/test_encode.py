import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from latentae import LatentDataset
from latentae.data import BrokenImageError
from latentae.latents.cache import encode_dataset
from latentae.latents.cache.work import CacheError
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl
from tests.processes import launch

SCRIPT = """
import sys
from latentae import cli
sys.exit(cli.main(["encode", *sys.argv[1:]]))
"""


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_encoding_that_was_killed_goes_on(classes, cache, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(cache, half)
    (half / "index.json").unlink()
    shards = sorted(half.glob("*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    (half / ".latents_16x16_00000.safetensors.77").write_bytes(b"")
    said = []
    arguments = {"shard_size": 4, "batch_size": 4, "flips": True, "dtype": "float32"}
    report = encode_dataset(make_kl(), classes, half, say=said.append, **arguments)
    assert (report.encoded, report.images) == (8, 10)
    assert said[0] == "going on: 1 of 3 shards are there"
    assert contents(half).keys() == contents(cache).keys()
    for shard in shards:
        torch.testing.assert_close(
            load((half / shard.name).read_bytes()), load((cache / shard.name).read_bytes())
        )
    again = encode_dataset(make_kl(), classes, half, **{**arguments, "shard_size": None})
    assert str(again).startswith("complete, nothing to do: 10 images in 3 shard(s)")


def test_two_processes_write_what_one_does(classes, cache, tmp_path):
    (tmp_path / "encode.py").write_text(SCRIPT)
    model = make_kl()
    model.save_pretrained(tmp_path / "model")
    arguments = [
        "--shard-size",
        "4",
        "--batch-size",
        "4",
        "--flips",
        "--dtype",
        "float32",
        "--num-workers",
        "1",
    ]
    out = ["--data", str(classes), "--out", str(tmp_path / "two")]
    launch(tmp_path / "encode.py", 2, str(tmp_path / "model"), *out, *arguments)
    one, two = contents(cache), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in (name for name in one if name.endswith(".safetensors")):
        # Weights read from a file lie elsewhere in memory, for which matrix products round differently.
        torch.testing.assert_close(load(two[name]), load(one[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": make_kl(norm_num_groups=2)}, "another model"),
        ({"model": make_kl(scaling_factor=0.1)}, "another scale or shift"),
        ({"images": ListSource(9)}, "other images: 10 of .*; now there are 9"),
        ({"flips": False}, r"flips=True \(now False\)"),
        ({"image_size": 8}, r"image_size=16 \(now 8\)"),
        ({"shard_size": 5}, r"shard_size=4 \(now 5\)"),
    ],
)
def test_a_folder_of_something_else_stays_as_it_is(changes, says, classes, cache):
    before = contents(cache)
    arguments = {"model": make_kl(), "images": classes, "flips": True, "dtype": "float32", **changes}
    with pytest.raises(ValueError, match=says):
        encode_dataset(out=cache, **arguments)
    assert contents(cache) == before


def test_a_changed_picture_is_other_data(classes, cache):
    first = next((classes / "dog").iterdir())
    Image.new("RGB", (24, 24), (9, 9, 9)).save(first)
    with pytest.raises(ValueError, match="or their names, pixels or labels have changed"):
        encode_dataset(make_kl(), classes, cache, flips=True, dtype="float32")


def test_fewer_images_than_a_batch_and_constant_ones(tmp_path):
    for number in range(3):
        Image.new("RGB", (20, 20), (80, 80, 80)).save(tmp_path / f"{number}.png")
    model = make_kl()
    report = encode_dataset(model, tmp_path, tmp_path / "out", batch_size=64)
    assert (report.images, report.shards) == (3, 1)
    dataset = LatentDataset(tmp_path / "out", model, sample=False)
    assert torch.equal(dataset[0]["latents"], dataset[2]["latents"])
    assert bool(dataset[0]["latents"].isfinite().all())
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["options"]["shard_size"] == 128


def test_broken_images(tmp_path):
    source = ListSource(6, broken=(2,))
    report = encode_dataset(make_kl(), source, tmp_path / "skip", shard_size=2)
    assert (report.images, report.skipped) == (5, ["picture2: it is broken"])
    dataset = LatentDataset(tmp_path / "skip")
    assert [dataset[index]["name"][-1] for index in range(5)] == ["0", "1", "3", "4", "5"]
    report = encode_dataset(make_kl(), source, tmp_path / "replace", broken="replace", seed=1)
    assert (report.images, len(report.skipped) > 0) == (6, True)
    assert LatentDataset(tmp_path / "replace")[2]["name"] != "picture2"
    with pytest.raises(CacheError, match="picture2: it is broken; broken='skip'"):
        encode_dataset(make_kl(), source, tmp_path / "stop", broken="stop")
    with pytest.raises(BrokenImageError, match="none of 2 images can be decoded"):
        encode_dataset(make_kl(), ListSource(2, broken=(0, 1)), tmp_path / "none")


def test_mixed_sizes_are_refused_before_anything_is_encoded(tmp_path):
    for name, size in (("a", (20, 20)), ("b", (20, 30))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"b\.png has 30x20 pixels and a\.png has 20x20"):
        encode_dataset(make_kl(), tmp_path, tmp_path / "out", sizes="refuse")
    assert not list((tmp_path / "out").glob("latents*"))
    (tmp_path / "b.png").unlink()
    encode_dataset(make_kl(), tmp_path, tmp_path / "out", sizes="refuse")
    assert (LatentDataset(tmp_path / "out").image_size, len(LatentDataset(tmp_path / "out"))) == (20, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0, but must be 1 or more"),
        ({"workers": -1}, "workers is -1, but must be 0 or more"),
        ({"limit": 0}, "limit is 0, but must be 1 or more"),
        ({"codes": True}, "codes are of VQ models"),
        ({"model": {}}, "model is a dict: give a path"),
        ({"images": "nowhere/at/all"}, "does not exist|is neither"),
    ],
)
def test_a_mistake_writes_nothing(changes, says, tmp_path):
    arguments = {"model": make_kl(), "images": ListSource(3), **changes}
    with pytest.raises(ValueError, match=says):
        encode_dataset(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
