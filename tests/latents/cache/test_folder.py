import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentae import load_autoencoder
from latentae.data.annotations import Annotations
from latentae.latents.cache.folder import (
    CacheIndex,
    CacheSettings,
    ShardEntry,
    ShardReader,
    check_folder,
    check_model,
    check_shard,
    data_hash,
    describe_shard,
    is_whole,
    model_hash,
    normalisation_of,
    read_index,
    recorded_options,
    write_shard,
)
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl, make_vq

SETTINGS = CacheSettings(
    model={"hash": "aaa", "class": "KLVAE", "path": "run"},
    normalisation={"shift": [0.0], "scale": [1.5]},
    data={"hash": "ccc", "name": "photos", "images": 9},
    options={"image_size": 64, "flips": False},
)
INDEX = CacheIndex(
    SETTINGS, [ShardEntry("a", 10, 3, [4, 8, 8], [64, 64]), ShardEntry("b", 9, 2, [4, 8, 8], [64, 64])], True
)


def test_an_index_comes_back(tmp_path):
    INDEX.write(tmp_path)
    assert read_index(tmp_path) == INDEX
    assert INDEX.images == 5


def test_what_is_no_finished_cache_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"there are no latents in .*`latentae encode`"):
        read_index(tmp_path)
    SETTINGS.write(tmp_path)
    with pytest.raises(ValueError, match="are not finished: run the command that encodes them again"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        read_index(tmp_path)
    content = {"settings": {"version": 99}, "shards": []}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is a cache of version 99, and this program reads 1"):
        read_index(tmp_path)


def test_a_folder_for_a_new_cache_must_be_empty(tmp_path):
    check_folder(tmp_path / "new", SETTINGS)
    check_folder(tmp_path, SETTINGS)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files than latents"):
        check_folder(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="is a file: choose a folder"):
        check_folder(tmp_path / "notes.txt", SETTINGS)


@pytest.mark.parametrize("content", ['{"steps": 5, "models": {}}', "// of an editor\n{}", "[]"])
def test_the_settings_of_another_program_are_left_alone(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="holds other files than latents: choose a new or an empty folder"):
        check_folder(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="there are no latents in"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match=r"index\.json is not of latents"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model": {**SETTINGS.model, "hash": "bbb"}},
            "latents of another model, run, or .* hash aaa, now bbb",
        ),
        ({"normalisation": None}, "this model at another scale or shift"),
        (
            {"data": {**SETTINGS.data, "caption_column": "text"}},
            r"made with caption_column=None \(now 'text'\): give the same, or choose",
        ),
        ({"data": {"hash": "d", "name": "x", "images": 8}}, "of other images: 9 of photos; now there are 8"),
        (
            {"options": {"image_size": 32, "flips": False}},
            r"made with image_size=64 \(now 32\): give the same",
        ),
    ],
)
def test_a_cache_of_something_else_is_refused(changes, says, tmp_path):
    SETTINGS.write(tmp_path)
    check_folder(tmp_path, replace(SETTINGS, **changes))  # before the first shard there is nothing to lose
    (tmp_path / "latents_8x8_00000.safetensors").write_bytes(b"")
    check_folder(tmp_path, SETTINGS)
    check_folder(tmp_path, replace(SETTINGS, model={**SETTINGS.model, "path": "moved"}))
    with pytest.raises(ValueError, match=says.replace("hash aaa", r"changed \(hash aaa")):
        check_folder(tmp_path, replace(SETTINGS, **changes))


def test_options_are_recorded(tmp_path):
    assert recorded_options(tmp_path) == {}
    SETTINGS.write(tmp_path)
    assert recorded_options(tmp_path) == {}
    (tmp_path / "latents_8x8_00000.safetensors").write_bytes(b"")
    assert recorded_options(tmp_path) == SETTINGS.options


MEAN = torch.arange(24.0).reshape(3, 2, 2, 2)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "latents_8x8_00000.safetensors"
    tensors = {"mean": MEAN, "indices": torch.tensor([4, 6, 7])}
    write_shard(path, tensors, texts={"names": ["a", "", "ä/é.png"]}, skipped=["b: broken"])
    return path


def test_rows_and_texts_come_back(shard):
    entry, skipped = describe_shard(shard, (8, 8))
    assert entry == ShardEntry(shard.name, shard.stat().st_size, 3, [2, 2, 2], [8, 8])
    assert skipped == ["b: broken"]
    assert ShardReader(shard, entry).names == {"mean", "indices", "names", "names_ends"}
    reader = ShardReader(shard, entry)
    assert torch.equal(reader.row("mean", 1), MEAN[1])
    assert [reader.text("names", position) for position in range(3)] == ["a", "", "ä/é.png"]
    assert reader.whole("indices").tolist() == [4, 6, 7]


def test_a_shard_without_images(tmp_path):
    path = tmp_path / "empty.safetensors"
    write_shard(
        path, {"indices": torch.zeros(0, dtype=torch.int64)}, texts={"names": []}, skipped=["b: broken"]
    )
    entry, _ = describe_shard(path, (8, 8))
    assert (entry.images, entry.shape) == (0, [])


def test_a_shard_cut_short_is_named_with_a_remedy(shard):
    entry, _ = describe_shard(shard, (8, 8))
    whole = shard.read_bytes()
    assert is_whole(shard)
    shard.write_bytes(whole[:-1])
    assert not is_whole(shard)
    with pytest.raises(
        ValueError, match=rf"{shard.name} is cut short: {len(whole) - 1} bytes of .*remove the"
    ):
        check_shard(shard, entry)
    shard.write_bytes(whole + b"1")
    with pytest.raises(ValueError, match="is changed"):
        check_shard(shard, entry)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged \(.*remove the file"):
        ShardReader(shard, entry)
    shard.unlink()
    assert not is_whole(shard)
    with pytest.raises(ValueError, match=rf"{shard.name} is missing: the command .* makes this shard anew"):
        check_shard(shard, entry)


def changed(model, name):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-3
    return model


def test_a_hash_knows_the_encoder_and_not_the_decoder(tmp_path):
    own = model_hash(make_kl())
    make_kl().save_pretrained(tmp_path)
    assert model_hash(load_autoencoder(tmp_path)) == own
    assert model_hash(changed(make_kl(), "decoder.conv_out.weight")) == own
    assert model_hash(changed(make_kl(), "post_quant_conv.bias")) == own
    assert model_hash(make_kl(scaling_factor=0.3)) == own
    assert model_hash(changed(make_kl(), "encoder.conv_in.weight")) != own
    assert model_hash(changed(make_kl(), "quant_conv.bias")) != own
    assert model_hash(make_kl(norm_num_groups=2)) != own
    assert model_hash(make_kl().half()) != own


def test_the_codebook_counts_where_codes_are_stored():
    other = changed(make_vq(), "quantize.embedding.weight")
    assert model_hash(other) == model_hash(make_vq())
    assert model_hash(other, codes=True) != model_hash(make_vq(), codes=True)


def test_normalisation_a_channel():
    assert normalisation_of(make_kl(scaling_factor=0.5, shift_factor=2.0)) == {
        "shift": [2.0] * 4,
        "scale": [0.5] * 4,
    }
    mean, std = (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 4.0, 8.0)
    own = normalisation_of(make_kl(scaling_factor=0.5, latents_mean=mean, latents_std=std))
    assert own == {"shift": list(mean), "scale": [0.5, 0.25, 0.125, 0.0625]}
    assert normalisation_of(make_kl(scaling_factor=None)) is None


@pytest.mark.parametrize(
    "other",
    [
        (ListSource(4), Annotations(np.array([0, 1, 0]))),
        (ListSource(3, broken=(1,)), Annotations(np.array([0, 1, 0]))),
        (ListSource(3), Annotations(np.array([0, 1, 1]))),
        (ListSource(3), Annotations(np.array([0, 1, 0]), ["a", "b"])),
        (ListSource(3), Annotations()),
    ],
)
def test_a_hash_knows_images_and_labels(other):
    own = data_hash(ListSource(3), Annotations(np.array([0, 1, 0])), 3)
    assert data_hash(ListSource(3), Annotations(np.array([0, 1, 0])), 3) == own
    assert data_hash(*other, 3) != own


def test_a_model_and_what_became_of_it(cache, tmp_path):
    settings = read_index(cache).settings
    check_model(settings, make_kl(), cache)
    check_model(settings, changed(make_kl(), "decoder.conv_in.bias"), cache)
    make_kl().save_pretrained(tmp_path / "model")
    check_model(settings, tmp_path / "model", cache)
    with pytest.raises(
        ValueError, match=r"are of another model: of a model in memory \(KLVAE, hash .*encode the"
    ):
        check_model(settings, changed(make_kl(), "encoder.conv_in.bias"), cache)
    with pytest.raises(ValueError, match="this model at another scale or shift"):
        check_model(settings, make_kl(scaling_factor=0.2), cache)
    with pytest.raises(ValueError, match="model is a dict: give a path"):
        check_model(settings, {}, cache)
