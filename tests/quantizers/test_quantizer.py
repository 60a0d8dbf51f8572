import pytest
import torch

from latentae.quantizers import QuantizerOutput, VectorQuantizer
from latentae.quantizers.quantizer import Quantizer, check_counts, check_weights, precise
from tests.quantizers.conftest import NoWaiting, draw, generator, make


def output(**losses):
    return QuantizerOutput(
        quantized=torch.ones(1, 2, 1, 3),
        indices=torch.tensor([[[4, 5, 5]]]),
        losses={name: torch.tensor(value) for name, value in losses.items()},
        num_codes=8,
    )


def test_by_position_it_is_diffusers_tuple():
    result = output(codebook=1.0, commitment=0.25)
    quantized, loss, (perplexity, encodings, indices) = result
    assert quantized is result.quantized
    assert loss.item() == result.loss.item() == 1.25
    assert (perplexity, encodings) == (None, None)
    assert indices.tolist() == result[2][2].tolist() == [4, 5, 5]
    with pytest.raises(IndexError):
        result[3]


def test_no_losses_are_zero():
    assert output().loss.item() == 0.0


def test_health_is_of_this_batch():
    health = output().health
    assert health.usage == 2 / 8
    assert health.perplexity == pytest.approx(3 / 4 ** (1 / 3))  # of frequencies 1/3 and 2/3


def test_codes_of_indices_are_what_was_put_out(kind):
    quantizer = make(kind).eval()
    latents = draw(2, 4, 5, 6)
    output = quantizer(latents)
    tables = () if quantizer.depth is None else (quantizer.depth,)
    assert output.indices.shape == (2, *tables, 5, 6)
    assert output.indices.dtype == torch.int64
    assert output.quantized.shape == latents.shape
    assert torch.equal(quantizer.codes(output.indices), output.quantized)
    assert torch.equal(quantizer.codes(output.indices.int()), output.quantized)
    assert torch.equal(quantizer.indices(latents), output.indices)
    entry = quantizer.get_codebook_entry(output.indices.flatten(), (2, 5, 6, 4))
    assert torch.equal(entry, output.quantized)


# The others are no projections: bounded, a greedy sum, the code of the largest product.
@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq", "lfq", "bsq"])
def test_codes_are_quantized_to_themselves(kind):
    quantizer = make(kind).eval()
    indices = torch.arange(16).view(1, 4, 4)
    assert torch.equal(quantizer(quantizer.codes(indices)).indices, indices)


def test_training_and_evaluation_give_the_same_but_for_dropout(kind):
    quantizer = make(kind)
    latents = draw(2, 4, 4, 4)
    trained, evaluated = quantizer.train()(latents), quantizer.eval()(latents)
    assert torch.equal(trained.indices, evaluated.indices)
    if kind != "residual":
        assert torch.equal(trained.quantized, evaluated.quantized)


def test_the_gradient_reaches_the_latents(kind):
    quantizer = make(kind).double().train()
    latents = draw(2, 4, 4, 4, dtype=torch.float64).requires_grad_()
    output = quantizer(latents)
    (gradient,) = torch.autograd.grad((output.quantized * draw(2, 4, 4, 4, seed=1)).sum(), latents)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_every_parameter_that_learns_by_gradient_gets_one(kind):
    quantizer = make(kind).train()
    output = quantizer(draw(2, 4, 4, 4))
    wanted = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    if wanted:
        (output.loss + output.quantized.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_half_precision_out(kind, dtype):
    quantizer = make(kind).train()
    latents = draw(2, 4, 4, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents)
    assert output.quantized.dtype == dtype
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
    # Inside it is what float32 gives for the same latents.
    assert torch.equal(output.indices, quantizer(latents.float()).indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(kind, dtype):
    quantizer = make(kind).to(dtype).eval()
    output = quantizer(draw(2, 4, 4, 4).to(dtype))
    assert torch.equal(quantizer.codes(output.indices).to(dtype), output.quantized)


def test_nothing_but_pending_sums_changes_inside_forward(kind):
    quantizer = make(kind).train()
    before = {name: value.clone() for name, value in quantizer.named_buffers() if "pending" not in name}
    weights = {name: value.clone() for name, value in quantizer.named_parameters()}
    quantizer(draw(2, 4, 4, 4))
    after = dict(quantizer.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(value, weights[name]) for name, value in quantizer.named_parameters())


def test_a_step_that_was_not_made_is_forgotten(kind):
    def state(quantizer):
        upkeep = {name: value for name, value in quantizer.upkeep.items() if name != "active"}  # drawn anew
        return {name: value.clone() for name, value in {**quantizer.state_dict(), **upkeep}.items()}

    quantizer = make(kind).train()
    quantizer.start(draw(2, 4, 4, 4), generator())
    quantizer(draw(2, 4, 4, 4))
    quantizer.commit(1, generator(1))
    before = state(quantizer)
    for accepted in (torch.tensor(False), False):
        quantizer(torch.full((2, 4, 4, 4), float("nan")))
        quantizer.commit(2, generator(2), accepted)  # when unused codes would be revived
        after = state(quantizer)
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(value.any() for name, value in quantizer.named_buffers() if "pending" in name)


def test_resumed_equals_uninterrupted(kind):
    def steps(quantizer, first, last):
        for step in range(first, last):
            quantizer(draw(2, 4, 4, 4, seed=step))
            quantizer.commit(step + 1, generator(step))

    whole = make(kind).train()
    whole.start(draw(2, 4, 8, 8), generator())
    steps(whole, 0, 3)
    resumed = make(kind).train()
    resumed.load_state_dict(whole.state_dict())
    for name, buffer in resumed.upkeep.items():
        buffer.copy_(whole.upkeep[name])
    for quantizer in (whole, resumed):
        steps(quantizer, 3, 7)
    assert whole.upkeep.keys() == resumed.upkeep.keys()
    for ours, theirs in ((whole.state_dict(), resumed.state_dict()), (whole.upkeep, resumed.upkeep)):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_upkeep_is_not_part_of_the_model(kind):
    assert all(name.split(".")[-2] in ("embedding", "projection") for name in make(kind).state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(kind, value):
    quantizer = make(kind)
    latents = draw(2, 4, 4, 4)
    latents[1, 2, 3, 0] = value
    output = quantizer.train()(latents)
    if not (kind == "fsq" and value == float("inf")):  # which FSQ bounds like any large value
        assert output.quantized.isnan().any()
    assert ((output.indices >= 0) & (output.indices < quantizer.num_codes)).all()
    with pytest.raises(ValueError, match="1 of 128 values of the latents are NaN or infinite"):
        quantizer.indices(latents)
    with pytest.raises(ValueError, match="1 of 128 values of the latents are NaN or infinite"):
        quantizer.start(latents, generator())
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer.eval()(latents)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 3, 2, 2), r"\[B, 4, h, w\]; got \[1, 3, 2, 2\] of float32"),
        (torch.zeros(4, 2, 2), r"got \[4, 2, 2\]"),
        (torch.zeros(1, 4, 2, 2, dtype=torch.int64), "of int64"),
        (torch.zeros(0, 4, 2, 2), r"\[0, 4, 2, 2\] are empty"),
    ],
)
def test_latents_that_cannot_be_quantized(kind, latents, message):
    quantizer = make(kind)
    for call in (quantizer, quantizer.indices, lambda x: quantizer.start(x, generator())):
        with pytest.raises(ValueError, match=message):
            call(latents)


def test_indices_that_stand_for_nothing(kind):
    quantizer = make(kind)
    tables = () if quantizer.depth is None else (quantizer.depth,)
    indices = torch.zeros(1, *tables, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"indices are float32, but must be int64 or int32"):
        quantizer.codes(indices.float())
    with pytest.raises(ValueError, match=r"indices are \[B, .*h, w\]; got"):
        quantizer.codes(indices[0])
    indices[..., 1, 1] = quantizer.num_codes
    with pytest.raises(ValueError, match=f"indices run from 0 to {quantizer.num_codes}, but"):
        quantizer.codes(indices)
    with pytest.raises(ValueError, match="indices run from -1"):
        quantizer.codes(indices - 1)


def test_a_training_step_never_waits_for_the_device(kind):
    changes = {"dropout": 0.0} if kind == "residual" else {}  # which draws on the host
    quantizer = make(kind, **changes).train()
    latents = draw(2, 4, 4, 4).requires_grad_()
    accepted = torch.tensor(True)
    with NoWaiting():
        output = quantizer(latents)
        (output.loss + output.quantized.sum()).backward()
        for step in (1, 2):
            quantizer.commit(step, generator(), accepted)
    assert latents.grad.isfinite().all()  # and NoWaiting has refused nothing


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_it_gives_the_same(kind, training):
    """Values, gradients and what is pending for the upkeep."""
    plain, traced = make(kind).train(training), make(kind).train(training)
    torch.compiler.reset()
    results = []
    for quantizer, call in ((plain, plain), (traced, torch.compile(traced, backend="aot_eager"))):
        latents = draw(2, 4, 4, 4).requires_grad_()
        output = call(latents)
        loss = output.loss + (output.quantized * draw(2, 4, 4, 4, seed=1)).sum()
        (gradient,) = torch.autograd.grad(loss, latents)
        results.append([output.quantized, output.indices, output.loss, gradient, *quantizer.buffers()])
    for expected, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, expected)


def test_several_batches_to_start_from():
    together, apart = make("ema"), make("ema")
    latents = draw(6, 4, 4, 4)
    together.start(latents, generator())
    apart.start(latents.split(2), generator())
    assert torch.equal(together.embedding.weight, apart.embedding.weight)
    assert together.latents_to_start == 4 * 16
    assert VectorQuantizer(16, 4, init="uniform").latents_to_start == 0


def test_nothing_is_observed_while_frozen():
    quantizer = make("ema").train()
    quantizer.frozen = True
    quantizer(draw(2, 4, 4, 4))
    assert not quantizer.pending_counts.any()


def test_too_many_codes():
    with pytest.raises(ValueError, match="there are 1048577 codes, but at most 1048576 can be counted"):
        Quantizer(2**20 + 1, 1)


def test_numbers_that_are_checked():
    check_counts(depth=1, revive_after=None)
    with pytest.raises(ValueError, match="depth is 0, but must be an integer of at least 1"):
        check_counts(depth=0)
    with pytest.raises(ValueError, match=r"num_codes is 1\.5, but must be an integer"):
        check_counts(num_codes=1.5)
    check_weights(weight=0.0)
    with pytest.raises(ValueError, match=r"weight is -0\.5, but must be a number of 0 or more"):
        check_weights(weight=-0.5)
    for value in ("nan", "inf"):
        with pytest.raises(ValueError, match=f"weight is {value}"):
            check_weights(weight=float(value))


def test_precision():
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ):
        assert precise(torch.ones(1, dtype=dtype)).dtype == expected
