import importlib.util
import warnings
from fractions import Fraction

import pytest
import torch

from latentae.quantizers import lookup, nearest_code
from latentae.quantizers.lookup import nearest_code_plain

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def brute_force(latents, codebook):
    """The definition: all squared distances in float64, the first of the smallest."""
    codes = codebook.double()
    return torch.cat(
        [(rows[:, None] - codes).square().sum(-1).argmin(1) for rows in latents.double().split(64)]
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_expansion(latents, codebook):
    squares = latents.square().sum(1)[:, None] - 2 * latents @ codebook.T + codebook.square().sum(1)
    return squares.argmin(1)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 32, 65, 512])
@pytest.mark.parametrize("num_codes", [1, 2, 7, 1024])
def test_equals_brute_force(dim, num_codes):
    latents, codebook = normal(40 if dim > 64 else 200, dim, seed=1), normal(num_codes, dim, seed=2)
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_more_rows_and_codes_than_a_tile_holds():
    latents, codebook = normal(4500, 3, seed=1), normal(4099, 3, seed=2)
    indices = nearest_code(latents, codebook)
    rows = torch.cat([torch.arange(200), torch.arange(4050, 4150), torch.arange(4400, 4500)])
    assert torch.equal(indices[rows], brute_force(latents[rows], codebook))
    assert indices.unique().max() > 4090  # the last tile, of three codes, is looked at too


@pytest.mark.parametrize("dim", [4, 64])
def test_far_from_the_origin(dim):
    latents, codebook = 5 + 0.05 * normal(600, dim, seed=1), 5 + 0.05 * normal(512, dim, seed=2)
    expected = brute_force(latents, codebook)
    assert (plain_expansion(latents, codebook) != expected).any()  # what the test is there for
    assert torch.equal(nearest_code(latents, codebook), expected)


def test_latents_far_from_a_small_codebook():
    latents, codebook = 5 + 0.05 * normal(1000, 16, seed=1), normal(512, 16, seed=2) / 512
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_half_the_codes_still_where_they_started():
    latents, codebook = 5 + 0.05 * normal(1000, 16, seed=1), 5 + 0.05 * normal(512, 16, seed=2)
    codebook[::2] = normal(256, 16, seed=3) / 512
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_two_clusters_much_smaller_than_their_distance():
    sides = torch.tensor([1.0, -1.0]).repeat_interleave(200)[:, None]
    latents, codebook = sides + 1e-5 * normal(400, 8, seed=1), sides + 1e-5 * normal(400, 8, seed=2)
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_ties_take_the_lowest_index():
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), codebook).tolist() == [0, 0]


def test_ties_on_a_lattice():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (700, 3), generator=generator).float()  # each point about six times
    latents = torch.randint(-5, 6, (500, 3), generator=generator) / 2  # half of them between the points
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_near_ties_are_decided_in_float64(dim):
    codebook = normal(16, dim).double()
    codebook = codebook[(codebook - codebook[0]).square().sum(1).argsort()][:2]  # two neighbours
    step = codebook[1] - codebook[0]
    shares = torch.tensor([-1e-7, -1e-10, -1e-13, 1e-13, 1e-10, 1e-7], dtype=torch.float64)
    latents = codebook.mean(dim=0) + shares[:, None] * step
    others = codebook[0] + 10 * step.norm() * normal(50, dim, seed=1).double().sign()
    indices = nearest_code(latents, torch.cat([others, codebook]))
    assert indices.tolist() == [50, 50, 50, 51, 51, 51]


def test_codes_that_differ_in_the_last_bit():
    code = normal(1, 8)
    codebook = code.repeat(9, 1)
    codebook[torch.arange(1, 9), torch.arange(8)] = torch.nextafter(code[0], torch.tensor(9.0))
    assert nearest_code(codebook.repeat(2, 1), codebook).tolist() == [*range(9), *range(9)]


def test_repeated_codes():
    latents, codebook = normal(400, 8, seed=1), normal(300, 8, seed=2)
    expected = brute_force(latents, codebook)
    assert torch.equal(nearest_code(latents, codebook.repeat(3, 1)), expected)
    assert nearest_code(latents, codebook[:1].expand(300, 8)).tolist() == [0] * 400


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 3e37])
def test_scales_of_float32(scale):
    latents, codebook = normal(300, 8, seed=1) * scale, normal(200, 8, seed=2) * scale
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
def test_scales_of_float64(exponent):
    latents, codebook = normal(300, 8, seed=1).double(), normal(200, 8, seed=2).double()
    scaled = nearest_code(latents * 2.0**exponent, codebook * 2.0**exponent)
    assert torch.equal(scaled, brute_force(latents, codebook))  # whose squares would leave the range
    halves, lattice = (latents[:, :2] * 4).round() / 2, (codebook[:, :2] * 2).round()  # which tie
    scaled = nearest_code(halves * 2.0**exponent, lattice * 2.0**exponent)
    assert torch.equal(scaled, brute_force(halves, lattice))


@pytest.mark.parametrize("outlier", [1e6, 1e12])
def test_outliers_do_not_spoil_the_rest(outlier):
    latents, codebook = normal(300, 8, seed=1), normal(200, 8, seed=2)
    latents[::7] *= outlier
    codebook[[3, 5]] = outlier
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


@pytest.mark.parametrize("outlier", [1e15, 1e30])
def test_outliers_whose_squares_float64_cannot_tell_apart(outlier):
    latents, codebook = normal(20, 8, seed=1), normal(100, 8, seed=2)
    latents[::4] *= outlier
    codebook[3] = outlier
    codes = [[Fraction(value) for value in code] for code in codebook.tolist()]
    for row, index in zip(latents.tolist(), nearest_code(latents, codebook).tolist(), strict=True):
        squares = [sum((Fraction(x) - c) ** 2 for x, c in zip(row, code, strict=True)) for code in codes]
        assert squares[index] == min(squares)


@pytest.mark.parametrize("codebook_dtype", DTYPES)
@pytest.mark.parametrize("latents_dtype", DTYPES)
def test_dtypes(latents_dtype, codebook_dtype):
    latents, codebook = normal(200, 4, seed=1).to(latents_dtype), normal(300, 4, seed=2).to(codebook_dtype)
    indices = nearest_code(latents, codebook)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, brute_force(latents, codebook))


def test_autocast_changes_nothing():
    latents = torch.tensor([[100.0], [100.5]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_code(latents, latents).tolist() == [0, 1]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matmul_precision_changes_nothing(precision):
    latents, codebook = normal(500, 64, seed=1), normal(1024, 64, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases say that they have no TensorFloat-32 here
        torch.set_float32_matmul_precision(precision)
    try:
        indices = nearest_code(latents, codebook)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(indices, brute_force(latents, codebook))


def test_latents_that_are_not_finite_get_code_zero_and_leave_the_others_alone():
    latents, codebook = normal(300, 8, seed=1), normal(200, 8, seed=2)
    expected = brute_force(latents, codebook)
    for row, value in {0: torch.nan, 7: torch.inf, 8: -torch.inf}.items():
        latents[row, row % 3] = value
        expected[row] = 0
    latents[20:80] = torch.nan
    expected[20:80] = 0
    assert torch.equal(nearest_code(latents, codebook), expected)
    assert nearest_code(torch.full((3, 8), torch.nan), codebook).tolist() == [0, 0, 0]


def test_codes_that_are_not_finite_are_never_the_nearest():
    latents, codebook = normal(300, 8, seed=1), normal(200, 8, seed=2)
    for row, value in {0: torch.nan, 7: torch.inf, 8: -torch.inf}.items():
        codebook[row, row % 3] = value
    finite = codebook.isfinite().all(dim=1).nonzero()[:, 0]
    assert torch.equal(nearest_code(latents, codebook), finite[brute_force(latents, codebook[finite])])
    assert nearest_code(latents[:2], torch.full((5, 8), torch.nan)).tolist() == [0, 0]


def test_nothing_to_look_up():
    empty = nearest_code(torch.zeros(0, 4), torch.zeros(3, 4))
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    assert nearest_code(torch.zeros(2, 0), torch.zeros(3, 0)).tolist() == [0, 0]


def test_strides_and_gradients():
    latents, codebook = normal(8, 300, seed=1).T.requires_grad_(), normal(8, 200, seed=2).T.requires_grad_()
    indices = nearest_code(latents, codebook)
    assert not indices.requires_grad
    assert torch.equal(indices, brute_force(latents.detach(), codebook.detach()))


def test_one_operation_for_the_compiler():
    compiled = torch.compile(
        lambda x, c: c[nearest_code(x, c)], backend="aot_eager", fullgraph=True, dynamic=True
    )
    for count in (50, 70):
        latents, codebook = normal(count, 4, seed=1), normal(20, 4, seed=2)
        assert torch.equal(compiled(latents, codebook), codebook[brute_force(latents, codebook)])


def test_without_data():
    indices = nearest_code(torch.zeros(5, 4, device="meta"), torch.zeros(3, 4, device="meta"))
    assert (indices.shape, indices.dtype, indices.device.type) == ((5,), torch.int64, "meta")


@pytest.mark.parametrize(
    ("latents", "codebook", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(5, 4), r"\[3, 2\] and \[5, 4\]"),
        (torch.zeros(3, 2, 2), torch.zeros(5, 2), r"latents \[N, d\].*\[3, 2, 2\]"),
        (torch.zeros(3, 2), torch.zeros(0, 2), "holds no codes"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(5, 2), "latents are torch.int64"),
        (torch.zeros(3, 2), torch.zeros(5, 2, dtype=torch.int8), "codebook is torch.int8"),
        (
            torch.zeros(3, 2),
            torch.zeros(5, 2, device="meta"),
            "latents are on cpu and the codebook is on meta",
        ),
    ],
)
def test_what_does_not_fit(latents, codebook, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(latents, codebook)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernel can be built")
def test_a_kernel_that_cannot_be_built_is_reported():
    with pytest.warns(UserWarning, match="without its fused kernel"):
        assert lookup._fused_lookup.__wrapped__() is None


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_the_plain_look_up_of_exported_models(offset):
    latents, codebook = offset + normal(500, 16, seed=1), offset + normal(512, 16, seed=2) / 8
    assert torch.equal(nearest_code_plain(latents, codebook), nearest_code(latents, codebook))
    equal = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code_plain(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), equal).tolist() == [0, 0]
    halves = nearest_code_plain(
        latents.half(), codebook.half()
    )  # whose products would leave float16's precision
    assert torch.equal(halves, nearest_code(latents.half(), codebook.half()))
