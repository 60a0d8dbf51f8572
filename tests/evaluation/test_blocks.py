import pytest
import torch

from latentae.data import FolderSource
from latentae.evaluation.blocks import BLOCK_SIZE, ImageBlocks, block_loader
from latentae.evaluation.protocol import PROTOCOLS


def test_blocks_hold_every_image_once_in_order(source):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    found = [index for block in block_loader(blocks, [0, 1, 2]) for index in block.indices]
    assert found == list(range(70))
    assert [len(blocks[number].images) for number in range(len(blocks))] == [BLOCK_SIZE, BLOCK_SIZE, 6]
    assert blocks[2].names[-1] == "069.png"


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
