import pickle

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch.utils.data import DataLoader

from latentae import LatentDataset
from latentae.data import CenterCrop, FolderSource
from latentae.latents.cache import SameShapeBatches, encode_dataset
from latentae.latents.cache.folder import write_shard
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl, make_vq


def pictures(folder):
    source = FolderSource(folder)
    return torch.stack([CenterCrop(16)(source.load(index, 3)) for index in range(len(source))])


def encoded(tmp_path, model, images=None, **options):
    encode_dataset(model, images or ListSource(5), tmp_path / "out", image_size=8, **options)
    return tmp_path / "out"


def test_the_mode_is_what_the_model_encodes(cache, classes):
    model = make_kl()
    dataset = LatentDataset(cache, model, sample=False, flip=False)
    with torch.no_grad():
        raw = model.encode(pictures(classes)).latents
    item = dataset[7]
    assert (len(dataset), dataset.latent_shape, dataset.image_size) == (10, (4, 8, 8), 16)
    assert (item["name"], item["index"], item["label"]) == (FolderSource(classes).name(7), 7, 1)
    assert dataset.label_names == ["cat", "dog"]
    assert (dataset.num_classes, dataset.labels.tolist()) == (2, [0] * 5 + [1] * 5)
    assert (dataset.has_captions, dataset[0]["caption"], item["caption"]) == (True, "a cat on a mat", "")
    torch.testing.assert_close(torch.stack([row["latents"] for row in dataset]), raw)
    assert len(dataset.model_hash) == 64


def test_normalised_as_the_model_does_it(tmp_path):
    model = make_kl(scaling_factor=0.5, shift_factor=3.0)
    folder = encoded(tmp_path, model, dtype="float32")
    own, raw = (LatentDataset(folder, sample=False, normalised=flag)[2]["latents"] for flag in (True, False))
    torch.testing.assert_close(own, (raw - 3.0) * 0.5)
    with torch.no_grad():
        image = CenterCrop(8)(ListSource(5).load(2, 3))
        torch.testing.assert_close(raw[None], model.encode(image[None]).latents)


def test_samples_have_the_posteriors_moments(cache):
    mode = LatentDataset(cache, sample=False, flip=False)[3]["latents"]
    dataset = LatentDataset(cache, flip=False)
    draws = []
    for epoch in range(400):
        dataset.set_epoch(epoch)
        draws.append(dataset[3]["latents"])
    stored = dataset._reader(0).row("std", 3)
    drawn = torch.stack(draws)
    # 256 values of 400 draws: their mean is within 5 standard errors of the mode, as is the spread.
    assert ((drawn.mean(0) - mode).abs() / (stored / 20)).max() < 5
    assert ((drawn.std(0) / stored - 1).abs()).max() < 5 / 800**0.5


def test_noise_is_a_function_of_seed_epoch_and_index(cache):
    first, again, other = LatentDataset(cache), LatentDataset(cache), LatentDataset(cache, seed=1)
    assert torch.equal(first[4]["latents"], again[4]["latents"])
    assert not torch.equal(first[4]["latents"], other[4]["latents"])
    before = first[4]["latents"]
    first.set_epoch(1)
    assert not torch.equal(first[4]["latents"], before)
    first.set_epoch(0)
    assert torch.equal(first[4]["latents"], before)


def test_either_orientation_of_an_image(cache, classes):
    model, images = make_kl(), pictures(classes)
    dataset = LatentDataset(cache, sample=False)
    with torch.no_grad():
        sides = {flag: model.encode(images.flip(-1) if flag else images).latents for flag in (False, True)}
    seen = set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for item in dataset:
            torch.testing.assert_close(item["latents"], sides[item["flipped"]][item["index"]])
            seen.add(item["flipped"])
    assert seen == {False, True}


@pytest.mark.parametrize(("workers", "context"), [(2, "fork"), (1, "spawn")])
def test_workers_give_what_the_process_itself_does(workers, context, cache):
    dataset = LatentDataset(cache, seed=5)
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, multiprocessing_context=context, persistent_workers=True
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)  # which reaches workers that live on
        own = torch.stack([dataset[index]["latents"] for index in range(len(dataset))])
        assert torch.equal(torch.cat([batch["latents"] for batch in loader]), own)


def test_it_can_be_pickled(cache):
    dataset = LatentDataset(cache)
    dataset.set_epoch(2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 2
    assert torch.equal(copy[9]["latents"], dataset[-1]["latents"])
    with pytest.raises(IndexError, match="index is 10, but there are 10"):
        copy[10]
    with pytest.raises(ValueError, match="epoch is -1"):
        copy.set_epoch(-1)


def test_codes_of_a_vq_model(tmp_path):
    model = make_vq()
    dataset = LatentDataset(encoded(tmp_path, model, codes=True, flips=True), model, flip=False)
    image = CenterCrop(8)(ListSource(5).load(1, 3))[None]
    assert torch.equal(dataset[1]["codes"][None], model.encode_indices(image))
    torch.testing.assert_close(dataset[1]["latents"][None], model.to_latents(image), rtol=2e-3, atol=2e-3)
    (tmp_path / "only").mkdir()
    only = LatentDataset(encoded(tmp_path / "only", model, codes=True, latents=False))
    assert set(only[0]) == {"name", "index", "codes"}
    assert (only.latent_shape, only[0]["codes"].dtype) == ((4, 4), torch.int64)


def test_latents_of_several_shapes_come_in_batches_of_one(tmp_path):
    folder = tmp_path / "mixed"
    for name, size in (("a", (32, 32)), ("b", (64, 32)), ("c", (33, 32)), ("d", (65, 32))):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", size, (50, 90, 200)).save(folder / f"{name}.png")
    encode_dataset(make_kl(), folder, tmp_path / "out", image_size=16, sizes="bucket")
    dataset = LatentDataset(tmp_path / "out")
    # Sizes of about 256 pixels whose aspect is nearest to 1 and to 2: 16 x 16, and 10 high by 24 wide.
    assert dataset.shapes == [(4, 5, 12)] * 2 + [(4, 8, 8)] * 2
    with pytest.raises(ValueError, match=r"latents have 2 shapes, .*SameShapeBatches"):
        _ = dataset.latent_shape
    loader = DataLoader(dataset, batch_sampler=SameShapeBatches(dataset.shapes, 2))
    assert sorted(sorted(batch["name"]) for batch in loader) == [["a.png", "c.png"], ["b.png", "d.png"]]


def test_a_cache_of_version_1_opens(tmp_path):
    # The files as the first version wrote them: another layout needs another version number.
    options = (
        '{"image_size": 16, "sizes": "crop", "flips": false, "latents": true, "codes": false, '
        '"dtype": "float16", "precision": "float32", "broken": "skip", "shard_size": 128, "seed": 0}'
    )
    settings = (
        '{"model": {"hash": "aa", "class": "KLVAE", "path": "run"}, '
        '"normalisation": {"shift": [1.0, 2.0], "scale": [0.5, 0.25]}, '
        '"data": {"hash": "bb", "name": "photos (train)", "images": 2, "caption_column": null}, '
        f'"options": {options}, "version": 1}}'
    )
    tensors = {
        "mean": torch.tensor([3.0, 6.0]).half().reshape(1, 2, 1, 1).repeat(2, 1, 1, 1),
        "std": torch.zeros(2, 2, 1, 1).half(),
        "indices": torch.tensor([0, 1]),
        "labels": torch.tensor([1, 0]),
        "names": torch.tensor(list(b"a.pngb.png"), dtype=torch.uint8),
        "names_ends": torch.tensor([5, 10]),
    }
    file = "latents_16x16_00000.safetensors"
    content = save(tensors, {"skipped": "[]"})
    (tmp_path / file).write_bytes(content)
    shard = (
        f'{{"file": "{file}", "bytes": {len(content)}, "images": 2, "shape": [2, 1, 1], "size": [16, 16]}}'
    )
    (tmp_path / "index.json").write_text(
        f'{{"settings": {settings}, "shards": [{shard}], "posterior": true, "label_names": ["x", "y"], '
        '"num_classes": 2, "captions": false, "skipped": []}'
    )
    dataset = LatentDataset(tmp_path)
    assert (len(dataset), dataset.latent_shape, dataset.label_names) == (2, (2, 1, 1), ["x", "y"])
    assert (dataset[1]["name"], dataset[1]["label"]) == ("b.png", 0)
    assert dataset[1]["latents"].flatten().tolist() == [(3 - 1) * 0.5, (6 - 2) * 0.25]
    write_shard(
        tmp_path / "again",
        {name: tensors[name] for name in ("mean", "std", "indices", "labels")},
        texts={"names": ["a.png", "b.png"]},
        skipped=[],
    )
    assert (tmp_path / "again").read_bytes() == content


def test_what_cannot_be_read_is_named(cache, tmp_path):
    with pytest.raises(ValueError, match="are of another model"):
        LatentDataset(cache, make_vq())
    shard = sorted(cache.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{shard.name} is cut short: .* remove the file, and the command"):
        LatentDataset(cache)
    folder = encoded(tmp_path, make_kl(scaling_factor=None))
    with pytest.raises(ValueError, match=r"is not known: .*latent_stats\.py .*normalised=False"):
        LatentDataset(folder)
    assert len(LatentDataset(folder, normalised=False)) == 5


SHAPES = [(4, 8, 8)] * 5 + [(4, 4, 16)] * 3


def test_each_image_once_and_one_shape_a_batch():
    batches = SameShapeBatches(SHAPES, 2, seed=3)
    drawn = list(DataLoader(range(8), batch_sampler=batches, collate_fn=list))
    assert sorted(index for batch in drawn for index in batch) == list(range(8))
    assert all(len({SHAPES[index] for index in batch}) == 1 for batch in drawn)
    assert sorted(len(batch) for batch in drawn) == [1, 1, 2, 2, 2]
    assert len(batches) == len(drawn) == 5


def test_the_order_is_a_function_of_seed_and_epoch():
    batches, again = (SameShapeBatches(SHAPES, 2, seed=3) for _ in range(2))
    first = list(batches)
    assert list(again) == first
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(SameShapeBatches(SHAPES, 2, seed=4)) != first


def test_small_batches_can_be_left_out():
    batches = SameShapeBatches(SHAPES, 2, drop_last=True)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert len(batches) == 3


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        SameShapeBatches(SHAPES, 0)
