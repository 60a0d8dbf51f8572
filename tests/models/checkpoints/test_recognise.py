import pytest

from latentae.models.checkpoints.recognise import describe_bytes, describe_contents


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("unet.down_blocks.0.attentions.0.processor.to_q.lora.up.weight", "LoRA"),
        ("diffusion_model.blocks.0.attn.q.lora_A.weight", "LoRA"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a", "LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "without its autoencoder"),
        ("input_blocks.1.0.emb_layers.1.weight", "without its autoencoder"),
        ("time_embedding.linear_1.weight", "without its autoencoder"),
        ("double_blocks.0.img_attn.proj.weight", "without its autoencoder"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "text encoder"),
        ("vision_model.embeddings.class_embedding", "image encoder"),
        ("emb_params", "textual inversion"),
        ("encoder.conv1.weight", "video"),
        ("encoder.conv_blocks.0.res.0.norm1.weight", "LlamaGen"),
        ("encoder.stages.0.op_list.0.main.conv.weight", "DC-AE"),
        ("discriminator.main.0.weight", "discriminator"),
        ("body.0.rdb1.conv1.weight", "upscaler"),
    ],
)
def test_contents_that_are_no_autoencoder(name, words):
    described = describe_contents([name, "zzz.weight"])
    assert words in described
    assert f"2 tensors, such as {name}, zzz.weight" in described
    assert "zzz 1" in described


def test_unknown_contents():
    names = ["d.weight", "c.weight", "b.weight", "a.weight"]
    assert describe_contents([f"net.{name}" for name in names]) == (
        "holds something unknown (4 tensors, such as net.a.weight, net.b.weight, net.c.weight)"
    )


def test_a_few_tensors_among_many_do_not_say_what_a_file_is():
    denoiser = [f"model.blocks.{number}.weight" for number in range(5)]
    described = describe_contents([*denoiser, "discriminator.main.0.weight", "step"])
    assert described == (
        "holds something unknown (7 tensors, such as discriminator.main.0.weight, model.blocks.0.weight, "
        "model.blocks.1.weight; by the first part of their names: model 5, discriminator 1, no name 1)"
    )


def test_thousands_of_names_make_a_short_message():
    names = [f"{'x' * 200}{number}.{'weight' * 50}" for number in range(3000)]
    described = describe_contents(names)
    assert "3000 tensors" in described
    assert "and 2994 others" in described
    assert len(described) < 1000
