"""With the authors' weights, our models give the outputs and gradients of the authors' modules.

RELEASED_CODE=folder names a clone of github.com/Benjamin-Walker/selective-ssms-and-linear-cdes.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

RELEASED = os.environ.get("RELEASED_CODE")
pytestmark = pytest.mark.skipif(
    not RELEASED, reason="RELEASED_CODE does not name a clone of the released code"
)
# Both add the same float32 products, in another order: some dozens of roundings of 6e-8.
ROUNDING = 1e-5


def released(monkeypatch, name, **stand_ins):
    """A file of the released code, with stand-ins for modules that it imports and we do without."""
    for module, contents in stand_ins.items():
        parts = module.split("__")
        for end in range(1, len(parts) + 1):
            dotted = ".".join(parts[:end])
            if dotted != "data_dir":
                stand_in = ModuleType(dotted)
                stand_in.__spec__ = ModuleSpec(dotted, None)  # PyTorch looks for it
                monkeypatch.setitem(sys.modules, dotted, stand_in)
        vars(sys.modules[".".join(parts)]).update(contents)
    spec = importlib.util.spec_from_file_location(f"released_{name}", Path(RELEASED) / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_scan(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False, **options):
    """mamba-ssm's `selective_scan_fn` as its definition reads, a position after the other."""
    import torch

    assert z is None and delta_softplus and options == {"return_last_state": False}
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = torch.nn.functional.softplus(delta)
    state, outputs = 0, []
    for i in range(u.shape[2]):
        B_i, C_i = (M if M.dim() == 2 else M[:, None, :, i] for M in (B, C))
        step = delta[:, :, i, None]
        state = torch.exp(step * A) * state + step * B_i * u[:, :, i, None]
        y = (state * C_i).sum(dim=-1)
        outputs.append(2 * y.real if y.is_complex() else y)
    return torch.stack(outputs, dim=2) + D[:, None] * u


@pytest.fixture
def torch_models(monkeypatch):
    pytest.importorskip("torch", reason="needs the PyTorch environment")
    pytest.importorskip("einops", reason="the released code needs einops")
    interface = {"mamba_ssm__ops__selective_scan_interface": {"selective_scan_fn": plain_scan}}
    return released(monkeypatch, "torch_sequence_models", pandas={}, **interface)


# Our name of a layer's parameters: theirs, where the two differ.
NAMES = {
    "S4": {"log_real": "A_real_log", "imaginary": "A_imag", "log_step": "log_dt"},
    "Mamba": {"select": "x_proj", "step": "dt_proj", "log_A": "A_log"},
    "Transformer": {
        "project.": "transformer_layer.self_attn.in_proj_",
        "attended": "transformer_layer.self_attn.out_proj",
        "expand": "transformer_layer.linear1",
        "contract": "transformer_layer.linear2",
        "norms.0": "transformer_layer.norm1",
        "norms.1": "transformer_layer.norm2",
    },
    "RNN": {},
}


def their_name(name, model):
    for ours, theirs in NAMES[model].items():
        name = name.replace(f"layer.{ours}", f"layer.{theirs}")
    parts = name.split(".")
    if parts[0] == "blocks":
        room = {"layer": "ssms", "mix": "linear_mixes", "norm": "layernorms"}[parts[2]]
        return ".".join([room, parts[1], *parts[3:]])
    first = {"embed": "init_layer", "output": "linear_out"}[parts[0]]
    rest = [part for part in parts[1:] if part != "0"]
    return ".".join([first, *rest])


def assert_close(found, expected, what):
    found, expected = np.asarray(found), np.asarray(expected)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"{what}: {error:.1e}")
    assert error < ROUNDING, what


def compare_torch(ours, theirs, model, inputs):
    import torch

    theirs.eval()
    ours.eval()
    renamed = {"init_layer.embedding.weight": "init_layer.weight"}
    parameters = {renamed.get(name, name): p for name, p in theirs.named_parameters()}
    pairs = []
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            other = parameters.pop(their_name(name, model))
            parameter.copy_(other)
            pairs.append((name, parameter, other))
    assert not parameters
    outputs = [network(inputs) for network in (ours, theirs)]
    assert_close(outputs[0].detach(), outputs[1].detach(), "outputs")
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    for output in outputs:
        (output * weights).sum().backward()
    for name, mine, other in pairs:
        assert_close(mine.grad, other.grad, name)


@pytest.mark.parametrize("model", ["S4", "Mamba"])
@pytest.mark.parametrize(("depth", "nonlinear"), [(1, False), (2, False), (2, True)])
def test_toy_models(torch_models, model, depth, nonlinear):
    import torch

    from torch_layers import make_layer
    from torch_sequence_models import toy_model

    generator = torch.manual_seed(0)
    theirs = torch_models.SequenceModel(2, 1, 16, 8, depth, model, nonlinear, activation="GELU")
    ours = toy_model(
        lambda: make_layer(
            model, 16, 8, backend="reference", s4_mode="convolution", s4_softplus_step=True,
            attention=None, generator=generator,
        ),
        input_dim=2, width=16, depth=depth, nonlinear=nonlinear, mix_first=True,
        generator=generator,
    )  # fmt: skip
    compare_torch(ours, theirs, model, torch.randn(3, 20, 2, generator=generator))


@pytest.mark.parametrize("model", ["RNN", "Transformer", "S4", "Mamba"])
@pytest.mark.parametrize("depth", [1, 3])
def test_word_models(torch_models, model, depth):
    import torch

    from torch_layers import Dropout, make_layer
    from torch_sequence_models import a5_model

    generator = torch.manual_seed(0)
    states = 8 if model != "Transformer" else 4  # there it is the number of heads
    theirs = torch_models.SequenceModel(
        60, 60, 16, states, depth, model, True,
        embedding=True, use_layernorm=True, dropout=0.1, continuous_output=True,
    )  # fmt: skip
    dropout = Dropout(0.1, generator)
    ours = a5_model(
        lambda: make_layer(
            model, 16, 8, backend="reference", s4_mode="convolution", s4_softplus_step=True,
            attention=(4, 2048, dropout), generator=generator,
        ),
        vocabulary=60, width=16, depth=depth, positions=9 if model == "Transformer" else None,
        dropout=dropout, generator=generator,
    )  # fmt: skip
    compare_torch(ours, theirs, model, torch.randint(60, (5, 9), generator=generator))


@pytest.fixture
def jax_models(monkeypatch):
    jax = pytest.importorskip("jax", reason="needs the JAX environment")
    import diffrax

    def controller(*, jump_ts, **settings):
        """diffrax 0.7 has moved `jump_ts` to a controller of its own."""
        adaptive = diffrax.PIDController(**settings)
        return diffrax.ClipStepSizeController(adaptive, jump_ts=jump_ts)

    loaders = dict.fromkeys(("A5Dataloader", "ToyDataloader"))
    module = released(monkeypatch, "linear_cde", data_dir__jax_dataloader=loaders)
    module.dfx = SimpleNamespace(**{**vars(diffrax), "PIDController": controller})
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield module


@pytest.mark.parametrize("input_dim", [2, 3])
def test_linear_cde_on_paths(jax_models, rng, input_dim):
    import equinox as eqx
    import jax.numpy as jnp
    import jax.random as jr

    from linear_cde import LinearCDE, adaptive_cde_solve

    theirs = jax_models.LinearCDE(8, input_dim, 1, key=jr.PRNGKey(1))
    names = ("init_matrix", "init_bias", "A", "B")
    weights = [theirs.init_matrix, theirs.init_bias, theirs.vf_A, theirs.vf_B]
    ours = eqx.tree_at(
        lambda m: [getattr(m, name) for name in names],
        LinearCDE(8, input_dim, key=jr.PRNGKey(0)),
        weights,
    )
    path = jnp.asarray(0.2 * np.cumsum(rng.standard_normal((12, input_dim)), 0), jnp.float32)
    state = eqx.filter_jit(ours)(jnp.linspace(0, 1, 12), path, adaptive_cde_solve)
    assert_close(state, eqx.filter_jit(theirs)(path), "state")


@pytest.mark.parametrize("length", [2, 7])
def test_linear_cde_on_words(jax_models, rng, length):
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from experiments.lcde_training import mean_cross_entropy
    from linear_cde import A5LinearCDE

    theirs = jax_models.A5LinearCDE(8, 60, 60, key=jr.PRNGKey(1))
    tokens, targets = (jnp.asarray(x) for x in rng.integers(0, 60, (2, 5, length), dtype=np.uint8))

    def in_our_form(model):
        cde, mix, out = model.LCDE, model.linear_mix, model.linear_out
        time, by_channel = cde.vf_A[:, 0], jnp.swapaxes(cde.vf_A[:, 1:], 1, 2)
        return [
            model.embedding.weights, cde.init_matrix, cde.init_bias, time, by_channel,
            cde.vf_B[:, 0], cde.vf_B[:, 1:], mix.weight, mix.bias, out.weight, out.bias,
            model.norm.weight, model.norm.bias,
        ]  # fmt: skip

    def ours_of(model):
        cde, mix, out = model.cde, model.mix, model.out
        return [
            model.embedding, cde.init_matrix, cde.init_bias, cde.A_time, cde.A, cde.B_time,
            cde.B, mix.weight, mix.bias, out.weight, out.bias, model.norm.weight, model.norm.bias,
        ]  # fmt: skip

    ours = eqx.tree_at(ours_of, A5LinearCDE(60, 8, key=jr.PRNGKey(0)), in_our_form(theirs))
    keys = jr.split(jr.PRNGKey(3), 5)

    def their_outputs(model):
        return jax.vmap(model, in_axes=(0, None, 0))(tokens, False, keys)

    def their_loss(model):
        # Without the 1e-10 that the released loss adds to every probability.
        chosen = jnp.take_along_axis(their_outputs(model), targets[..., None].astype(int), -1)
        return -jnp.mean(jnp.log(chosen))

    outputs = jax.nn.softmax(eqx.filter_jit(ours)(tokens))
    assert_close(outputs, eqx.filter_jit(their_outputs)(theirs), "outputs")
    mine = eqx.filter_jit(eqx.filter_grad(mean_cross_entropy))(
        ours, tokens, targets, 0.0, jr.key(0)
    )
    gradient = eqx.filter_jit(eqx.filter_grad(their_loss))(theirs)
    for i, pair in enumerate(zip(ours_of(mine), in_our_form(gradient), strict=True)):
        assert_close(*pair, f"gradient {i}")
