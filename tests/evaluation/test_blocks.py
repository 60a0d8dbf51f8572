from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from latentae.data import DataSelection, FolderSource
from latentae.evaluation import blocks as module
from latentae.evaluation.blocks import (
    BLOCK_SIZE,
    PROTOCOLS,
    ImageBlocks,
    Protocol,
    block_loader,
    open_images,
    protocol_called,
)
from latentae.evaluation.metrics import to_uint8
from tests.data.pictures import shows_green, write_cutout


@pytest.fixture
def picture():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (40, 61, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (33, 33), (25, 48)])
def test_imagenet_is_torchvisions_resize_and_center_crop(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = to_uint8(protocol_called("resize-24")(picture))
    theirs = transforms.Compose(
        [transforms.Resize(24, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(24)]
    )(Image.fromarray(picture))
    assert torch.equal(ours, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))


def test_native_changes_nothing(picture):
    images = PROTOCOLS["native"](picture)
    assert images.shape == (3, 40, 61)
    assert torch.equal(to_uint8(images), torch.from_numpy(picture).permute(2, 0, 1))


def test_a_crop_is_central_and_unresized(picture):
    images = to_uint8(protocol_called("crop-20")(picture))
    assert torch.equal(images, torch.from_numpy(picture[10:30, 20:40]).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"40 x 61 is smaller than the crop of 50; use resize-50"):
        protocol_called("crop-50")(picture)


def test_a_resize_without_a_crop_keeps_the_aspect(picture):
    assert Protocol("mine", resize=20, crop=None)(picture).shape == (3, 20, 30)


def test_deep_images_are_put_on_the_8_bit_grid():
    deep = np.full((4, 4, 2), 0.123456, np.float32)
    value = PROTOCOLS["native"](deep)[0, 0, 0].item()
    assert (value + 1) * 127.5 == pytest.approx(31, abs=1e-4)


def test_the_description_holds_every_choice():
    assert PROTOCOLS["imagenet-256"].describe() == {
        "name": "imagenet-256",
        "resize": 256,
        "crop": 256,
        "interpolation": "bicubic, antialiased (Pillow)",
        "output": "clamped, rounded to 8 bits",
        "reference": "the same crops in 8 bits",
    }


@pytest.mark.parametrize("name", ["imagenet", "crop-", "crop-0", "resize--3", "side-4"])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match="crop-N or resize-N"):
        protocol_called(name)


def draw(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")


def test_validation_else_test_else_what_there_is(tmp_path):
    draw(tmp_path / "train", 3)
    chosen = DataSelection(str(tmp_path), "")
    assert open_images(chosen)[0] == "train"
    draw(tmp_path / "test", 2)
    assert open_images(chosen)[0] == "test"
    draw(tmp_path / "val", 1)
    split, source = open_images(chosen)
    assert (split, len(source)) == ("validation", 1)
    split, source = open_images(DataSelection(str(tmp_path), "train"))
    assert (split, len(source)) == ("train", 3)
    assert open_images(DataSelection("photos", ""))[0] == "validation"


def test_a_hub_dataset_says_its_splits(monkeypatch):
    class Builder:
        class info:  # noqa: N801  # as in `datasets`
            splits = ("train", "test")

    opened = []
    monkeypatch.setattr(module, "prepare_hub_dataset", lambda name, config: Builder)
    monkeypatch.setattr(DataSelection, "open", lambda selection: opened.append(selection))
    selection = DataSelection("owner/images", "", dataset_config="small", image_column="img")
    assert open_images(selection)[0] == "test"
    assert opened == [replace(selection, split="test")]


def test_no_such_data(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_images(DataSelection(str(tmp_path / "gone"), ""))
    draw(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="split 'test' is not in"):
        open_images(DataSelection(str(tmp_path / "images"), "test"))


def test_blocks_hold_every_image_once_in_order(source):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    found = [index for block in block_loader(blocks, [0, 1, 2]) for index in block.indices]
    assert found == list(range(70))
    assert [len(blocks[number].images) for number in range(len(blocks))] == [BLOCK_SIZE, BLOCK_SIZE, 6]
    assert blocks[2].names[-1] == "069.png"


@pytest.mark.parametrize("alpha", [True, False])
def test_arrays_are_resized_by_their_alpha(tmp_path, alpha):
    write_cutout(tmp_path / "a.npy", side=30)
    blocks = ImageBlocks(FolderSource(tmp_path), protocol_called("resize-16"), 4, alpha=alpha)
    assert shows_green(blocks.prepare(0)) != alpha


def test_workers_change_nothing(source):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    alone, shared = (list(block_loader(blocks, [2, 0], workers)) for workers in (0, 2))
    assert [block.number for block in shared] == [2, 0]
    for a, b in zip(alone, shared, strict=True):
        assert all(map(torch.equal, a.images, b.images))


def test_a_limit_is_spread_over_the_source(source):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3, limit=7)
    assert blocks[0].indices == [0, 10, 20, 30, 40, 50, 60]
    assert blocks.list_sha256 != ImageBlocks(source, PROTOCOLS["native"], 3).list_sha256
    with pytest.raises(ValueError, match="limit is 0"):
        ImageBlocks(source, PROTOCOLS["native"], 3, limit=0)


def test_what_cannot_be_read_is_named(source, image_folder):
    (image_folder / "001.png").write_bytes(b"no picture")
    block = ImageBlocks(source, PROTOCOLS["native"], 3)[0]
    assert 1 not in block.indices
    assert len(block.unreadable) == 1
    assert block.unreadable[0].startswith("001.png: ")


def test_any_name_is_said_once_in_one_line(image_folder):
    (image_folder / "000\n.png").write_bytes(b"no picture")
    blocks = ImageBlocks(FolderSource(image_folder), PROTOCOLS["native"], 3)
    (reason,) = blocks[0].unreadable
    assert reason.startswith(r"000\n.png: not an image")
    assert reason.count(".png") == 1
    (image_folder / "caf\udce9.png").write_bytes(b"no picture")
    assert len(ImageBlocks(FolderSource(image_folder), PROTOCOLS["native"], 3).list_sha256) == 64


def test_what_is_smaller_than_a_latent_is_named(source):
    block = ImageBlocks(source, PROTOCOLS["native"], 3, limit=2, smallest_side=33)[0]
    assert block.images == []
    assert "000.png: a picture of 32 x 32 is smaller than one latent" in block.unreadable[0]


def test_a_few_images_are_tried_before_all_work(source, image_folder):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    (image_folder / "000.png").write_bytes(b"")
    blocks.check()
    with pytest.raises(
        ValueError, match=r"none of the images .* \d+\.png: .*a PNG picture, not of 12 channels"
    ):
        ImageBlocks(source, PROTOCOLS["native"], 12).check()
