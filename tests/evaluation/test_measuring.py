import pytest
import torch
from PIL import Image

from latentae.evaluation.blocks import PROTOCOLS, Block, ImageBlocks
from latentae.evaluation.colour import channel_shifts, colour_difference, worst_crops
from latentae.evaluation.distances import GaussianStatistics, frechet_distance
from latentae.evaluation.interpolation import LatentTable
from latentae.evaluation.measuring import Evaluation, Settings, _reason
from latentae.evaluation.metrics import band_snr, l1, psnr, to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.evaluation.single_block import Drift, measure_block, reference_features


@pytest.fixture
def evaluate(source, measures, models, tmp_path):
    def run(*names, work="work", limit=None, data="images", ifid=False, **settings):
        subjects = [NamedModel(name, name, models[name]) for name in names or models]
        blocks = ImageBlocks(source, PROTOCOLS["native"], 3, limit)
        said = []
        folder, device = tmp_path / work, torch.device("cpu")
        evaluation = Evaluation(
            blocks, measures, Settings(**settings), folder, data, device, said.append, ifid=ifid
        )
        evaluation.measure(subjects)
        return [evaluation.result(subject) for subject in subjects], said

    return run


def test_each_image_counts_once(evaluate, source, models):
    (kl, vq), _ = evaluate()
    assert kl.indices.tolist() == list(range(70))
    images = torch.stack([PROTOCOLS["native"](source.load(i, 3)) for i in range(70)])
    with torch.no_grad():
        expected = psnr(models["kl"](images).sample, images)
    assert kl.metrics["psnr"].value == pytest.approx(expected.mean().item(), rel=1e-6)
    assert kl.metrics["psnr"].low < kl.metrics["psnr"].value < kl.metrics["psnr"].high
    assert {"rfid", "kid", "lpips_alex", "l1", "ssim", "kl_bits_per_pixel", "cycle_psnr_10"} <= set(
        kl.metrics
    )
    assert "kl_bits_per_pixel" not in vq.metrics
    assert vq.metrics["bits_per_pixel"].value == pytest.approx(4 / 4)
    assert len(kl.latents["kurtosis"]) == 4


def test_colours_and_details(evaluate):
    (kl, _), _ = evaluate()
    assert {"delta_e", "mean_shift_red", "std_shift_blue", "snr_2px", "snr_8px"} <= set(kl.metrics)
    assert not any("SNR" in remark for remark in kl.remarks)
    assert kl.metrics["delta_e"].low < kl.metrics["delta_e"].value < kl.metrics["delta_e"].high
    assert kl.crops["delta_e"].tolist() == pytest.approx(kl.values["delta_e"].tolist())  # one square is all
    assert {"precision", "recall"} <= set(kl.metrics)


def test_ifid_is_the_distance_of_decoded_interpolations(evaluate, measures, source, models):
    (kl,), _ = evaluate("kl", ifid=True)
    images = torch.stack([PROTOCOLS["native"](source.load(i, 3)) for i in range(70)])
    with torch.no_grad():
        table = LatentTable(models["kl"].encode(images).latents)
        decoded = models["kl"].decode(table.interpolated(range(70))).sample
    statistics = []
    for pixels in (images, decoded):
        statistics.append(GaussianStatistics(7))
        statistics[-1].add(measures.features["inception"](to_uint8(pixels)))
    assert kl.metrics["ifid"].value == pytest.approx(frechet_distance(*statistics), rel=1e-3)
    (plain,), _ = evaluate("kl")
    assert "ifid" not in plain.metrics
    assert plain.metrics["rfid"].value == pytest.approx(kl.metrics["rfid"].value, rel=1e-6)


def test_an_interrupted_ifid_goes_on(evaluate, tmp_path, measures):
    (whole,), _ = evaluate("kl", ifid=True)
    between = sorted((tmp_path / "work").glob("kl.between-*/*.safetensors"))
    assert len(between) == 3
    between[1].unlink()
    before = between[0].stat().st_mtime_ns
    calls = measures.features["inception"].calls
    (again,), _ = evaluate("kl", ifid=True)
    assert measures.features["inception"].calls == calls + 2  # 32 images in batches of 16
    assert between[0].stat().st_mtime_ns == before
    assert again.metrics["ifid"] == whole.metrics["ifid"]


def test_ifid_needs_latents_of_one_size(evaluate, image_folder):
    Image.new("RGB", (40, 32)).save(image_folder / "005.png")
    (kl,), _ = evaluate("kl", ifid=True)
    assert "ifid" not in kl.metrics
    assert any(remark.startswith("iFID left out: it needs two images or more with") for remark in kl.remarks)


def test_the_batch_size_does_not_matter(evaluate):
    (small,), _ = evaluate("kl", work="a", batch_size=3)
    (large,), _ = evaluate("kl", work="b", batch_size=32)
    for name, value in small.metrics.items():
        # After several rounds a level that rounded the other way has grown.
        if name != "images_per_second" and not name.startswith("cycle_"):
            assert value.value == pytest.approx(large.metrics[name].value, rel=1e-5, abs=1e-3), name


def test_an_interrupted_evaluation_goes_on(evaluate, models, tmp_path):
    (whole,), _ = evaluate("kl")
    shards = sorted((tmp_path / "work").glob("kl-*/*.safetensors"))
    assert len(shards) == 3
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:100])
    before = shards[0].stat().st_mtime_ns
    (again,), said = evaluate("kl")
    assert shards[0].stat().st_mtime_ns == before
    assert "going on: 1 of 3 blocks are measured" in said
    for name, value in whole.metrics.items():
        if name != "images_per_second":
            assert value == again.metrics[name]


def test_originals_are_seen_by_the_networks_once(evaluate, measures):
    evaluate("kl", batch_size=32)
    first = measures.features["inception"].calls
    assert first == 2 * 3
    evaluate("vq", batch_size=32)
    assert measures.features["inception"].calls == first + 3


def test_other_images_of_the_same_names_are_measured_anew(evaluate, measures):
    evaluate("kl")
    _, said = evaluate("kl", data="another folder")
    assert not any("going on" in text for text in said)


def test_another_model_under_the_name_is_measured_anew(evaluate, models):
    (before,), _ = evaluate("kl")
    torch.nn.init.zeros_(models["kl"].decoder.conv_out.weight)
    (after,), said = evaluate("kl")
    assert not any("going on" in text for text in said)
    assert after.metrics["psnr"] != before.metrics["psnr"]


def test_unreadable_images_are_left_out_and_said(evaluate, image_folder):
    (image_folder / "005.png").write_bytes(b"")
    (kl,), said = evaluate("kl")
    assert len(kl.indices) == 69
    assert 5 not in kl.indices
    assert any("005.png" in text for text in said)
    assert len(kl.unreadable) == 1
    assert kl.unreadable[0].startswith("005.png: ")
    again, said = evaluate("kl")
    assert again[0].unreadable == kl.unreadable


def test_metrics_that_images_are_too_small_for_are_left_out(evaluate):
    (kl,), _ = evaluate("kl")
    assert "ms_ssim" not in kl.metrics
    assert "MS-SSIM left out: 70 of 70 images are too small for it" in kl.remarks


def test_few_images_are_warned_of(evaluate):
    (few,), _ = evaluate("kl", limit=5)
    assert any("5 images, no more than its network has features (7)" in remark for remark in few.remarks)
    (more,), _ = evaluate("kl")
    assert any("70 images only, which biases it upwards" in remark for remark in more.remarks)


def test_no_readable_image(evaluate, image_folder):
    for file in image_folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 70 could be read, such as 000\.png: it is empty"):
        evaluate("kl")


def test_a_cache_that_cannot_be_written_is_named_once_and_measured_all_the_same(
    evaluate, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "file"))
    (result,), said = evaluate("kl", batch_size=32)
    assert len(result.indices) == 70
    about = [text for text in said if "set LATENTAE_CACHE" in text]
    assert len(about) == 1
    assert str(tmp_path / "file") in about[0]


CPU = torch.device("cpu")


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (32, 32), (24, 40), (32, 32)]
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return Block(0, [4, 5, 6, 7], list("abcd"), images)


def test_mixed_sizes_keep_their_order(block, models, measures):
    shard = measure_block(NamedModel("kl", "", models["kl"]), block, measures, CPU, batch_size=2)
    images = [to_images(image)[None] for image in block.images]
    with torch.no_grad():
        alone = torch.cat([psnr(models["kl"](image).sample, image) for image in images])
        difference = torch.cat([l1(models["kl"](image).sample, image) for image in images])
    torch.testing.assert_close(shard["value.psnr"], alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(shard["value.l1"], difference, rtol=1e-5, atol=0)
    assert shard["features.inception"].shape == (4, 7)
    assert shard["value.ms_ssim"].isnan().all()
    with torch.no_grad():
        pairs = [(models["kl"](image).sample, image) for image in images]
    colours = [colour_difference(*pair) for pair in pairs]
    means = torch.stack([colour.mean() for colour in colours])
    torch.testing.assert_close(shard["value.delta_e"], means, rtol=1e-3, atol=0)
    shifts = torch.cat([channel_shifts(*pair)["mean_shift_blue"] for pair in pairs])
    torch.testing.assert_close(shard["value.mean_shift_blue"], shifts, rtol=1e-4, atol=1e-3)
    snr = torch.cat([band_snr(*pair)["snr_4px"] for pair in pairs])
    torch.testing.assert_close(shard["value.snr_4px"], snr, rtol=1e-4, atol=1e-4)
    crops = [worst_crops(colour) for colour in colours]
    torch.testing.assert_close(
        shard["crop.delta_e"], torch.cat([c.delta_e for c in crops]), rtol=1e-3, atol=0
    )
    assert shard["crop.corner"].tolist() == [[0, 0]] * 4
    assert int(shard["moments.count"]) == sum(image[0].numel() // 4 for image in block.images)


def test_codes_are_counted(block, models, measures):
    shard = measure_block(NamedModel("vq", "", models["vq"]), block, measures, CPU)
    assert int(shard["codes.counts"].sum()) == sum(image[0].numel() // 4 for image in block.images)
    assert "value.kl_bits_per_pixel" not in shard


def test_drift_only_where_asked(block, models, measures):
    subject = NamedModel("kl", "", models["kl"])
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
    shard = measure_block(NamedModel("kl", "", models["kl"]), block, measures, CPU)
    assert shard["features.inception"].isnan().all(dim=1).tolist() == [False, False, True, False]


def test_originals(block, measures):
    extractor = measures.features["inception"]
    assert reference_features(block, extractor, CPU, batch_size=2).shape == (4, 7)
    assert reference_features(Block(0), extractor, CPU).shape == (0, 7)


def test_the_other_processes_learn_of_too_little_memory():
    error = RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."
    )
    assert _reason(error) == (
        "another process has stopped: the computer is out of memory (2.00 GiB more could not be allocated)"
    )
    assert [_reason(ValueError("a is 0")), _reason(KeyError())] == ["a is 0", "KeyError"]
