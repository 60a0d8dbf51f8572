"""Too little memory ends every command in one sentence: where it was, and how to use less."""

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.autoencoders.vae import Decoder, Encoder

from latentae import cli
from latentae.report.results import Results
from tests.evaluation.conftest import tiny_model
from tests.training.conftest import TINY, draw_images

DATA = "--data {images} --out {out}"
COMMANDS = {
    "train vqgan": "--config {config}",
    "train vq-vae": "--config {config} model.class=VQVAE loss.adversarial=null discriminator=null --dry-run",
    "stats": "{model} --data {images} --split train --image-size 32",
    "encode": "{model} {data} --split train --image-size 32",
    "inspect": "{model} {data} --image-size 32",
    "evaluate": "{model} {data} --protocol resize-32 --no-features",
    "compare": "{out} {out}",
    "probe": "{model} {data} --split train --image-size 32 --batch-size 4 --samples 2 --depth 1 --width 32",
    "export": "{model} --format diffusers --out {out}",
    "reconstruct": "{images} {out} --model {model}",
}
REMEDY = {
    "train vqgan": "lower batch_size",
    "train vq-vae": "lower batch_size",
    "compare": "close other programs",
    "export": "close other programs",
    "reconstruct": "add --tile",
}


def torch_error():
    text = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
    return RuntimeError(f"{text}allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)")


@pytest.fixture
def places(tmp_path, alexnet_trunk, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    draw_images(tmp_path / "images/train")
    tiny_model("kl").save_pretrained(tmp_path / "model")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    found = {"images": tmp_path / "images", "model": tmp_path / "model", "out": tmp_path / "out"}
    yield {**found, "config": tmp_path / "tiny.yaml", "data": DATA.format(**found)}
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_command_is_here():
    shown_on_its_page = {"demo"}
    assert {name.split()[0] for name in COMMANDS} == {"train", *cli.COMMANDS} - shown_on_its_page


def gpu_error():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("error", "place"),
    [(torch_error, "the computer"), (MemoryError, "the computer"), (gpu_error, "the GPU")],
)
def test_one_sentence_and_exit_code_1(name, error, place, places, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise error()

    for owner, method in ((Encoder, "forward"), (Decoder, "forward"), (Results, "load")):
        monkeypatch.setattr(owner, method, refuse)
    assert cli.main([*name.split(), *COMMANDS[name].format(**places).split()]) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert sentence.startswith(f"error: {place} is out of memory")
    assert REMEDY.get(name, "choose a smaller --batch-size") in sentence
