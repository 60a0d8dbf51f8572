import torch

from latentae.data import FolderSource
from latentae.diffusion.reference import reference_features
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.protocol import protocol_called


def test_computed_once_and_kept(image_folder, measures, tmp_path):
    (image_folder / "train" / "disc" / "000.png").write_bytes(b"no picture")
    blocks = ImageBlocks(FolderSource(image_folder / "train"), protocol_called("resize-32"), 3)
    file, device = tmp_path / "reference.safetensors", torch.device("cpu")
    features, indices = reference_features(blocks, measures.features, file, device)
    assert (len(features["vgg16"]), indices) == (47, list(range(1, 48)))
    kept, again = reference_features(blocks, {}, file, device)
    assert torch.equal(kept["vgg16"], features["vgg16"])
    assert again == indices
    file.write_bytes(file.read_bytes()[:100])
    anew, _ = reference_features(blocks, measures.features, file, device)
    assert torch.equal(anew["vgg16"], features["vgg16"])
