"""The layers of the sequence models against closed forms, SciPy and PyTorch's own layers."""

import math
import pickle

import numpy as np
import pytest

pytest.importorskip("torch", reason="the sequence models need PyTorch")

import torch

from torch_layers import (
    RNN,
    Dropout,
    MambaRecurrence,
    PositionalEncoding,
    S4Recurrence,
    S5Layer,
    TransformerLayer,
    linear,
    log_uniform_steps,
)

WIDTH, STATES, LENGTH = 6, 5, 11


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dropout(rate=0.0):
    return Dropout(rate, generator(99))


LAYERS = {
    "RNN": lambda g: RNN(WIDTH, g),
    "Transformer": lambda g: TransformerLayer(WIDTH, 2, 8, dropout(), g),
    "S4": lambda g: S4Recurrence(WIDTH, STATES, "convolution", True, "reference", g),
    "S4 scan": lambda g: S4Recurrence(WIDTH, STATES, "scan", True, "reference", g),
    "Mamba": lambda g: MambaRecurrence(WIDTH, STATES, "reference", g),
    "S5": lambda g: S5Layer(WIDTH, WIDTH, g),
}


def relative_error(found, expected):
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize("name", LAYERS)
def test_no_output_sees_the_future(name):
    layer = LAYERS[name](generator()).eval()
    x = torch.randn(2, LENGTH, WIDTH, generator=generator(1))
    changed = x.clone()
    changed[:, 7:] += 1
    before, after = layer(x), layer(changed)
    assert before.shape == x.shape
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_come_from_the_generator_alone(name):
    torch.manual_seed(1)
    first = LAYERS[name](generator(5)).state_dict()
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second, other = (LAYERS[name](generator(seed)).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(1)
    LAYERS[name](generator(5))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("softplus_step", [True, False])
@pytest.mark.parametrize("length", [1, 11])
def test_s4_as_a_convolution_and_as_a_scan_agree_with_their_gradients(softplus_step, length):
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, generator=generator(1))
    results = []
    for mode in ("convolution", "scan"):
        layer = S4Recurrence(WIDTH, STATES, mode, softplus_step, "reference", generator())
        # Not Module.double(), which would drop imaginary parts.
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(
                torch.complex128 if parameter.is_complex() else torch.float64
            )
        y = layer(x)
        (y**2).sum().backward()
        results.append([y.detach(), *(p.grad for p in layer.parameters())])
    for ours, scan in zip(*results, strict=True):
        torch.testing.assert_close(ours, scan, rtol=1e-9, atol=1e-9)


def test_s4_starts_as_s4d_lin():
    layer = S4Recurrence(400, 300, "convolution", True, "reference", generator())
    assert torch.allclose(-layer.log_real.exp(), torch.tensor(-0.5))
    assert torch.allclose(layer.imaginary[7], math.pi * torch.arange(1.0, 301))
    for matrix in (layer.B.detach(), layer.C.detach()):
        # 120,000 draws: the standard error of a standard deviation is 0.2 %.
        assert matrix.dtype == torch.complex64
        for part in (matrix.real, matrix.imag):
            assert float(part.std()) == pytest.approx(math.sqrt(2 / 700) / math.sqrt(2), rel=0.01)


def test_steps_are_log_uniform_in_their_range():
    logs = log_uniform_steps(20_000, generator()).log()
    low, high = math.log(1e-3), math.log(1e-1)
    assert low <= logs.min() < low + 0.01 and high - 0.01 < logs.max() <= high
    assert logs.mean() == pytest.approx((low + high) / 2, abs=0.03)


def test_mamba_is_its_recurrence():
    layer = MambaRecurrence(WIDTH, STATES, "reference", generator())
    x = torch.randn(1, 4, WIDTH, generator=generator(1))
    select, weight, bias = (
        p.detach().double().numpy()
        for p in (layer.select.weight, layer.step.weight, layer.step.bias)
    )
    A = -np.arange(1.0, STATES + 1)
    h, outputs = np.zeros((WIDTH, STATES)), []
    for u in x[0].double().numpy():
        delta, B, C = np.split(select @ u, [1, 1 + STATES])
        rate = np.log1p(np.exp(weight @ delta + bias))[:, None]
        h = np.exp(rate * A) * h + rate * B * u[:, None]
        outputs.append(h @ C + u)
    # float32 against float64 over four steps: a few roundings.
    found = layer(x)[0].detach().double()
    assert relative_error(found, torch.tensor(np.array(outputs))) < 1e-6


def test_mamba_starts_with_the_steps_it_drew():
    layer = MambaRecurrence(64, STATES, "reference", generator())
    steps = torch.nn.functional.softplus(layer.step.bias)
    assert (steps > 0.99e-3).all() and (steps < 1.01e-1).all()
    assert layer.select.weight.shape == (4 + 2 * STATES, 64)
    assert layer.step.weight.abs().max() <= 4**-0.5


def test_transformer_layer_is_pytorchs_with_a_causal_mask():
    ours = TransformerLayer(WIDTH, 2, 8, dropout(), generator()).eval()
    theirs = torch.nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
    pairs = {
        "self_attn.in_proj_weight": ours.project.weight,
        "self_attn.in_proj_bias": ours.project.bias,
        "self_attn.out_proj.weight": ours.attended.weight,
        "self_attn.out_proj.bias": ours.attended.bias,
        "linear1.weight": ours.expand.weight,
        "linear1.bias": ours.expand.bias,
        "linear2.weight": ours.contract.weight,
        "linear2.bias": ours.contract.bias,
        **{
            f"norm{i + 1}.{name}": p for i in (0, 1) for name, p in ours.norms[i].named_parameters()
        },
    }
    theirs.load_state_dict(pairs)
    x = torch.randn(2, LENGTH, WIDTH, generator=generator(1))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=True))


def test_rnn_is_its_recurrence():
    layer = RNN(WIDTH, generator())
    x = torch.randn(1, 5, WIDTH, generator=generator(1))
    W, U, b, c = layer.rnn.parameters()
    h, states = torch.zeros(WIDTH), []
    for u in x[0]:
        h = torch.tanh(W @ u + b + U @ h + c)
        states.append(h)
    torch.testing.assert_close(layer(x)[0], torch.stack(states))


def test_positional_encoding_is_sine_and_cosine_of_scaled_positions():
    table = PositionalEncoding(8, LENGTH, dropout()).table
    for position, pair in ((0, 0), (3, 1), (10, 3)):
        angle = position / 1e4 ** (2 * pair / 8)
        assert table[position, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_dropout_zeroes_its_share_rescales_the_rest_and_rests_in_evaluation():
    layer = Dropout(0.1, generator())
    x = torch.full((100, 100), 3.0)
    dropped = layer(x)
    assert torch.unique(dropped).tolist() == pytest.approx([0, 3 / 0.9])
    assert (dropped == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(layer(x), dropped)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_saved_whole_computes_the_same(name):
    x = torch.randn(2, LENGTH, WIDTH, generator=generator(1))
    layer = LAYERS[name](generator())
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_linear_starts_as_pytorchs():
    layer = linear(400, 300, generator()).requires_grad_(False)
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= 1 / 20
    assert float(layer.weight.std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


CONVERSIONS = {
    "to(float32)": lambda m: m.to(torch.float32),
    "float()": lambda m: m.float(),
    "to(cpu)": lambda m: m.to("cpu"),
    "half() and back": lambda m: m.half().float(),
    "bfloat16() and back": lambda m: m.bfloat16().float(),
    "double() and back": lambda m: m.double().float(),
}


def complex_layers():
    return {
        "S4": S4Recurrence(16, 8, "convolution", True, "reference", generator()),
        "S5": S5Layer(16, 8, generator()),
    }


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("name", ["S4", "S5"])
def test_complex_parameters_survive_conversion(name, conversion):
    layer, converted = complex_layers()[name], CONVERSIONS[conversion](complex_layers()[name])
    for before, after in zip(layer.parameters(), converted.parameters(), strict=True):
        assert after.dtype == before.dtype
        if before.is_complex():
            assert torch.equal(before, after)


@pytest.mark.parametrize("mode", ["convolution", "scan"])
def test_a_converted_s4_computes_what_it_did(mode):
    x = torch.randn(2, 12, 16, generator=generator())
    plain = S4Recurrence(16, 8, mode, True, "reference", generator())(x)
    layer = S4Recurrence(16, 8, mode, True, "reference", generator())
    assert torch.equal(layer.to(torch.float32)(x), plain)
    # float32's rounding of states that add up 12 positions.
    torch.testing.assert_close(layer.double()(x.double()).float(), plain, rtol=1e-4, atol=1e-5)
    halved = layer.half()(x.half())
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["S4", "S4 scan", "Mamba"])
def test_a_layer_made_in_float64_computes_in_it(name):
    x = torch.randn(2, LENGTH, WIDTH, generator=generator(1))
    torch.set_default_dtype(torch.float64)
    try:
        y = LAYERS[name](generator())(x.double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float64


@pytest.mark.parametrize("mode", ["convolution", "scan"])
def test_under_autocast_s4_computes_in_float32_and_its_gradients_too(mode):
    x = torch.randn(2, 12, 16, generator=generator(), requires_grad=True)
    layer = S4Recurrence(16, 8, mode, True, "reference", generator())
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
        assert torch.equal(inside, plain)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        (gradient,) = torch.autograd.grad(inside.sum(), x)
    assert torch.equal(gradient, torch.autograd.grad(plain.sum(), x)[0])


def test_under_autocast_s5_computes_in_float32():
    pytest.importorskip("s5", reason="needs s5-pytorch")
    x, layer = torch.randn(2, 12, 16, generator=generator()), S5Layer(16, 8, generator())
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_under_autocast_mamba_takes_what_it_is_given():
    x = torch.randn(2, 12, 16, generator=generator(), requires_grad=True)
    layer = MambaRecurrence(16, 8, "reference", generator())
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
        inside.sum().backward()
    # The projections are bfloat16's, 8 bits; the scan itself adds nothing to that.
    torch.testing.assert_close(inside.float(), plain, rtol=5e-2, atol=5e-2)
    assert all(p.grad.isfinite().all() for p in layer.parameters())
