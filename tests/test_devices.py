import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from latentae.devices import has_native_bfloat16, is_exporting, is_traced, values_are_readable
from latentae.quantizers import create_quantizer


def test_values_are_readable_where_code_computes():
    assert values_are_readable(torch.zeros(2))
    assert values_are_readable(torch.nn.Parameter(torch.zeros(2)))
    assert not is_traced()
    assert not is_exporting()


def _under_vmap(see):
    torch.func.vmap(lambda row: see(row) or row)(torch.zeros(2, 2))


def _under_a_counter(see):
    with FlopCounterMode(display=False):
        see(torch.zeros(2))


def _on_fake_tensors(see):
    with FakeTensorMode():
        see(torch.zeros(2))


@pytest.mark.parametrize("watch", [_under_vmap, _under_a_counter, _on_fake_tensors])
def test_values_are_not_read_where_something_watches(watch):
    seen = []
    watch(lambda tensor: seen.append(values_are_readable(tensor)))
    assert seen == [False]


def test_values_are_not_read_on_the_meta_device():
    assert not values_are_readable(torch.zeros(2, device="meta"))


def test_traced_code_is_exporting():
    seen = []
    torch.jit.trace(
        lambda x: seen.append((is_traced(), is_exporting(), values_are_readable(x))) or x + 1, torch.zeros(1)
    )
    assert seen[0] == (True, True, False)


def test_an_exported_program_is_exporting():
    class Model(torch.nn.Module):
        def forward(self, x):
            return x + 1 if is_exporting() and not is_traced() else x

    program = torch.export.export(Model(), (torch.zeros(1),))
    assert program.module()(torch.zeros(1)) == 1


@pytest.mark.parametrize("kind", ["vector", "ema"])
def test_quantizers_look_up_indices_on_fake_tensors(kind):
    quantizer = create_quantizer(type=kind, num_codes=8, code_dim=2).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        indices = quantizer.indices(torch.zeros(1, 2, 3, 4))
        assert quantizer.codes(indices).shape == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_a_cpu_computes_bfloat16_with_avx512_bf16_or_amx(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_native_bfloat16() is expected


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_does_not_count(monkeypatch, native):
    asked = []

    def is_supported(including_emulation=True):
        asked.append(including_emulation)
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert has_native_bfloat16() is native
    assert asked == [False]


def test_other_accelerators_do_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not has_native_bfloat16()
