import argparse
import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentae.models.checkpoints.reading import (
    InertMapping,
    InertObject,
    describe_bytes,
    inert_globals,
    read_checkpoint,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.tensor([1.5], dtype=torch.float16)}


class Touch:
    """Pickles into a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class RunShell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def _equal(tensors, expected=TENSORS):
    return tensors.keys() == expected.keys() and all(
        torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def test_safetensors_with_metadata(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file(TENSORS, path, metadata={"latentae.family": "sd1"})
    checkpoint = read_checkpoint(path)
    assert _equal(checkpoint.tensors)
    assert checkpoint.metadata == {"latentae.family": "sd1"}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        collections.OrderedDict,
        lambda tensors: {"state_dict": tensors, "epoch": 3, "hyper_parameters": None},
        lambda tensors: {"model": {"state_dict": tensors}, "optimizer": {"state": {}}},
    ],
)
def test_what_torch_saved(tmp_path, wrap, new_format):
    path = tmp_path / "vae.ckpt"
    torch.save(wrap(TENSORS), path, _use_new_zipfile_serialization=new_format)
    checkpoint = read_checkpoint(path)
    assert _equal(checkpoint.tensors)
    assert checkpoint.metadata == {}


@pytest.mark.parametrize(
    ("content", "mappings"),
    [
        ({"vae": TENSORS, "ema": TENSORS | {"c": torch.zeros(2)}}, {"vae.": 2, "ema.": 3}),
        ({"model": {"vae": dict(TENSORS), "disc": {"x": torch.ones(1)}}}, {"vae.": 2, "disc.": 1}),
        ({"vae": {"state_dict": dict(TENSORS)}, "step": torch.tensor(1)}, {"vae.state_dict.": 2}),
        ({"a": dict(TENSORS), "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}}, {}),
    ],
)
def test_several_mappings_keep_their_names(tmp_path, content, mappings):
    torch.save(content, tmp_path / "last.pt")
    checkpoint = read_checkpoint(tmp_path / "last.pt")
    assert set(checkpoint.mappings) == mappings.keys()
    for name, count in mappings.items():
        assert sum(key.startswith(name) for key in checkpoint.tensors) == count
        inside = checkpoint.mapping_of(f"{name}first_stage_model.")
        first = next(iter(inside))
        assert torch.equal(inside[first], checkpoint.tensors[name + first])
    assert checkpoint.mapping_of("other.") == checkpoint.tensors


def test_a_mapping_that_is_there_twice_is_read_once(tmp_path):
    tensors = dict(TENSORS)
    torch.save({"state_dict": tensors, "model": tensors}, tmp_path / "last.pt")
    assert _equal(read_checkpoint(tmp_path / "last.pt").tensors)


def test_the_parts_that_wrappers_put_into_names_are_left_out(tmp_path):
    a, b = TENSORS
    wrapped = {f"module._orig_mod.{a}": TENSORS[a], f"_fsdp_wrapped_module.{b}": TENSORS[b]}
    save_file(wrapped, tmp_path / "a.safetensors")
    assert _equal(read_checkpoint(tmp_path / "a.safetensors").tensors)
    save_file({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors: .*a.* are the same tensor"):
        read_checkpoint(tmp_path / "b.safetensors")


def test_the_first_bytes_tell_and_not_the_name(tmp_path):
    save_file(TENSORS, tmp_path / "a.ckpt")
    torch.save(TENSORS, tmp_path / "b.safetensors")
    assert _equal(read_checkpoint(tmp_path / "a.ckpt").tensors)
    assert _equal(read_checkpoint(tmp_path / "b.safetensors").tensors)


def test_what_is_no_tensor_is_left_out(tmp_path):
    path = tmp_path / "vae.pt"
    torch.save({**TENSORS, "step": 5, "names": ["x"], 7: torch.zeros(1)}, path)
    assert _equal(read_checkpoint(path).tensors)


@pytest.mark.parametrize("share", [4, 40, 200, 0.5, 0.99])
def test_a_download_that_was_cut_off(tmp_path, share):
    path = tmp_path / "vae.safetensors"
    save_file({"weight": torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: share if share > 1 else int(share * len(data))])
    with pytest.raises(ValueError, match=r"vae\.safetensors is (cut off: it has \d+ of at least|not a file)"):
        read_checkpoint(path)


@pytest.mark.parametrize(("new_format", "message"), [(True, "is cut off"), (False, "is damaged, cut off")])
def test_a_pickle_that_was_cut_off(tmp_path, new_format, message):
    path = tmp_path / "vae.ckpt"
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_a_damaged_header(tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b'{"weight": nonsense}')
    with pytest.raises(ValueError, match=r"is a damaged safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of weights: it is empty"),
        (b"<html><body>Sign in", "not a file of weights: it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "not a file of weights: it is a Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00\x00", "not a file of weights: it is a GGUF file"),
    ],
)
def test_something_else_by_that_name(tmp_path, content, message):
    path = tmp_path / "vae.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    ("bomb", "name"), [(Touch, r"pathlib\.\S*touch|getattr"), (RunShell, r"(posix|nt)\.system")]
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, bomb, name, new_format):
    path, victim = tmp_path / "vae.ckpt", tmp_path / "ran"
    torch.save(
        {"state_dict": TENSORS, "extra": bomb(str(victim))}, path, _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(ValueError, match=rf"names ({name}), which is not a tensor and could run code"):
        read_checkpoint(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert victim.exists()


def test_a_whole_model_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"names torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)


def test_a_program_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match=r"is a TorchScript program"):
        read_checkpoint(path)


def test_pickles_that_torch_did_not_write(tmp_path):
    path = tmp_path / "vae.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2, 3]}))
    with pytest.raises(
        ValueError, match=r"is a pickle that holds more than tensors, or is damaged|was not written"
    ):
        read_checkpoint(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(
        ValueError, match=r"is an archive that torch\.save did not write: it holds readme\.txt"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "vae": {"ema": 2}}, r"holds no tensors: its entries are epoch \(int\), vae \(dict\)"),
        ({f"entry {number}": 1 for number in range(1000)}, r"entry 5 \(int\) and 994 more$"),
        ({}, "it is an empty mapping"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
def test_no_state_dict(tmp_path, content, message):
    path = tmp_path / "vae.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_a_dict_that_holds_itself(tmp_path):
    content = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match=r"holds no tensors: its entries are epoch \(int\), state_dict"):
        read_checkpoint(tmp_path / "vae.ckpt")
    content["weight"] = torch.ones(1)
    torch.save(content, tmp_path / "vae.ckpt")
    assert read_checkpoint(tmp_path / "vae.ckpt").tensors["weight"] == 1


def test_a_damaged_archive(tmp_path):
    path = tmp_path / "vae.ckpt"
    torch.save(TENSORS, path)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] = 0  # in the directory at the archive's end
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"vae\.ckpt is (a damaged archive|damaged, cut off)"):
        read_checkpoint(path)


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


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "is empty"),
        (bytes(512), "zeros"),
        (b"\n<!DOCTYPE html>\n<html><head><title>Log in", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
        (b'{"error": "not found"}', 'text that begins \'{"error"'),
        ("Straße\tund Weg\r\n".encode(), "text that begins 'Straße"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x00\x01\x02\x03garbage\x00", "begins with the bytes 00 01 02 03"),
    ],
)
def test_files_that_hold_no_tensors(head, words):
    assert words in describe_bytes(head)
