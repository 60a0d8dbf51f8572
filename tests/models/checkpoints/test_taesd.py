import torch
from diffusers import AutoencoderTiny

from latentae.models.checkpoints.taesd import find_taesd, taesd_arguments


def _original(state):
    """TAESD's own layout, in which the decoder's first layer is a clamp."""
    stored = {}
    for name, tensor in state.items():
        side, _, number, rest = name.split(".", 3)
        stored[f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = tensor
    return stored


def test_both_layouts():
    state = AutoencoderTiny(in_channels=1, out_channels=2, latent_channels=16).state_dict()
    original = _original(state)
    assert original["taesd_decoder.1.weight"] is state["decoder.layers.0.weight"]
    for stored in (state, {**original, "vae_scale": torch.tensor(1.0)}):
        found = find_taesd(stored)
        assert found.keys() == state.keys()
        assert all(found[name] is tensor for name, tensor in state.items())
        assert taesd_arguments(found) == {"in_channels": 1, "out_channels": 2, "latent_channels": 16}


def test_anything_else():
    state = AutoencoderTiny().state_dict()
    assert find_taesd({name: x for name, x in state.items() if name.startswith("decoder.")}) is None
    assert find_taesd({"encoder.conv_in.weight": torch.zeros(1)}) is None
