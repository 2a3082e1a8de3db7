"""What the models are like that `-e theory` has trained, for docs/theory.md, section 4.

They are taken from the checkpoints of a results folder, and answer fresh words. Nothing is timed.

Groups, with blocks below the largest size: how often the answer at the last position is right; how
often it is in the right coset of a normal subgroup K, so that what is wrong is an element of K; and
the accuracy by a property of words that an explanation would have it depend on.
Lengths: the first position that is right in less than 0.99 of the words, as the model is and with
its layer norm in float64; and the first at which that norm's variance, in float32, is not finite in
more than 0.01 of them.

Progress on standard error; standard output is one JSON object.

    python run_experiment.py -m LCDE -e theory --set 'parts=[groups, lengths]' --results-dir DIR
    python benchmarks/theory_models.py --results-dir DIR
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from data_dir.finite_groups import Group, group
from experiments import theory
from experiments.lcde_a5 import model_of
from experiments.lcde_training import Batch, accuracy_by_position, fast_states, with_leaves
from experiments.schema import load_config
from experiments.theory.training import a5_settings, random_words
from experiments.training_loop import checkpoint_config
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.machine import describe_machine
from harness.paths import CONFIG_FOLDER, RESULTS_DIR
from harness.records import Run, Status, run_state
from kernels.token_cde import matmul
from linear_cde import A5LinearCDE

TAG = 37  # of these words' random numbers
GROUP_WORDS, LENGTH_WORDS, BATCH = 40_000, 200, 50
SUMS = [(m, c) for m in (3, 4, 5, 15) for c in range(1, (m + 1) // 2) if math.gcd(m, c) == 1]
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


def by_sums(symbols: Group, tokens: np.ndarray, found: np.ndarray, right: np.ndarray) -> dict:
    """Z60: residues of the answer, where a sum over the word is within 3 deviations, and beyond.

    The sum is of c x modulo m, from about -m/2 to m/2, over the tokens x: from it the answer modulo
    m could be read. [accuracy modulo m within, beyond, how many words are beyond]
    """
    result = {}
    for m, c in SUMS:
        sums = np.sum((c * tokens.astype(int) + m // 2) % m - m // 2, axis=1)
        beyond = np.abs(sums - sums.mean()) > 3 * sums.std()
        same = found.astype(int) % m == right % m
        within = float(np.mean(same[~beyond]))
        result[f"modulo {m}, c = {c}"] = [within, float(np.mean(same[beyond])), int(beyond.sum())]
    return result


def by_tokens(symbols: Group, tokens: np.ndarray, found: np.ndarray, right: np.ndarray) -> dict:
    """A4xZ5: [accuracy, how many words], by the number of tokens with a part in K.

    That part is what is left of a token beside the complement of K that two elements generate.
    """
    third = next(e for e in range(60) if power(symbols, e, 3) == symbols.identity != e)
    fifth = next(e for e in range(60) if power(symbols, e, 5) == symbols.identity != e)
    complement = {
        int(symbols.products[power(symbols, third, i), power(symbols, fifth, j)])
        for i in range(3)
        for j in range(5)
    }
    outside = np.array([element not in complement for element in range(60)])
    counts = outside[tokens].sum(axis=1)
    same = found == right
    return {
        f"{x} tokens in K": [float(np.mean(same[counts == x])), int(np.sum(counts == x))]
        for x in np.unique(counts)
    }


PROPERTIES = {"Z60": by_sums, "A4xZ5": by_tokens}


def trained_model(run: Run) -> A5LinearCDE:
    """The model that a run ended with. Raises: FileNotFoundError, where its state is not kept."""
    kept = Checkpoints(checkpoint_folder(run), checkpoint_config(run.config, {})).kept()
    if kept is None:
        raise FileNotFoundError(
            f"{run.label}: {checkpoint_folder(run)} holds no state; the command that did the run "
            "keeps it there, in another --results-dir too"
        )
    arrays = {n.removeprefix(MODEL): x for n, x in kept.arrays.items() if n.startswith(MODEL)}
    return with_leaves(model_of(a5_settings(run.config), jr.key(0)), arrays)


def fresh_words(run: Run, count: int, length: int) -> tuple[Group, Batch]:
    """Words that no run has seen in training or test but by chance."""
    symbols = group(run.config["group"])
    return symbols, random_words(symbols, count, length, TAG, (run.config["run"],))


def parts_of(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """As many sequences at a time as memory allows at any length."""
    return (tokens[i : i + BATCH] for i in range(0, len(tokens), BATCH))


@eqx.filter_jit
def answers(model: A5LinearCDE, tokens: np.ndarray) -> np.ndarray:
    """The element that a model says at the last position of each word."""
    states = fast_states(model, tokens)[:, -1:]
    logits = model.logits(states, model.embedding[tokens[:, -1:]], 0.0, None)
    return jnp.argmax(logits[:, 0], axis=-1)


def measure_group(run: Run) -> dict:
    """Accuracy, that of the coset of K, and by a property of words."""
    symbols, batch = fresh_words(run, GROUP_WORDS, run.config["length"])
    answer = partial(answers, trained_model(run))
    found, right = np.concatenate([answer(x) for x in parts_of(batch.tokens)]), batch.targets[:, -1]
    inverse = np.argmax(symbols.products == symbols.identity, axis=1)
    in_K = np.isin(np.arange(symbols.order), list(normal_subgroup(symbols)))
    result = {
        "accuracy": float(np.mean(found == right)),
        "right coset": float(np.mean(in_K[symbols.products[found, inverse[right]]])),
        "order of K": int(in_K.sum()),
    }
    if symbols.name in PROPERTIES:
        result |= PROPERTIES[symbols.name](symbols, batch.tokens, found, right)
    return result


@eqx.filter_jit
def before_the_norm(model: A5LinearCDE, tokens: np.ndarray) -> np.ndarray:
    """(b, L, H): what stands between the states and the layer norm."""
    states, embedded = fast_states(model, tokens), model.embedding[tokens]
    return jax.nn.relu(matmul(states, model.mix.weight.T) + model.mix.bias) + embedded


def answers_of_wide_norm(model: A5LinearCDE, hidden: np.ndarray) -> np.ndarray:
    """(b, L): the elements that the model says where the layer norm is computed in float64."""
    wide = hidden.astype(np.float64)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide /= np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + model.norm.eps)
    weight, bias, out = map(np.asarray, (model.norm.weight, model.norm.bias, model.out.weight))
    return np.argmax((wide * weight + bias) @ out.T + np.asarray(model.out.bias), axis=-1)


@np.errstate(all="ignore")  # what overflows is what is measured
def measure_lengths(run: Run) -> dict:
    """Where the accuracy ends, where the variance is no longer finite, and with a wider norm."""
    _, batch = fresh_words(run, LENGTH_WORDS, run.config["test_length"])
    model, finite, wide = trained_model(run), [], []
    for tokens in parts_of(batch.tokens):
        hidden = np.asarray(before_the_norm(model, tokens))
        finite.append(np.isfinite(np.var(hidden, axis=-1)))
        wide.append(answers_of_wide_norm(model, hidden))
    right = {
        "": accuracy_by_position(model, batch, BATCH),
        ", layer norm in float64": np.mean(np.concatenate(wide) == batch.targets, axis=0),
    }
    found = {f"first right in less than 0.99{how}": first(x < 0.99) for how, x in right.items()}
    beyond = np.mean(~np.concatenate(finite), axis=0) > 0.01
    return {**found, "first with a variance that is not finite in more than 0.01": first(beyond)}


def first(condition: np.ndarray) -> int | None:
    """The first position, from 1, where it holds."""
    return int(np.argmax(condition)) + 1 if condition.any() else None


def main() -> None:
    """Measure every such run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR)
    arguments = parser.parse_args()
    config = load_config(theory.Config, CONFIG_FOLDER / "theory.yaml", {})
    config = config.model_copy(update={"parts": ["groups", "lengths"]})
    found = {}
    for run in theory.plan(config, arguments.results_dir):
        kind = run.config["kind"]
        smaller = kind == "trained" and run.config["block_size"] != max(
            config.trained_groups[run.config["group"]].block_sizes
        )
        if (smaller or kind == "lengths") and run_state(run).status is Status.DONE:
            try:
                found[run.label] = measure_group(run) if smaller else measure_lengths(run)
            except FileNotFoundError as error:
                parser.error(str(error))
            print(run.label, found[run.label], file=sys.stderr, flush=True)
    if not found:
        parser.error(f"{arguments.results_dir} has no trained run of -e theory that is done")
    words = {"groups": GROUP_WORDS, "lengths": LENGTH_WORDS}
    print(json.dumps({"words": words, "machine": describe_machine(), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
