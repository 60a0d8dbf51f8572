import pytest
import torch

from latentae.evaluation.block_measurement import measure_block, reference_features
from latentae.evaluation.blocks import Block
from latentae.evaluation.metrics import l1, psnr
from latentae.evaluation.subject import Subject

CPU = torch.device("cpu")


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (32, 32), (24, 40), (32, 32)]
    images = [((torch.rand(3, *size, generator=generator) * 255).round() / 127.5 - 1) for size in sizes]
    return Block(0, [4, 5, 6, 7], list("abcd"), images)


def test_mixed_sizes_keep_their_order(block, models, measures):
    shard = measure_block(Subject("kl", "", models["kl"]), block, measures, CPU, batch_size=2)
    with torch.no_grad():
        alone = torch.cat([psnr(models["kl"](image[None]).sample, image[None]) for image in block.images])
        difference = torch.cat([l1(models["kl"](image[None]).sample, image[None]) for image in block.images])
    torch.testing.assert_close(shard["value.psnr"], alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(shard["value.l1"], difference, rtol=1e-5, atol=0)
    assert shard["indices"].tolist() == [4, 5, 6, 7]
    assert shard["features.inception"].shape == (4, 7)
    assert shard["value.ms_ssim"].isnan().all()
    assert int(shard["moments.count"]) == sum(image[0].numel() // 4 for image in block.images)


def test_codes_are_counted(block, models, measures):
    shard = measure_block(Subject("vq", "", models["vq"]), block, measures, CPU)
    assert int(shard["codes.counts"].sum()) == sum(image[0].numel() // 4 for image in block.images)
    assert "value.kl_bits_per_pixel" not in shard


def test_drift_only_where_asked(block, models, measures):
    subject = Subject("kl", "", models["kl"])
    shard = measure_block(subject, block, measures, CPU, cycle_rounds=(1, 2))
    torch.testing.assert_close(shard["value.cycle_psnr_1"], shard["value.psnr"], rtol=1e-9, atol=0)
    assert "value.cycle_psnr_2" in shard
    assert not any("cycle" in key for key in measure_block(subject, block, measures, CPU))


def test_originals(block, measures):
    extractor = measures.features["inception"]
    assert reference_features(block, extractor, CPU, batch_size=2).shape == (4, 7)
    assert reference_features(Block(0), extractor, CPU).shape == (0, 7)
