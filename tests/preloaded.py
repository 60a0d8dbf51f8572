"""What the server of `tests.processes` imports before it forks. It may not compute or start a thread."""

# ruff: noqa: F401
import gc
import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read at import

import datasets
import matplotlib.figure
import pytest
import torch.utils.tensorboard

import latentae.evaluation.evaluate
import latentae.probe.probe
import tests.pretend_device
import tests.training.kill_points

os.fsync = os.fstat  # as in tests/conftest.py
gc.collect()
gc.freeze()  # or a collection in a forked process would go through all that was imported, and copy it
