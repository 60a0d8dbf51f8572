"""A small CLIP is held against torch-fidelity's, of the same random weights."""

import hashlib
import sys

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_clip import CLIPVisual, FeatureExtractorCLIP

from latentae.evaluation import clip as module
from latentae.evaluation.clip import FILE, CLIPFeatures, find_clip_weights
from latentae.weights import WeightsNotFoundError

SIDE = 28


def images(count, *size):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    network = CLIPVisual(
        embed_dim=16, image_resolution=SIDE, vision_layers=2, vision_width=64, vision_patch_size=14
    )
    tensors = {name: tensor.half().float() for name, tensor in network.state_dict().items()}
    return {**tensors, "text_projection": torch.zeros(8, 16)}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(state, path)
    return path


def program(state):
    """A TorchScript program with these tensors, as OpenAI releases them."""
    root = nn.Module()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_buffer(last, tensor)
    return torch.jit.script(root)


@pytest.fixture(scope="module")
def program_file(state, file):
    path = file.with_name("program.pt")
    program(state).save(path)
    return path


def test_embeddings_are_torch_fidelitys_of_unit_length(file, program_file):
    """At the network's own size, where neither of the two resizes."""
    theirs = FeatureExtractorCLIP(
        "clip-vit-l-14-336px", ["clip"], feature_extractor_weights_path=program_file
    )
    ours = CLIPFeatures(file)
    assert (ours.side, ours.dimensions) == (SIDE, 16)
    batch = images(3, SIDE, SIDE)
    expected = nn.functional.normalize(theirs(batch)[0], dim=1)
    torch.testing.assert_close(ours(batch), expected, rtol=1e-5, atol=1e-5)


def test_the_centre_is_taken(file):
    wide = images(2, SIDE, SIDE + 11)
    ours = CLIPFeatures(file)
    torch.testing.assert_close(ours(wide), ours(wide[..., 5 : 5 + SIDE]))


def test_a_program_is_run_only_if_it_is_openais(program_file, state, monkeypatch):
    with pytest.raises(ValueError, match=r"is a TorchScript program\. Save the original model's state dict"):
        CLIPFeatures(program_file)
    monkeypatch.setattr(module, "_SHA256", hashlib.sha256(program_file.read_bytes()).hexdigest())
    assert CLIPFeatures(program_file).dimensions == 16


def test_a_file_of_something_else(tmp_path, state, file, monkeypatch):
    path = tmp_path / "else.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"else\.pt does not hold a CLIP"):
        CLIPFeatures(path)
    torch.save({**state, "visual.ln_post.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"else\.pt does not hold a CLIP under OpenAI's names"):
        CLIPFeatures(path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_clip", None)
    with pytest.raises(WeightsNotFoundError, match="pip install torch-fidelity"):
        CLIPFeatures(file)


def test_it_is_downloaded_only_where_asked_for_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    asked = {}

    def download(url, target, hash_prefix, progress):
        asked.update(url=url, hash=hash_prefix)
        (tmp_path / "checkpoints" / FILE).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(WeightsNotFoundError, match="--weights clip downloads them, 934 MB"):
        find_clip_weights()
    assert asked == {}
    assert find_clip_weights(download=True) == tmp_path / "checkpoints" / FILE
    assert asked["url"].endswith(f"{asked['hash']}/ViT-L-14-336px.pt")
    with pytest.raises(WeightsNotFoundError, match="is damaged: its SHA-256 is not 3035c92b"):
        find_clip_weights()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "checkpoints" / FILE).unlink()
    with pytest.raises(WeightsNotFoundError, match="HF_HUB_OFFLINE is set"):
        find_clip_weights(download=True)
