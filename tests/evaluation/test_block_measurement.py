import pytest
import torch

from latentae.evaluation.block_measurement import Drift, measure_block, reference_features
from latentae.evaluation.blocks import Block, to_images
from latentae.evaluation.metrics import l1, psnr, to_uint8
from latentae.evaluation.models import Subject

CPU = torch.device("cpu")


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (32, 32), (24, 40), (32, 32)]
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return Block(0, [4, 5, 6, 7], list("abcd"), images)


def test_mixed_sizes_keep_their_order(block, models, measures):
    shard = measure_block(Subject("kl", "", models["kl"]), block, measures, CPU, batch_size=2)
    images = [to_images(image)[None] for image in block.images]
    with torch.no_grad():
        alone = torch.cat([psnr(models["kl"](image).sample, image) for image in images])
        difference = torch.cat([l1(models["kl"](image).sample, image) for image in images])
    torch.testing.assert_close(shard["value.psnr"], alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(shard["value.l1"], difference, rtol=1e-5, atol=0)
    assert shard["features.inception"].shape == (4, 7)
    assert shard["value.ms_ssim"].isnan().all()
    assert int(shard["moments.count"]) == sum(image[0].numel() // 4 for image in block.images)


def test_codes_are_counted(block, models, measures):
    shard = measure_block(Subject("vq", "", models["vq"]), block, measures, CPU)
    assert int(shard["codes.counts"].sum()) == sum(image[0].numel() // 4 for image in block.images)
    assert "value.kl_bits_per_pixel" not in shard


def test_drift_only_where_asked(block, models, measures):
    subject = Subject("kl", "", models["kl"])
    shard = measure_block(subject, block, measures, CPU, drift=Drift((1, 2), frozenset([5, 6])))
    once, twice = shard["value.cycle_psnr_1"], shard["value.cycle_psnr_2"]
    assert once.isnan().tolist() == twice.isnan().tolist() == [True, False, False, True]
    torch.testing.assert_close(once[1:3], shard["value.psnr"][1:3], rtol=1e-9, atol=0)
    again = to_images(to_uint8(subject(to_images(block.images[2])[None]).sample))
    expected = psnr(subject(again).sample, to_images(block.images[2])[None])
    torch.testing.assert_close(twice[2:3], expected, rtol=1e-6, atol=0)
    assert not any("cycle" in key for key in measure_block(subject, block, measures, CPU))


def test_images_that_are_too_small_for_a_network_have_no_features(block, models, measures):
    measures.features["inception"].smallest_side = 30
    shard = measure_block(Subject("kl", "", models["kl"]), block, measures, CPU)
    assert shard["features.inception"].isnan().all(dim=1).tolist() == [False, False, True, False]


def test_originals(block, measures):
    extractor = measures.features["inception"]
    assert reference_features(block, extractor, CPU, batch_size=2).shape == (4, 7)
    assert reference_features(Block(0), extractor, CPU).shape == (0, 7)
