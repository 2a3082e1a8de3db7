"""Each part of `-e theory` against an oracle of its own, and the commands as a user runs them."""

import json
import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest

import plot_theory
from data_dir.finite_groups import GROUP_NAMES, group
from data_dir.representations import representation
from experiments import theory
from experiments.schema import load_config
from experiments.theory.antisymmetry import (
    antisymmetric_terms,
    invisible_to_diagonal,
    lattice_walks,
    standard_polynomial,
    volume,
)
from experiments.theory.groups import exact_margin, exact_states, readout, smallest_margin
from experiments.theory.kernel import (
    kernel_by_equation,
    kernel_by_signature,
    random_states,
    signature_kernel,
)
from experiments.theory.training import (
    TEST,
    TRAINING,
    VALIDATION,
    a5_settings,
    all_pairs,
    random_words,
)
from harness.errors import ConfigError
from harness.paths import CONFIG_FOLDER, RESULTS_DIR, ROOT, THEORY_RESULTS
from harness.records import read_record
from recorded import write_record
from run_experiment import main


def sign(order) -> int:
    return round(np.linalg.det(np.eye(len(order))[list(order)]))


def config_of(**changes) -> theory.Config:
    overrides = {key: (value, key) for key, value in changes.items()}
    return load_config(theory.Config, CONFIG_FOLDER / "theory.yaml", overrides)


@pytest.mark.parametrize(("name", "order"), [("A5", 60), ("S5", 60), ("Z60", 30), ("A4xZ5", 4)])
def test_what_smaller_blocks_do_not_see_is_a_normal_subgroup(name, order):
    pytest.importorskip("jax", reason="the benchmark needs JAX")
    from benchmarks.theory_models import normal_subgroup

    symbols, found = group(name), normal_subgroup(group(name))
    inverses = np.argmax(symbols.products == symbols.identity, axis=1)
    conjugates = symbols.products[symbols.products[:, sorted(found)], inverses[:, None]]
    assert len(found) == order and set(conjugates.ravel().tolist()) == found
    assert {int(symbols.products[a, b]) for a, b in product(found, repeat=2)} == found


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_a_representation_multiplies_as_the_group_and_tells_all_elements_apart(name):
    symbols, blocks = group(name), representation(name)
    for block in blocks:
        identities = np.broadcast_to(np.eye(len(block[0])), block.shape)
        np.testing.assert_allclose(block @ np.swapaxes(block, 1, 2), identities, atol=1e-13)
        for a in range(symbols.order):
            np.testing.assert_allclose(block[a] @ block, block[symbols.products[a]], atol=1e-13)
    rows = readout(blocks)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    assert np.min(distances + 9 * np.eye(symbols.order)) > 0.1


def test_the_representations_are_the_smallest_and_their_margins_those_of_their_characters():
    sizes = {name: [len(block[0]) for block in representation(name)] for name in GROUP_NAMES}
    assert sizes == {"A5": [3], "S5": [4], "Z60": [2], "A4xZ5": [3, 2]}
    cosine = {degrees: 2 * np.cos(np.radians(degrees)) for degrees in (6, 72)}
    margins = {"A5": 3 - (1 + cosine[72]), "S5": 4 - 2, "Z60": 2 - cosine[6]}
    margins["A4xZ5"] = 2 - cosine[72]
    found = {name: exact_margin(representation(name)) for name in GROUP_NAMES}
    assert found == pytest.approx(margins)


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_the_untrained_scan_multiplies_from_the_left_and_every_position_is_right(name, rng, jax):
    symbols, blocks = group(name), representation(name)
    tokens = rng.integers(symbols.order, size=60)
    states = exact_states(blocks, tokens)
    product_of_all = [np.linalg.multi_dot(block[tokens]) for block in blocks]
    last = np.concatenate([matrix.ravel() for matrix in product_of_all])
    np.testing.assert_allclose(states[-1], last, atol=1e-4)
    right = symbols.running_products(tokens[None])[0]
    margins = smallest_margin(states, right, readout(blocks))
    assert margins == pytest.approx(exact_margin(blocks), abs=2e-3)
    wrong = symbols.products[right, tokens[0]] if tokens[0] != symbols.identity else right - 1
    assert np.max(smallest_margin(states, wrong, readout(blocks))) < 0


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_the_standard_polynomial_is_the_signed_sum_and_zero_from_2k_on(k, m, rng):
    matrices = rng.integers(1, 9, (m, k, k), endpoint=True)
    expected = sum(
        sign(order) * np.linalg.multi_dot([np.eye(k, dtype=int), *matrices[list(order)]])
        for order in permutations(range(m))
    )
    found = standard_polynomial(matrices)
    assert (found == expected).all()
    assert (found == 0).all() == (m >= 2 * k)


def test_whole_numbers_beyond_64_bits_stay_exact():
    matrices = np.full((2, 2, 2), 2**62) * np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]]])
    assert standard_polynomial(matrices)[0, 1] == 2**124


@pytest.mark.parametrize("level", [2, 3, 4])
def test_antisymmetric_terms_are_signed_sums_of_signature_terms(level, jax):
    signax = pytest.importorskip("signax")
    walks = lattice_walks(6, 9, level, seed=3)
    terms = jax.vmap(lambda path: signax.signature(path, level, flatten=False)[-1])(walks)
    expected = sum(
        sign(order) * np.asarray(terms)[:, *order] for order in permutations(range(level))
    )
    np.testing.assert_allclose(antisymmetric_terms(walks), expected, atol=1e-6)


def test_the_volume_is_the_signatures_term(jax):
    signax = pytest.importorskip("signax")
    walks = lattice_walks(6, 9, 3, seed=4)
    expected = jax.vmap(lambda path: signax.signature(path, 3, flatten=False)[-1][0, 1, 2])(walks)
    increments = np.diff(walks.astype(np.float64), axis=1)
    found = volume(*np.moveaxis(increments, (2, 1), (0, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_floor_is_what_all_functions_of_the_closure_theorem_leave_of_the_volume():
    """All walks of three steps of ±1, and every function φ_j(X_1 − X_j, ΔX_j): least squares."""
    steps = np.array(list(product([-1, 1], repeat=9)), dtype=float).reshape(-1, 3, 3)
    walks = np.concatenate([np.zeros((len(steps), 1, 3)), np.cumsum(steps, axis=1)], axis=1)
    columns = []
    for j in range(3):
        seen = np.concatenate([steps[:, j + 1 :].sum(axis=1), steps[:, j]], axis=1)
        kinds, which = np.unique(seen, axis=0, return_inverse=True)
        columns.append(np.eye(len(kinds))[which.ravel()])
    features, target = np.concatenate(columns, axis=1), volume(*np.moveaxis(steps, (2, 1), (0, 1)))
    fitted = features @ np.linalg.lstsq(features, target, rcond=None)[0]
    left = np.sqrt(np.mean((target - fitted) ** 2) / np.mean(target**2))
    assert invisible_to_diagonal(walks) == pytest.approx(left)
    assert 0.3 < left < 0.9


def test_both_kernels_of_straight_lines_are_bessels_function(jax):
    special = pytest.importorskip("scipy.special")
    pytest.importorskip("signax")
    ends = np.array([[1.0, 0.5], [-0.3, 1.2], [0.7, 0.9]])
    paths = ends[:, None] * np.linspace(0, 1, 6)[:, None]
    inner = (ends @ ends.T).astype(complex)
    expected = special.iv(0, 2 * np.sqrt(inner)).real
    np.testing.assert_allclose(kernel_by_signature(paths, 10), expected, rtol=1e-5)
    np.testing.assert_allclose(kernel_by_equation(paths, 4), expected, rtol=1e-5)


def test_kernels_that_disagree_are_no_truth(rng, jax):
    pytest.importorskip("signax")
    paths = np.cumsum(rng.standard_normal((3, 8, 2)), axis=1)
    with pytest.raises(FloatingPointError, match="two sources"):
        signature_kernel(paths, level=2, refinement=0)


def test_random_states_move_by_matrix_exponentials(rng):
    linalg = pytest.importorskip("scipy.linalg")
    paths = np.cumsum(rng.standard_normal((2, 4, 2)), axis=1)
    states = random_states(paths, 5, np.random.default_rng(8))
    same = np.random.default_rng(8)
    fields = same.standard_normal((2, 5, 5)) / np.sqrt(5)
    start = same.standard_normal(5)
    for path, found in zip(paths, states.T, strict=True):
        state = start
        for step in np.diff(path, axis=0):
            state = linalg.expm(np.tensordot(step, fields, axes=1)) @ state
        np.testing.assert_allclose(found, state, rtol=1e-10)


def test_products_of_random_states_are_the_signature_kernel_in_the_mean(rng):
    paths = 0.5 * np.cumsum(rng.standard_normal((2, 5, 2)), axis=1)
    kernel = kernel_by_equation(paths, 4)
    draws = [random_states(paths, 64, np.random.default_rng(i)) for i in range(400)]
    products = np.mean([states.T @ states / 64 for states in draws], axis=0)
    np.testing.assert_allclose(products, kernel, rtol=0.1)


def test_what_two_parts_measure_alike_is_one_run(tmp_path):
    alike = {"structure_hidden_dim": 256, "structure_block_sizes": [2]}
    both = theory.plan(config_of(parts=["width", "structure"], **alike), tmp_path)
    alone = [
        theory.plan(config_of(parts=[part], **alike), tmp_path) for part in ("width", "structure")
    ]
    assert len(both) == len({run.files for part in alone for run in part}) < sum(map(len, alone))
    assert {run.files: run.config for run in both} == {
        run.files: run.config for part in alone for run in part
    }


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_dims": [8, 10], "block_sizes": [4]}, "block_sizes"),
        ({"structure_hidden_dim": 100}, "structure_block_sizes"),
        ({"antisymmetric_hidden_dim": 100}, "antisymmetric_block_sizes"),
    ],
)
def test_blocks_that_do_not_fill_a_width_are_refused(changes, key):
    with pytest.raises(ConfigError, match=rf"{key}: blocks of \d+ do not fill a width of \d+"):
        config_of(**changes)


def test_a_wrong_key_within_a_key_is_named():
    chosen = {"length": 12, "hidden_dim": 8, "learning_rate": 0.01, "block_size": [2]}
    with pytest.raises(ConfigError) as error:
        config_of(trained_groups={"A5": chosen})
    assert "the key 'trained_groups.A5.block_sizes' is missing" in str(error.value)
    assert "unknown key 'trained_groups.A5.block_size'" in str(error.value)


@pytest.mark.parametrize(("block_size", "blocks"), [(3, 3), ("dense", None)])
def test_a_trained_run_is_the_a5_experiments_model_with_a_seed_of_its_own(block_size, blocks):
    changes = {"lengths_block_sizes": [block_size], "parts": ["lengths"], "runs": 2}
    first, second = (
        a5_settings(run.config) for run in theory.plan(config_of(**changes), RESULTS_DIR)
    )
    found = first.get("block_size"), first["step"], first["time_channel"]
    assert found == (blocks, "fixed", False)
    assert first["hidden_dim"] == 240
    assert second == {**first, "run": 1, "seed": first["seed"] + 1}


def test_words_are_drawn_for_their_purpose_and_run_and_labelled_by_their_products(jax):
    symbols = group("S5")
    drawn = [
        random_words(symbols, 40, 6, tag, (1, run))
        for tag in (TRAINING, VALIDATION, TEST)
        for run in (0, 1)
    ]
    assert len({batch.tokens.tobytes() for batch in drawn}) == 6
    for batch in [*drawn, all_pairs(symbols)]:
        for tokens, targets in zip(batch.tokens[:5], batch.targets[:5], strict=True):
            permutation = np.arange(5)
            for token, target in zip(tokens, targets, strict=True):
                permutation = permutation[symbols.elements[token]]
                assert (symbols.elements[target] == permutation).all()
    assert len(np.unique(all_pairs(symbols).tokens, axis=0)) == 120**2


def write_kernel(results_dir, state_dim, errors):
    folder = results_dir / THEORY_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"kernel_{state_dim}.npy"
    np.save(path, np.array(errors))
    write_record([path], {"kind": "kernel", "state_dim": state_dim})
    return path


def test_a_part_alone_is_drawn_and_the_others_are_said_to_be_missing(tmp_path, capsys):
    for state_dim in (16, 64, 256):
        write_kernel(tmp_path, state_dim, np.array([1.0, 1.0]) / np.sqrt(state_dim))
    assert plot_theory.main(["--results-dir", str(tmp_path), "--strict"]) == 0
    output = capsys.readouterr().out
    assert "signature kernel: error as N^-0.50" in output
    left_out = [line for line in output.splitlines() if line.startswith("left out")]
    assert left_out == [
        f"left out, no usable results: {p}" for p in ("width", "structure", "groups")
    ]
    assert sorted(p.name for p in tmp_path.glob("*.p*")) == ["theory.pdf", "theory.png"]


@pytest.mark.parametrize(
    "odd", ["another file", "no record", "another kind", "a list", "no size", "a link"]
)
def test_what_is_no_result_of_a_record_is_named_and_strict_fails(tmp_path, capsys, odd):
    write_kernel(tmp_path, 16, [0.5, 0.6])
    broken = write_kernel(tmp_path, 32, [0.4, 0.5])
    if odd == "another file":
        np.save(broken, np.array([0.1]))
    elif odd == "a link":
        record = broken.with_suffix(".json")
        record.unlink()
        record.symlink_to(tmp_path / "gone")
    elif odd == "no record":
        broken.with_suffix(".json").unlink()
    elif odd == "no size":
        write_record([broken], {"kind": "kernel"})
    else:
        kind = ["kernel"] if odd == "a list" else "word"
        write_record([broken], {"kind": kind, "state_dim": 32})
    assert plot_theory.main(["--results-dir", str(tmp_path), "--strict"]) == 1
    output = capsys.readouterr()
    assert f"warning: skipped {broken.with_suffix('')}" in output.err
    assert "32" not in output.out.replace(str(tmp_path), "")  # which may have it


def test_fields_of_one_width_are_no_line_of_the_width_panel(tmp_path, capsys):
    folder = tmp_path / THEORY_RESULTS
    folder.mkdir()
    for size, error in ((1, 0.04), (2, 0.01)):
        config = {"target": "volume", "hidden_dim": 240, "block_size": size, "run": 0}
        path = folder / f"fields_volume_240_{size}_run_0.npy"
        np.save(path, np.array([error, 0.0585]))
        write_record([path], {"kind": "fields", **config})
    assert plot_theory.main(["--results-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "left out, no usable results: width" in output
    assert "left out, no usable results: structure" not in output


def test_without_results_there_is_a_message_and_no_picture(tmp_path, capsys):
    assert plot_theory.main(["--results-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"nothing to draw: no theory results in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


def test_another_models_theory_is_refused_with_what_there_is(capsys):
    assert main(["-m", "SequenceModel", "-e", "theory"]) == 2
    assert "-e theory: not an experiment of -m SequenceModel (allowed: toy, A5)" in (
        capsys.readouterr().err
    )


# Few shapes, since each is compiled.
TINY = {
    "runs": 1,
    "num_paths": 20,
    "paper_data": False,
    "hidden_dims": [4, 8],
    "block_sizes": [2],
    "structure_hidden_dim": 4,
    "structure_block_sizes": [1, 2],
    "antisymmetric_levels": [3],
    "antisymmetric_hidden_dim": 4,
    "antisymmetric_block_sizes": [2],
    "antisymmetric_paths": 20,
    "antisymmetric_steps": 7,
    "algebra_block_sizes": [1, 2],
    "kernel_state_dims": [4, 8],
    "kernel_draws": 2,
    "kernel_paths": 2,
    "kernel_scale": 0.5,
    "exact_length": 30,
    "exact_sequences": 2,
    "exact_groups": ["Z60"],
    "trained_groups": {
        "Z60": {"length": 3, "hidden_dim": 4, "learning_rate": 0.01, "block_sizes": [2]}
    },
    "lengths_group": "Z60",
    "lengths_trained": 3,
    "lengths_tested": 6,
    "lengths_hidden_dim": 4,
    "lengths_block_sizes": [2],
    "lengths_max_steps": 2,
    "max_steps": 2,
    "eval_interval": 1,
    "samples": 300,
    "validation_samples": 20,
    "test_samples": 3000,  # so many that another model is right in another number
    "batch_size": 20,
}


def command(door: str, *words: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, ROOT / door, *map(str, words)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def last_accuracy(run) -> float:
    """Of the model that `theory_models` takes from a run's checkpoints, on its test words."""
    import jax

    from benchmarks import theory_models

    config = run.config
    size, seed = (config["test_samples"], config["length"]), (config["seed"], config["run"])
    words = random_words(group(config["group"]), *size, TEST, seed)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = theory_models.trained_model(run)
        answers = np.asarray(theory_models.answers(model, words.tokens))
        hidden = np.asarray(theory_models.before_the_norm(model, words.tokens))
    # Where nothing overflows a wider layer norm changes roundings, which may turn a near tie.
    wide = theory_models.answers_of_wide_norm(model, hidden)[:, -1]
    assert np.mean(wide == answers) > 0.999
    return np.mean(answers == words.targets[:, -1])


def test_all_parts_run_once_and_are_drawn_with_the_same_bytes(
    tmp_path, lattice_walks, write_toy_files, rng, jax, capsys
):
    for dim in (2, 3):
        paths = lattice_walks(20, 8, dim)
        write_toy_files(tmp_path / "data", paths, rng.uniform(-1, 1, 20).astype(np.float32))
    words = ["-m", "LCDE", "-e", "theory", "--device", "cpu", "--data-dir", tmp_path / "data"]
    words += ["--results-dir", tmp_path / "results"]
    words += [w for key, v in TINY.items() for w in ("--set", f"{key}={json.dumps(v)}")]
    done = command("run_experiment.py", *words)
    assert done.returncode == 0, done.stderr
    planned = theory.plan(config_of(**TINY), tmp_path / "results")
    assert all(read_record(run.record).config == run.config for run in planned)
    assert len(planned) == len(list((tmp_path / "results" / THEORY_RESULTS).glob("*.json")))
    assert main([str(word) for word in words]) == 0
    assert f"{len(planned)} of {len(planned)} runs are done already" in capsys.readouterr().out

    (run,) = (run for run in planned if run.config["kind"] == "trained")
    assert last_accuracy(run) == read_record(run.record).model_extra["accuracy"]

    options = ["--results-dir", str(tmp_path / "results"), "--output"]
    one, two = (tmp_path / name for name in ("one.pdf", "two.pdf"))
    drawn = command("plot_theory.py", *options, one)
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert "left out" not in drawn.stdout
    assert plot_theory.main([*options, str(two)]) == 0
    for ending in (".pdf", ".png"):
        pictures = [path.with_suffix(ending).read_bytes() for path in (one, two)]
        assert pictures[0] == pictures[1]


def test_a_measurement_that_diverges_is_named_and_the_others_are_done(tmp_path, monkeypatch):
    pytest.importorskip("jax", reason="needs the JAX environment")

    def kernel(run, data_dir):
        raise FloatingPointError("the states are not finite")

    monkeypatch.setattr("experiments.theory.parts.do_kernel", kernel)
    config = config_of(parts=["kernel", "groups"], kernel_state_dims=[4], trained_groups={})
    config = config.model_copy(update={"exact_length": 10, "exact_sequences": 1})
    runs = theory.plan(config, tmp_path)
    with pytest.raises(FloatingPointError, match=f"{runs[0].label} diverged: the states"):
        theory.run(config, runs, tmp_path, "cpu")
    assert [run.record.exists() for run in runs] == [False, *[True] * (len(runs) - 1)]
