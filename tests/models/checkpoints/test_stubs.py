import argparse
import collections
import pathlib
import sys
import types

import numpy as np
import pytest
import torch

from latentae.models.checkpoints.reading import read_checkpoint
from latentae.models.checkpoints.stubs import InertMapping, InertObject, inert_globals

WEIGHTS = {"first_stage_model.decoder.conv_in.weight": torch.randn(4, 3, 3, 3)}


@pytest.fixture
def make_class(monkeypatch):
    """Makes a class that pickles under a name, as if a library that is not installed were."""

    def make(name, bases=(), **members):
        *packages, class_name = name.split(".")
        for depth in range(1, len(packages) + 1):
            module_name = ".".join(packages[:depth])
            module = sys.modules.get(module_name) or types.ModuleType(module_name)
            monkeypatch.setitem(sys.modules, module_name, module)
        made = type(class_name, bases, {"__module__": module_name, "__qualname__": class_name, **members})
        monkeypatch.setattr(module, class_name, made, raising=False)
        return made

    return make


def _saved(content, path, monkeypatch):
    torch.save(content, path)
    monkeypatch.undo()  # the libraries are gone again
    return read_checkpoint(path).tensors


def test_a_lightning_checkpoint_with_callbacks_under_their_classes(tmp_path, make_class, monkeypatch):
    model_checkpoint = make_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    early_stopping = make_class("pytorch_lightning.callbacks.early_stopping.EarlyStopping")
    content = {
        "epoch": 4,
        "global_step": 21005,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": collections.OrderedDict(WEIGHTS),
        "callbacks": {
            model_checkpoint: {"best_model_score": torch.tensor(0.4), "current_score": np.float32(0.25)},
            early_stopping: {"wait_count": 0, "best_score": np.float64(1.0)},
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 4.5e-6}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "_last_lr": np.arange(2.0)}],
    }
    tensors = _saved(content, tmp_path / "last.ckpt", monkeypatch)
    assert list(tensors) == list(WEIGHTS)
    assert torch.equal(*tensors.values(), *WEIGHTS.values())
    assert "pytorch_lightning" not in sys.modules


def test_hyperparameters_of_other_libraries(tmp_path, make_class, monkeypatch):
    attribute_dict = make_class("pytorch_lightning.utilities.parsing.AttributeDict", (dict,))
    dict_config = make_class("omegaconf.dictconfig.DictConfig")()
    metadata = make_class("omegaconf.base.ContainerMetadata")()
    metadata.resolver_cache = collections.defaultdict(dict, {"x": {}})
    metadata.object_type, metadata.key_type = dict, str
    dict_config.__dict__["_metadata"] = metadata
    dict_config.__dict__["_content"] = {"embed_dim": make_class("omegaconf.nodes.AnyNode")()}
    content = {
        "state_dict": WEIGHTS,
        "hyper_parameters": attribute_dict(lr=1e-4, config=dict_config),
        "arguments": argparse.Namespace(batch=4),
        "where": pathlib.Path("logs"),
        "version": torch.__version__,
    }
    assert list(_saved(content, tmp_path / "last.ckpt", monkeypatch)) == list(WEIGHTS)


def test_a_class_that_is_not_listed_is_refused(tmp_path, make_class, monkeypatch):
    other = make_class("pytorch_lightning.callbacks.mine.Callback")
    with pytest.raises(ValueError, match=r"names pytorch_lightning\.callbacks\.mine\.Callback"):
        _saved({"state_dict": WEIGHTS, "callbacks": {other: {}}}, tmp_path / "last.ckpt", monkeypatch)


def test_reading_leaves_nothing_allowed_behind(tmp_path):
    torch.save(WEIGHTS, tmp_path / "vae.ckpt")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "vae.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_stand_ins_do_and_keep_nothing():
    thing = InertObject("a", 1, option=2)
    thing.__setstate__({"x": 1})
    assert vars(thing) == {}
    assert InertMapping("a", dict) == {}
    assert {stand_in for stand_in, _ in inert_globals()} == {InertObject, InertMapping}
    names = [name for _, name in inert_globals()]
    assert len(set(names)) == len(names)
    assert not any(name.startswith(("os.", "posix.", "subprocess.", "sys.")) for name in names)
