import json
from dataclasses import replace

import pytest
import torch

from latentae.latents.cache.folder import (
    CacheIndex,
    CacheSettings,
    ShardEntry,
    ShardReader,
    check_folder,
    check_shard,
    describe_shard,
    is_whole,
    read_index,
    recorded_options,
    shard_names,
    write_settings,
    write_shard,
)

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
    write_settings(tmp_path, SETTINGS)
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
    write_settings(tmp_path, SETTINGS)
    check_folder(tmp_path, replace(SETTINGS, **changes))  # before the first shard there is nothing to lose
    (tmp_path / "latents_8x8_00000.safetensors").write_bytes(b"")
    check_folder(tmp_path, SETTINGS)
    check_folder(tmp_path, replace(SETTINGS, model={**SETTINGS.model, "path": "moved"}))
    with pytest.raises(ValueError, match=says.replace("hash aaa", r"changed \(hash aaa")):
        check_folder(tmp_path, replace(SETTINGS, **changes))


def test_options_are_recorded(tmp_path):
    assert recorded_options(tmp_path) == {}
    write_settings(tmp_path, SETTINGS)
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
    assert shard_names(shard) == {"mean", "indices", "names", "names_ends"}
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
