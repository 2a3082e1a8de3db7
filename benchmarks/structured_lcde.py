"""A structured Linear CDE on A5 against torch-slices: a training step and an evaluation.

Both sides are the paper's block for words around a Linear CDE of the same parameters, H = 256,
L = 20, with one Euler step of 1/20 a token and no time channel; that they compute the same is
checked first, on sequences whose first token stands twice, since torch-slices moves at the first
one too. A step is one AdamW update on 32 sequences and one on 3 of length 2, with dropout. Ours is
the form that the experiment trains; *recurrent* and *parallel* are those of torch-slices' SLiCE. In
one process, in turn, on the same cores, medians; the peer evaluates fewer sequences, and both times
are given for 1,000. Run it on an otherwise idle machine. The last line is one JSON object.

    pip install -e '.[jax,torch,benchmarks]'
    python benchmarks/structured_lcde.py [--sizes blocks dense] [--repeats 5] [--threads 2] [--tiny]
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import alternate, medians, rounded
from data_dir.finite_groups import group
from harness.machine import available_cores, describe_machine, package_versions

A5 = group("A5")
LENGTH, BATCH, SHORT_BATCH, DROPOUT, EVAL_BATCH = 20, 32, 3, 0.1, 500
ADAMW = {"lr": 2e-4, "weight_decay": 0.01}
PACKAGES = ("jax", "equinox", "optax", "torch", "torch-slices")


@dataclass(frozen=True)
class Size:
    """Width, block size (H: dense), forms of the peer, sequences that each side evaluates."""

    H: int
    k: int
    forms: tuple[str, ...]
    evaluated: int
    peer_evaluated: int


SIZES = {
    "blocks": Size(256, 4, ("recurrent", "parallel"), 20_000, 1000),
    "dense": Size(256, 256, ("recurrent",), 20_000, 32),
}
TINY_SIZES = {
    "blocks": Size(16, 4, ("recurrent", "parallel"), 200, 50),
    "dense": Size(16, 16, ("recurrent",), 200, 50),
}


class Peer(torch.nn.Module):
    """The paper's block for words around torch-slices' Linear CDE, with given parameters."""

    def __init__(self, weights: object, size: Size, form: str):
        """weights: `kernels.token_cde.BlockWeights`; form: recurrent or parallel."""
        from slices import SLiCE

        super().__init__()
        vocabulary, width = weights.embedding.shape
        self.cde = SLiCE(
            width,
            size.H,
            block_size=size.k,
            scale=1 / LENGTH,
            input_dependent_init=True,
            use_parallel=form == "parallel",
            path_mode="increments",
        )
        self.embedding = torch.nn.Parameter(torch.tensor(weights.embedding))
        self.mix = torch.nn.Linear(size.H, width)
        self.norm = torch.nn.LayerNorm(width, eps=weights.norm_eps)
        self.out = torch.nn.Linear(width, vocabulary)
        self.dropout = torch.nn.Dropout(DROPOUT)
        no_time = np.zeros((size.H * size.k, 1), np.float32)
        values = {
            self.cde.vf_A.weight: np.hstack([no_time, weights.A.reshape(-1, width)]),
            self.cde.vf_B.weight: np.hstack([no_time[: size.H], weights.B]),
            self.cde.init.weight: weights.init_matrix,
            self.cde.init.bias: weights.init_bias,
            self.mix.weight: weights.mix_weight,
            self.mix.bias: weights.mix_bias,
            self.out.weight: weights.out_weight,
            self.out.bias: weights.out_bias,
        }
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(torch.tensor(value))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (b, L, V)."""
        embedded = self.embedding[tokens]
        hidden = torch.relu(self.mix(self.dropout(self.cde(embedded))))
        return self.out(self.norm(self.dropout(hidden) + embedded))


def draw(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random sequences of A5 and their running products, uint8 (count, length) each."""
    tokens = np.random.default_rng(count).integers(0, A5.order, (count, length), dtype=np.uint8)
    return tokens, A5.running_products(tokens)


def sides_of(size: Size) -> tuple[object, dict[str, Peer]]:
    """Our model, and the peer in each of its forms. Raises: ArithmeticError, where they part."""
    import jax

    from experiments.lcde_training import block_weights
    from linear_cde import A5LinearCDE

    form = {"block_size": None if size.k == size.H else size.k, "time_channel": False}
    model = A5LinearCDE(A5.order, size.H, key=jax.random.key(0), step_length=LENGTH, **form)
    peers = {name: Peer(block_weights(model), size, name) for name in size.forms}
    tokens, _ = draw(4, LENGTH)
    expected = np.asarray(model(np.hstack([tokens[:, :1], tokens])))[:, 1:]
    # What follows the CDE sees its own token: both sides at places 2 to L.
    for name, peer in peers.items():
        with torch.no_grad():
            found = peer.eval()(torch.tensor(tokens, dtype=torch.long)).numpy()
        difference = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
        if not difference < 1e-3:
            raise ArithmeticError(f"torch-slices ({name}) differs from ours by {difference:.1e}")
    return model, peers


def our_step(model: object) -> Callable[[], None]:
    """A call that trains our model by one step."""
    import equinox as eqx
    import jax
    import optax

    from experiments.lcde_training import Batch, TrainState, train_step

    optimizer = optax.adamw(ADAMW["lr"], weight_decay=ADAMW["weight_decay"])
    model = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, model)
    state = TrainState(model, optimizer.init(eqx.filter(model, eqx.is_array)))
    batches = [Batch(*draw(BATCH, LENGTH)), Batch(*draw(SHORT_BATCH, 2))]

    def step() -> None:
        nonlocal state
        state, loss = train_step(state, batches, jax.random.key(0), optimizer, DROPOUT)
        jax.block_until_ready((state.model.out.weight, loss))

    return step


def peer_step(peer: Peer) -> Callable[[], None]:
    """A call that trains the peer by one step."""
    optimizer = torch.optim.AdamW(peer.parameters(), **ADAMW)
    batches = [draw(BATCH, LENGTH), draw(SHORT_BATCH, 2)]
    batches = [[torch.tensor(part, dtype=torch.long) for part in batch] for batch in batches]

    def step() -> None:
        peer.train()
        for tokens, targets in batches:
            optimizer.zero_grad()
            logits = peer(tokens)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            optimizer.step()

    return step


def peer_evaluation(peer: Peer, count: int) -> Callable[[], float]:
    """A call that gives the peer's accuracy over `count` sequences."""
    tokens, targets = (torch.tensor(part, dtype=torch.long) for part in draw(count, LENGTH))

    @torch.no_grad()
    def evaluate() -> float:
        peer.eval()
        parts = zip(tokens.split(EVAL_BATCH), targets.split(EVAL_BATCH), strict=True)
        return sum(int((peer(x).argmax(-1) == y).sum()) for x, y in parts) / targets.numel()

    return evaluate


def measure(size: Size, repeats: int) -> dict[str, object]:
    """All figures of one size: seconds a step, and an evaluation of 1,000 sequences."""
    from experiments.lcde_training import Batch, accuracy

    model, peers = sides_of(size)
    data = Batch(*draw(size.evaluated, LENGTH))
    evaluations = {name: peer_evaluation(p, size.peer_evaluated) for name, p in peers.items()}
    evaluations["ours"] = lambda: accuracy(model, data, EVAL_BATCH)
    evaluated = medians(alternate(evaluations, repeats))
    scale = {name: 1000 / size.peer_evaluated for name in peers} | {"ours": 1000 / size.evaluated}
    evaluated = {name: seconds * scale[name] for name, seconds in evaluated.items()}
    steps = {"ours": our_step(model)} | {name: peer_step(peer) for name, peer in peers.items()}
    taken = alternate(steps, repeats)
    stepped = medians(taken)
    return {
        "H": size.H,
        "k": size.k,
        "L": LENGTH,
        "step_s": {name: rounded(s) for name, s in stepped.items()},
        "step_speedup": {name: rounded(stepped[name] / stepped["ours"]) for name in peers},
        "step_all_s": {name: [rounded(s) for s in values] for name, values in taken.items()},
        "eval_1000_s": {name: rounded(s) for name, s in evaluated.items()},
        "eval_speedup": {name: rounded(evaluated[name] / evaluated["ours"]) for name in peers},
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or not 1 <= arguments.threads <= available_cores():
        parser.error(f"--repeats is at least 1, --threads 1 to {available_cores()}")
    # JAX takes a thread a core it may run on, and reads that when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(arguments.threads)

    from experiments.devices import jax_numbers
    from kernels.allocator import keep_freed_memory

    keep_freed_memory()
    chosen = TINY_SIZES if arguments.tiny else SIZES
    with jax_numbers():
        measured = {name: measure(chosen[name], arguments.repeats) for name in arguments.sizes}
    result = {
        "benchmark": "structured Linear CDE on A5 against torch-slices",
        **measured,
        "threads": arguments.threads,
        "machine": {**describe_machine(), "packages": package_versions(PACKAGES)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
