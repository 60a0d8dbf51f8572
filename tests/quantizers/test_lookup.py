import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentae.quantizers import IBQuantizer, SimVQuantizer, lookup, nearest_code
from latentae.quantizers.lookup import nearest_code_plain, precise_product, products_are_reduced
from tests.quantizers.conftest import NoWaiting, draw

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def brute_force(latents, codebook):
    """The definition: all squared distances in float64, the first of the smallest."""
    codes = codebook.double()
    return torch.cat(
        [(rows[:, None] - codes).square().sum(-1).argmin(1) for rows in latents.double().split(64)]
    )


class LargestTensor(TorchDispatchMode):
    """The number of bytes of the largest tensor any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


def excess(latents, codebook):
    """How much larger than the smallest squared distance that of the chosen code is, at most."""
    squares = torch.cdist(latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = squares.gather(1, nearest_code(latents, codebook)[:, None])[:, 0]
    return (chosen.square() - squares.amin(dim=1).square()).amax().item()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_expansion(latents, codebook):
    squares = latents.square().sum(1)[:, None] - 2 * latents @ codebook.T + codebook.square().sum(1)
    return squares.argmin(1)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 32, 65, 512])
@pytest.mark.parametrize("num_codes", [1, 2, 7, 1024])
def test_equals_brute_force(dim, num_codes):
    latents, codebook = normal(40 if dim > 64 else 200, dim, seed=1), normal(num_codes, dim, seed=2)
    # Distances that differ by less than the rounding of float32 are ties; processors decide differently.
    assert excess(latents, codebook) <= 1e-7 * latents.square().sum(1).max().item()
    same = nearest_code(latents, codebook) == brute_force(latents, codebook)
    assert same.double().mean() >= 0.99


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
    assert excess(latents, codebook) < 1e-4  # of squared distances of 0.04 and more


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (5.0, 0.05)])
@pytest.mark.parametrize("dim", [8, 64, 256])
def test_no_row_differs_from_float64(dim, mean, deviation):
    latents, codebook = (mean + deviation * normal(count, dim, seed=count) for count in (2048, 1024))
    squares = torch.cdist(latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_code(latents, codebook), squares.argmin(dim=1))


def test_ties_take_the_lowest_index():
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), codebook).tolist() == [0, 0]


def test_ties_on_a_lattice():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (700, 3), generator=generator).float()  # each point about six times
    latents = torch.randint(-5, 6, (500, 3), generator=generator) / 2  # half of them between the points
    assert excess(latents, codebook) == 0


def test_repeated_codes():
    latents, codebook = normal(400, 8, seed=1), normal(300, 8, seed=2)
    expected = brute_force(latents, codebook)
    assert torch.equal(nearest_code(latents, codebook.repeat(3, 1)), expected)
    assert nearest_code(latents, codebook[:1].expand(300, 8)).tolist() == [0] * 400


def test_no_tensor_of_rows_by_codes():
    latents, codebook = normal(20_000, 4, seed=1), normal(1_000, 4, seed=2)
    with LargestTensor() as largest:
        lookup._nearest_code(latents, codebook)
    # 80 MB would hold all distances; a tile is 1 MiB for each thread, a latent 16 bytes
    assert 100_000 < largest.bytes <= max(1 << 20, 20_000 * 16) * torch.get_num_threads()


@pytest.mark.parametrize("elements", [1, 200, 5000])
@pytest.mark.parametrize("least_rows", [1, 7])
def test_the_tiles_make_no_difference(monkeypatch, elements, least_rows):
    monkeypatch.setattr(lookup, "_TILE_ELEMENTS", elements)
    monkeypatch.setattr(lookup, "_LEAST_ROWS", least_rows)
    latents, codebook = normal(50, 3, seed=1), normal(64, 3, seed=2)
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_an_accelerator_never_makes_the_host_wait(monkeypatch):
    monkeypatch.setattr(lookup, "_best_code", lambda scores: scores.argmax(dim=1))
    latents, codebook = normal(500, 5, seed=1), normal(300, 5, seed=2)
    with NoWaiting():
        indices = lookup._nearest_code(latents, codebook)
    assert torch.equal(indices, brute_force(latents, codebook))


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


@pytest.fixture(params=["high", "medium"])
def reduced(request):
    """torch's permission to multiply float32 in TensorFloat-32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


def pair():
    left, right = draw(1, 64, 30, 30)[0].flatten(1), draw(1, 900, 7, 7, seed=1)[0].flatten(1)
    return left, right


def test_float32_is_left_alone_where_torch_keeps_it():
    left, right = pair()
    assert not products_are_reduced(left.device)
    assert torch.equal(precise_product(left, right), left @ right)


def test_float64_stands_in_where_torch_may_round(reduced):
    left, right = (value.requires_grad_() for value in pair())
    assert products_are_reduced(left.device)
    product = precise_product(left, right)
    assert product.dtype == torch.float32
    assert torch.equal(product, (left.double() @ right.double()).float())
    gradients = torch.autograd.grad(product.sum(), (left, right))
    torch.testing.assert_close(gradients[0], right.sum(dim=1).expand_as(left))
    torch.testing.assert_close(gradients[1], left.sum(dim=0)[:, None].expand_as(right))


def test_an_environment_variable_of_cuda_counts_too(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert products_are_reduced(torch.device("cuda"))
    assert not products_are_reduced(torch.device("cpu"))
    assert not products_are_reduced(torch.device("mps"))


@pytest.mark.parametrize("make", [IBQuantizer, SimVQuantizer])
def test_codes_depend_on_no_setting(make, reduced, monkeypatch):
    """With products that are rounded to bfloat16, as some processors do where they are allowed to."""
    torch.manual_seed(0)
    quantizer = make(512, 8).eval()
    torch.nn.init.normal_(quantizer.embedding.weight)
    if isinstance(quantizer, SimVQuantizer):
        torch.nn.init.normal_(quantizer.projection.weight)
    latents = draw(2, 8, 16, 16)
    precise = make(512, 8).eval().double()
    precise.load_state_dict(quantizer.state_dict())
    expected = precise.indices(latents.double())
    multiply = torch.Tensor.__matmul__

    def rounded(left, right):
        if left.dtype == torch.float32:
            return multiply(left.bfloat16().float(), right.bfloat16().float())
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert torch.equal(quantizer.indices(latents), expected)
    codes = quantizer.codes(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.codes(expected), codes)
        assert torch.equal(quantizer.indices(latents), expected)
