import sys

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from latentae.losses.feature_maps import ViTMaps
from latentae.weights import WeightsNotFoundError
from latentae.weights_transformer import load_vision_transformer


def test_a_folder_of_dinov2(tmp_path):
    """Patch tokens of the model as it was saved, without the class token, in rows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    saved = Dinov2Model(Dinov2Config(**sizes, patch_size=14)).eval()
    saved.save_pretrained(tmp_path)
    network = ViTMaps(load_vision_transformer(str(tmp_path)))
    images = torch.rand(2, 3, 42, 28) * 2 - 1
    features = network(images, (3, 2))
    assert features.shape == (2, 16, 3, 2)
    with torch.no_grad():
        tokens = saved(pixel_values=network.normalised(images)).last_hidden_state
    torch.testing.assert_close(features[1, :, 2, 0], tokens[1, 1 + 2 * 2])


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = str(tmp_path / "nothing")
    with pytest.raises(WeightsNotFoundError, match=r"the feature network .*nothing cannot be had .*or vgg16"):
        load_vision_transformer(place)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsNotFoundError, match=r"not installed: pip install 'latentae\[dinov2\]'"):
        load_vision_transformer("facebook/dinov2-large")
