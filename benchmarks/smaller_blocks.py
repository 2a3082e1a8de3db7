"""What trained Linear CDEs know whose blocks are smaller than theory asks (docs/theory.md, 4).

Of each run of the theory's groups that is done with a block size below the largest, the trained
model is taken from the checkpoints of the results folder and answers fresh words at the last
position. Beside its accuracy: how often the answer is in the right coset of a normal subgroup K, so
that what is wrong is an element of K; and the accuracy by a property of words that an explanation
would have it depend on. Nothing is timed. Progress on standard error; standard output is one JSON
object.

    python benchmarks/smaller_blocks.py [--results-dir DIR] [--words 8000]
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from data_dir.finite_groups import Group, group
from experiments import theory
from experiments.lcde_a5 import model_of
from experiments.lcde_training import fast_states, with_leaves
from experiments.schema import load_config
from experiments.theory.training import a5_config, random_words
from experiments.training_loop import checkpoint_config
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.machine import describe_machine
from harness.paths import CONFIG_FOLDER, RESULTS_DIR
from harness.records import Run, Status, run_state
from linear_cde import A5LinearCDE

TAG = 37  # of these words' random numbers
BATCH = 1000
MODEL = "model."


def power(symbols: Group, element: int, exponent: int) -> int:
    """An element multiplied by itself."""
    found = symbols.identity
    for _ in range(exponent):
        found = int(symbols.products[found, element])
    return found


def normal_subgroup(symbols: Group) -> set[int]:
    """K: the even numbers of Z60, even permutations of S5, four-group of A4xZ5; A5 itself."""
    squares = {power(symbols, element, 2) for element in range(symbols.order)}
    match symbols.name:
        case "Z60":
            return squares
        case "A4xZ5":
            return {e for e in range(symbols.order) if power(symbols, e, 2) == symbols.identity}
    closed = squares  # those of A5 and S5 generate the even permutations
    while (more := {int(symbols.products[a, b]) for a in closed for b in closed}) != closed:
        closed = more
    return closed


def word_property(symbols: Group, tokens: np.ndarray) -> tuple[str, np.ndarray] | None:
    """A property of each word, and its name."""
    if symbols.name == "Z60":
        sums = tokens.astype(int).sum(axis=1)
        return "deviations of the sum from its mean", np.abs(sums - sums.mean()) // sums.std()
    if symbols.name != "A4xZ5":
        return None
    third = next(e for e in range(60) if power(symbols, e, 3) == symbols.identity != e)
    fifth = next(e for e in range(60) if power(symbols, e, 5) == symbols.identity != e)
    complement = {
        int(symbols.products[power(symbols, third, i), power(symbols, fifth, j)])
        for i in range(3)
        for j in range(5)
    }
    outside = np.array([element not in complement for element in range(60)])
    return "tokens outside a complement of K", outside[tokens].sum(axis=1)


def trained_model(run: Run) -> A5LinearCDE:
    """The model that a run ended with. Raises: FileNotFoundError, where its state is not kept."""
    kept = Checkpoints(checkpoint_folder(run), checkpoint_config(run.config, {})).kept()
    if kept is None:
        raise FileNotFoundError(f"{run.label}: no state in {checkpoint_folder(run)}")
    arrays = {n.removeprefix(MODEL): x for n, x in kept.arrays.items() if n.startswith(MODEL)}
    settings = {**a5_config(run.config).identity(), "length": run.config["length"]}
    return with_leaves(model_of(settings, jr.key(0)), arrays)


@eqx.filter_jit
def answers(model: A5LinearCDE, tokens: np.ndarray) -> np.ndarray:
    """The element that a model says at the last position of each word."""
    states = fast_states(model, tokens)[:, -1:]
    logits = model.logits(states, model.embedding[tokens[:, -1:]], 0.0, None)
    return jnp.argmax(logits[:, 0], axis=-1)


def measure(run: Run, words: int) -> dict:
    """Accuracy, that of the coset of K, and by a property of words."""
    symbols = group(run.config["group"])
    batch = random_words(symbols, words, run.config["length"], TAG, (run.config["run"],))
    answer = partial(answers, trained_model(run))
    parts = [answer(batch.tokens[i : i + BATCH]) for i in range(0, words, BATCH)]
    found, right = np.concatenate(parts), batch.targets[:, -1]
    inverse = np.argmax(symbols.products == symbols.identity, axis=1)
    in_K = np.isin(np.arange(symbols.order), list(normal_subgroup(symbols)))
    result = {
        "accuracy": float(np.mean(found == right)),
        "right coset": float(np.mean(in_K[symbols.products[found, inverse[right]]])),
        "order of K": int(in_K.sum()),
    }
    if named := word_property(symbols, batch.tokens):
        name, values = named
        result[f"accuracy, words by {name}"] = {
            int(x): [float(np.mean((found == right)[values == x])), int(np.sum(values == x))]
            for x in np.unique(values)
        }
    return result


def main() -> None:
    """Measure every such run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR)
    parser.add_argument("--words", type=int, default=8000, help="fresh words for each run")
    arguments = parser.parse_args()
    config = load_config(theory.Config, CONFIG_FOLDER / "theory.yaml", {})
    config = config.model_copy(update={"parts": ["groups"]})
    found = {}
    for run in theory.plan(config, arguments.results_dir):
        known = config.trained_groups.get(run.config.get("group"))
        if run.config["kind"] != "trained" or run.config["block_size"] == max(known.block_sizes):
            continue
        if run_state(run).status is Status.DONE:
            found[run.label] = measure(run, arguments.words)
            print(run.label, found[run.label]["accuracy"], file=sys.stderr, flush=True)
    print(json.dumps({"words": arguments.words, "machine": describe_machine(), "runs": found}))


if __name__ == "__main__":
    main()
