"""Two processes measure a model that makes NaN of one image, and each writes what it was told of it."""

import sys
from pathlib import Path

import torch
from torch import nn

from latentae import distributed
from latentae.data.folder import FolderSource
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.features import Measures
from latentae.evaluation.measuring import Evaluation, MeasuringError, Settings
from latentae.evaluation.models import NamedModel
from latentae.models import AutoencoderOutput


class Spoilt(nn.Module):
    """Gives images back, but for those that are all alike to ``bad``."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, images):
        alike = (images == self.bad).all(dim=(1, 2, 3), keepdim=True)
        return AutoencoderOutput(sample=torch.where(alike, float("nan"), images))


def main(images, out):
    blocks = ImageBlocks(FolderSource(images), PROTOCOLS["native"], 3)
    with distributed.init_from_environment() as device:
        subject = NamedModel("bad", "", Spoilt(blocks.prepare(33)))
        settings = Settings(batch_size=1, cycle_images=0)
        evaluation = Evaluation(blocks, Measures(), settings, Path(out) / "work", "", device)
        try:
            evaluation.measure([subject])
        except MeasuringError as error:
            (Path(out) / f"rank{distributed.rank()}.txt").write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
