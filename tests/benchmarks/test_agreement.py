import pytest
import torch


@pytest.fixture
def module(script):
    return script("agreement")


def test_the_difference_is_relative_to_the_largest_value(module):
    assert module.difference(torch.tensor([1.0, -8.5]), torch.tensor([1.5, -8.0])) == 0.5 / 8
    assert module.difference(torch.tensor(3), torch.tensor(4.0)) == 0.25


def test_metrics_agree_with_other_packages(module, tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 192, 192), dtype=torch.uint8, generator=generator)
    rows = list(module.metric_rows(pixels, pixels // 2, tmp_path))
    assert [name for name, *_ in rows][:3] == ["PSNR", "SSIM", "SSIM"]
    found = {f"{name}, {package}": module.difference(ours, theirs) for name, ours, theirs, package in rows}
    exact = {name: value for name, value in found.items() if not name.endswith("with the border")}
    assert len(exact) == 6
    assert max(exact.values()) < 1e-5, exact


def test_every_family_is_timed(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_LARGE_CLIP", {**module._LARGE_CLIP, "vision_layers": 1, "vision_width": 64})
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(module, "_LARGE_DINOV2", small)
    pixels = torch.zeros(1, 3, 192, 192, dtype=torch.uint8)
    module._print_times(pixels, pixels + 9, tmp_path, 1)
    cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(cells) == 12
    assert all(float(middle) >= 0 for _, middle, _ in cells)
    assert cells[-1][0].startswith("CLIP")
