"""The kernels: run by Triton's interpreter, and where there is a GPU, on it."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from latentae.quantizers import nearest_code

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

INTERPRETED = """
import torch
from latentae.quantizers.lookup_triton import nearest_code_triton

def brute_force(latents, codebook):
    return (latents[:, None].double() - codebook.double()).square().sum(-1).argmin(1)

torch.manual_seed(0)
for count, num_codes, dim in ((1, 2, 1), (70, 65, 3), (65, 130, 40)):
    latents, codebook = 5 + 0.05 * torch.randn(count, dim), 5 + 0.05 * torch.randn(num_codes, dim)
    assert torch.equal(nearest_code_triton(latents, codebook), brute_force(latents, codebook)), (count, dim)

points, lattice = torch.randint(-5, 6, (12, 2)) / 2, torch.randint(-2, 3, (80, 2))
for dtype in (torch.bfloat16, torch.float64):  # every row a tie, which the second kernel decides
    latents, codebook = points.to(dtype), lattice.to(dtype)
    assert torch.equal(nearest_code_triton(latents, codebook), brute_force(latents, codebook)), dtype

latents, codebook = torch.randn(9, 4), torch.randn(70, 4)
latents[6] *= 1e6
latents[5] = 1e38  # the square is beyond float32
expected = brute_force(latents, codebook[:69])
latents[3, 0], latents[4, 1] = torch.nan, torch.inf
expected[[3, 4]] = 0
codebook[69] = torch.nan
assert nearest_code_triton(latents, codebook).tolist() == expected.tolist()
print("all equal")
"""


def test_interpreted_kernels_equal_brute_force():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all equal\n", done.stderr


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("num_codes", "dim"), [(2, 1), (1000, 4), (8192, 8), (1024, 64), (777, 300)])
def test_cuda_equals_cpu(dtype, num_codes, dim):
    latents, codebook = normal(3000, dim, seed=1).to(dtype), normal(num_codes, dim, seed=2).to(dtype)
    assert torch.equal(nearest_code(latents.cuda(), codebook.cuda()).cpu(), nearest_code(latents, codebook))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_decides_ties_as_the_cpu_does_without_waiting():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (700, 3), generator=generator).float()
    latents = torch.randint(-5, 6, (3000, 3), generator=generator) / 2
    latents[5] = torch.nan
    on_device = latents.cuda(), codebook.cuda()
    nearest_code(*on_device)  # builds the kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        indices = nearest_code(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(indices.cpu(), nearest_code(latents, codebook))


@pytest.mark.parametrize("dtype", ["bf16", "fp64"])
def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch, tmp_path, dtype):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from latentae.quantizers import lookup_triton

    blocks = {"block_rows": 16, "block_codes": 16, "block_dim": 16}
    types = {"nearest": "*i64", "scale": "*fp64", "raw_latents": f"*{dtype}", "raw_codes": f"*{dtype}"}
    for kernel in (lookup_triton._best_score, lookup_triton._exact_distance):
        numbers = dict.fromkeys(("num_rows", "num_codes", "dim"), "i32") | dict.fromkeys(blocks, "constexpr")
        signature = {name: types.get(name, numbers.get(name, "*fp32")) for name in kernel.arg_names}
        constants = {name: size for name, size in blocks.items() if name in signature}
        source = ASTSource(kernel, signature, constants)
        compiled = triton_compile(
            source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True}
        )
        assert "mma" not in compiled.asm["ptx"]  # tensor cores would round to TensorFloat-32
        assert "fma.rn.f32" in compiled.asm["ptx"]
