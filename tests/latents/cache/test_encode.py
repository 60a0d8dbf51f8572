import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from latentae import LatentDataset
from latentae.data import BrokenImageError, CenterCrop, DataSelection
from latentae.data.annotations import Annotations
from latentae.latents.cache import encode_dataset
from latentae.latents.cache.encode import CacheReport, DataRequest, finish_cache
from latentae.latents.cache.folder import read_index, write_shard
from latentae.latents.cache.planning import plan_shards
from latentae.latents.cache.work import CacheError
from tests.data.pictures import ListSource, shows_green, write_cutout
from tests.latents.cache.test_folder import SETTINGS
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


def test_arrays_are_resized_by_their_alpha_where_that_is_asked_for(tmp_path):
    write_cutout(tmp_path / "data/a.npy", side=30)
    model = make_kl(in_channels=4)
    usual = {"dtype": "float32", "image_size": 16}
    for name, alpha in (("bands", False), ("rgba", True)):
        for sizes in ("crop", "bucket"):
            folder = tmp_path / name / sizes
            encode_dataset(model, tmp_path / "data", folder, alpha=alpha, sizes=sizes, **usual)
            image = CenterCrop(16, alpha=alpha)(np.load(tmp_path / "data/a.npy"))
            assert shows_green(image) != alpha
            with torch.no_grad():
                expected = model.encode(image[None]).latent_dist.mode()[0]
            found = LatentDataset(folder, sample=False, normalised=False)[0]["latents"]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # A cache from before this option has none, and goes on without it.
    bands, rgba = tmp_path / "bands/crop", tmp_path / "rgba/crop"
    assert "alpha" not in read_index(bands).settings.options
    assert read_index(rgba).settings.options["alpha"]
    for folder, alpha, says in (
        (bands, True, r"alpha=None \(now True"),
        (rgba, False, r"alpha=True \(now None"),
    ):
        with pytest.raises(ValueError, match=says):
            encode_dataset(model, tmp_path / "data", folder, alpha=alpha, **usual)
    assert encode_dataset(model, tmp_path / "data", rgba, alpha=True, **usual).encoded == 0
    with pytest.raises(ValueError, match="alpha is set, but the model takes images of 3 channels"):
        encode_dataset(make_kl(), tmp_path / "data", tmp_path / "new", alpha=True, **usual)
    assert not (tmp_path / "new").exists()


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


SHARDS = plan_shards([(8, 8)] * 3, 2)


def write(folder, number, images, skipped=()):
    tensors = {"indices": torch.arange(images)}
    if images:
        tensors |= {name: torch.zeros(images, 4, 2, 2) for name in ("mean", "std")}
    write_shard(folder / SHARDS[number].file, tensors, texts={"names": ["x"] * images}, skipped=list(skipped))


def finished(folder, annotations):
    return finish_cache(folder, SETTINGS, SHARDS, annotations, encoded=2, seconds=1.0)


def test_the_index_lists_what_there_is(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 0, ["c: broken"])
    report = finished(tmp_path, Annotations(np.array([0, 4, 2])))
    assert (report.images, report.shards, report.skipped, report.encoded) == (2, 1, ["c: broken"], 2)
    assert report.bytes == (tmp_path / SHARDS[0].file).stat().st_size
    index = read_index(tmp_path)
    assert [(shard.images, shard.shape, shard.size) for shard in index.shards] == [(2, [4, 2, 2], [8, 8])]
    assert (index.posterior, index.num_classes, index.label_names, index.captions) == (True, 5, None, False)


def test_an_image_that_was_met_twice_is_counted_once(tmp_path):
    write(tmp_path, 0, 2, ["c: broken", "d: broken", "c: broken"])
    write(tmp_path, 1, 1, ["d: broken"])
    assert finished(tmp_path, Annotations()).skipped == ["c: broken", "d: broken"]
    assert read_index(tmp_path).skipped == ["c: broken", "d: broken"]


def test_classes_count_by_their_names(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 1)
    finished(tmp_path, Annotations(np.array([0, 1, 0]), ["a", "b", "c"]))
    assert read_index(tmp_path).num_classes == 3


def test_a_missing_shard_and_no_image_at_all(tmp_path):
    write(tmp_path, 0, 0, ["a: broken", "b: broken"])
    with pytest.raises(ValueError, match=rf"{SHARDS[1].file} is missing: .* the same output folder"):
        finished(tmp_path, Annotations())
    write(tmp_path, 1, 0, ["c: broken"])
    with pytest.raises(BrokenImageError, match="none of 3 images can be decoded, the first being a: broken"):
        finished(tmp_path, Annotations())
    assert not (tmp_path / "index.json").exists()


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


def test_images_by_name_with_their_labels(classes):
    request = DataRequest(DataSelection(str(classes)), limit=4)
    source, annotations = request.open()
    assert [source.name(index).split("/")[0] for index in range(4)] == ["cat", "cat", "dog", "dog"]
    assert annotations.labels.tolist() == [0, 0, 1, 1]
    assert annotations.label_names == ["cat", "dog"]
    assert annotations.captions(0) == "a cat on a mat"
    assert request.name == f"{classes} (train)"


def test_labels_can_be_left_out(classes):
    _, annotations = DataRequest(DataSelection(str(classes)), annotations=False).open()
    assert (annotations.labels, annotations.captions) == (None, None)


def test_columns_beside_the_images_are_named_unless_wanted(classes):
    (classes / "metadata.csv").write_text("file_name,text\n")
    for path in classes.glob("*/*.png"):
        with (classes / "metadata.csv").open("a") as file:
            file.write(f"{path.relative_to(classes).as_posix()},a {path.parent.name}\n")
    selection = DataSelection(str(classes))
    for limit in (None, 4):
        request = DataRequest(selection, limit=limit)
        assert "metadata.csv: the column(s) text are not" in request.unread(request.open()[0])
    for changes in ({"caption_column": "text"}, {"annotations": False}):
        request = DataRequest(selection, **changes)
        assert request.unread(request.open()[0]) is None
    wanted = DataRequest(selection, caption_column="text").open()[1]
    assert (wanted.captions(0), wanted.captions(9)) == ("a cat", "a dog")
    source = request.open()[0]
    assert DataRequest(source).unread(source) is None  # whoever opened it knows what is beside it


def test_images_of_ones_own():
    request = DataRequest(ListSource(3))
    assert len(request.open()[0]) == 3
    assert request.name == "a ListSource"
    with pytest.raises(ValueError, match="the source has no images"):
        DataRequest(ListSource(0)).open()
