"""Two processes measure colours, details and iFID of a small model, and the first writes what they found."""

import json
import sys
from pathlib import Path

import torch

from latentae import distributed
from latentae.data.folder import FolderSource
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.features import Measures
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.models import NamedModel
from tests.evaluation.conftest import MeanFeatures, tiny_model


def measured(images, work, device):
    """All numbers of a small model, as JSON can hold them."""
    blocks = ImageBlocks(FolderSource(Path(images)), PROTOCOLS["native"], 3)
    subject = NamedModel("kl", "", tiny_model("kl"))
    networks = {"inception": MeanFeatures(), "clip": MeanFeatures()}
    settings = Settings(cycle_images=0)
    evaluation = Evaluation(blocks, Measures({}, networks), settings, Path(work), "", device, ifid=True)
    evaluation.measure([subject])
    result = evaluation.result(subject)
    numbers = {name: value.value for name, value in result.metrics.items() if name != "images_per_second"}
    return {**numbers, **{name: values.tolist() for name, values in result.crops.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.init_from_environment() as device:
        found = measured(sys.argv[1], Path(sys.argv[2]) / "two", device)
        if distributed.is_main():
            (Path(sys.argv[2]) / "two.json").write_text(json.dumps(found))
