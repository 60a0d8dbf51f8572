"""A small DINOv2 is held against transformers' and torch-fidelity's."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from transformers import Dinov2Config, Dinov2Model

from latentae.evaluation.dinov2 import DINOv2Features, VisionTransformer, find_dinov2_weights, to_meta_names
from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.features import resize_bicubic
from latentae.weights import WeightsNotFoundError


def images(count, *size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def saved(model, folder):
    """The tensors of the file that transformers writes, whose names are those on the hub."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def small(image_size):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=image_size)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def theirs():
    return small(image_size=224)


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(to_meta_names(saved(theirs, path.parent / "hub")), path)
    return path


def test_the_network_is_transformers(theirs, file):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ours = VisionTransformer(torch.load(file))
    assert "blocks.1.attn.qkv.weight" in ours.state_dict()
    from_hub = DINOv2Features(file.parent / "hub/model.safetensors").network.state_dict()
    assert all(torch.equal(from_hub[name], tensor) for name, tensor in ours.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels).pooler_output, rtol=1e-4, atol=1e-5)


def test_positions_are_stretched_as_in_metas_models(tmp_path):
    network = VisionTransformer(to_meta_names(saved(small(image_size=518), tmp_path)))
    maps = network.pos_embed[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(maps, scale_factor=16.1 / 37, mode="bicubic")
    assert expected.shape[2:] == (16, 16)
    torch.testing.assert_close(network._positions(16, 16)[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(network._positions(16, 16)[:, :1], network.pos_embed[:, :1])


def test_the_distance_is_torch_fidelitys(theirs, file, monkeypatch, tmp_path):
    """At 224 pixels, where neither of the two resizes."""

    class Hub(torch.nn.Module):
        @torch.no_grad()
        def forward(self, pixels):
            return theirs(pixels).pooler_output

    monkeypatch.setattr(torch.hub, "load", lambda repository, name: Hub())
    extractor, ours = FeatureExtractorDinoV2("dinov2-vit-b-14", ["dinov2"]), DINOv2Features(file)
    first, second = images(6, 224, 224), images(6, 224, 224, seed=1) // 2
    statistics, stored = [], []
    for number, batch in enumerate((first, second)):
        expected, found = extractor(batch)[0], ours(batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        statistics.append(fid_features_to_statistics(expected))
        stored.append(FeatureFile(tmp_path / f"{number}.f32", ours.dimensions))
        stored[-1].append(found)
    distance = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    metrics, remark = feature_distances("dinov2", *stored)
    assert metrics["fd_dinov2"].value == pytest.approx(distance, rel=1e-5)
    assert "no more than its network has features (128)" in remark


def test_images_are_resized_as_pillow_does():
    batch = images(1, 40, 50)
    picture = Image.fromarray(batch[0].permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.BICUBIC)
    resized = resize_bicubic(batch, 24)[0].permute(1, 2, 0).numpy()
    difference = np.abs(resized - np.asarray(picture, np.float32))
    assert difference.max() <= 2
    assert difference.mean() < 0.5
    assert torch.equal(resize_bicubic(batch[..., :40], 40), batch[..., :40].float())


def test_another_file_is_another_identity_and_other_tensors_are_refused(file, tmp_path):
    state = torch.load(file)
    state["norm.bias"] = state["norm.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    assert DINOv2Features(file).identity != DINOv2Features(tmp_path / "other.pth").identity
    for damaged in ({"a": torch.zeros(1)}, {**state, "register_tokens": torch.zeros(1, 4, 128)}):
        torch.save(damaged, tmp_path / "else.pth")
        with pytest.raises(ValueError, match=r"else\.pth does not hold a DINOv2 without registers"):
            DINOv2Features(tmp_path / "else.pth")


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("latentae.evaluation.dinov2.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(WeightsNotFoundError, match="give a file by --weights dinov2=FILE"):
        find_dinov2_weights()
    with pytest.raises(WeightsNotFoundError, match=r"gone\.pth is not there"):
        find_dinov2_weights(tmp_path / "gone.pth")
    from_hub = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("latentae.evaluation.dinov2.try_to_load_from_cache", lambda *names: from_hub)
    assert str(find_dinov2_weights()) == from_hub
    own = tmp_path / "checkpoints/dinov2_vitl14_pretrain.pth"
    own.parent.mkdir()
    own.touch()
    assert find_dinov2_weights() == own
