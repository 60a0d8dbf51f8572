"""What two processes run: trains one config after the other, and writes what this rank holds in the end.

Usage: train_in_ranks.py JSON, a list of [family, [argument, ...]].
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from latentae import distributed
from latentae.config import load_config
from latentae.latents import calibration
from latentae.training.trainer import Trainer
from tests.training.launch import states_of

if __name__ == "__main__":
    Accelerator.end_training = lambda self: None  # it would take down the group that the next run needs
    calibration.FEWEST_VIEWS = 16  # what is tried here are the steps
    for family, arguments in json.loads(sys.argv[1]):
        config = load_config(family, arguments)
        trainer = Trainer(config)
        trainer.fit()
        torch.save(states_of(trainer), Path(config.output_dir) / f"rank_{distributed.rank()}.pt")
        AcceleratorState._reset_state()
    torch.distributed.destroy_process_group()
