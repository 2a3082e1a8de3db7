"""The toy data are the paper's, their labels are what they claim, and nothing else gets through."""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from data_dir import generate_toy_dataset
from data_dir.datasets import load_toy_dataset
from data_dir.generate_toy_dataset import random_walks, signature_coefficient
from data_dir.toy_fingerprints import check_fingerprint, scaled_coefficients
from harness.errors import DataError

SCRIPT = Path(generate_toy_dataset.__file__).resolve()


def tensor(*vectors: np.ndarray) -> np.ndarray:
    """Tensor product of vectors (N, d), path by path."""
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * vector.reshape(len(vector), *[1] * (product.ndim - 1), -1)
    return product


def signature_levels(paths: np.ndarray) -> list[np.ndarray]:
    """Levels 1, 2 and 3 of the signature by Chen's identity, in float64.

    A straight piece v has the signature exp(v) = 1 + v + v⊗v / 2 + v⊗v⊗v / 6 + ...
    """
    pieces = np.diff(paths.astype(np.float64), axis=1)
    first, second, third = (np.zeros(tensor(*[pieces[:, 0]] * k).shape) for k in (1, 2, 3))
    for i in range(pieces.shape[1]):
        v = pieces[:, i]
        third += (
            second[..., None] * v[:, None, None] + tensor(first, v, v) / 2 + tensor(v, v, v) / 6
        )
        second += tensor(first, v) + tensor(v, v) / 2
        first += v
    return [first, second, third]


def coefficient(paths: np.ndarray) -> np.ndarray:
    """The coefficient (1, 2) or (1, 2, 3), whichever the dimension has."""
    input_dim = paths.shape[2]
    return signature_levels(paths)[input_dim - 1][(slice(None), *range(input_dim))]


@pytest.fixture(scope="module")
def paper_data(jax, tmp_path_factory):
    """A data folder with the paper's data, made by the script as a user runs it elsewhere."""
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, SCRIPT, "--output", "toy_data"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def walks_2d(paper_data):
    return np.load(paper_data / "toy_data" / "data_2.npy")


@pytest.fixture(scope="module")
def labels_2d(paper_data):
    return np.load(paper_data / "toy_data" / "labels_2.npy")


def load(data_dir: Path, input_dim: int = 2, num_paths: int = 20, **options):
    options = {"train_fraction": 0.8, "paper_data": False} | options
    return load_toy_dataset(data_dir, input_dim, num_paths=num_paths, **options)


# The paper's data


@pytest.mark.parametrize(
    ("input_dim", "label_rms", "distinct"), [(2, 0.11195025, 100), (3, 0.058498096, 685)]
)
def test_the_script_makes_the_papers_data(paper_data, input_dim, label_rms, distinct):
    dataset = load(paper_data, input_dim, num_paths=100_000, paper_data=True)
    walks = dataset.paths * 51
    assert dataset.paths.shape == (100_000, 100, input_dim) and dataset.num_train == 80_000
    assert np.abs(walks - np.rint(walks)).max() < 1e-5
    steps = np.diff(np.rint(walks).astype(np.int64), axis=1).reshape(-1, input_dim)
    assert len(np.unique(steps @ 100 ** np.arange(input_dim))) == distinct
    validation = dataset.labels[80_000:].astype(np.float64)
    assert np.sqrt(np.mean(validation**2)) == pytest.approx(label_rms, rel=1e-7)


@pytest.mark.parametrize("input_dim", [2, 3])
def test_labels_are_scaled_signature_coefficients(paper_data, input_dim):
    dataset = load(paper_data, input_dim, num_paths=100_000)
    largest = np.argmax(np.abs(dataset.labels))
    rows = [largest, *range(0, 100_000, 20)]
    expected = coefficient(dataset.paths[rows])
    assert np.abs(dataset.labels[largest]) == 1
    np.testing.assert_allclose(dataset.labels[rows], expected / np.abs(expected[0]), atol=2e-6)


def test_the_script_leaves_nothing_but_the_four_files(paper_data):
    names = {f"{kind}_{d}.npy" for kind in ("data", "labels") for d in (2, 3)}
    assert {path.name for path in (paper_data / "toy_data").iterdir()} == names


@pytest.mark.parametrize("input_dim", [2, 3])
def test_walks_do_not_depend_on_what_jax_defaults_to(jax, input_dim):
    drawn = []
    defaults = (
        nullcontext(),
        jax.threefry_partitionable(True),
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
        jax.enable_x64(True),
    )
    for default in defaults:
        with default:
            drawn.append(random_walks(input_dim, 50, 20))
    assert drawn[0].dtype == np.float32 and np.array_equal(drawn[0], np.rint(drawn[0]))
    assert all(np.array_equal(walks, drawn[0]) for walks in drawn[1:])


@pytest.mark.parametrize("input_dim", [2, 3])
@pytest.mark.parametrize("length", [2, 3, 17])
def test_the_label_is_the_iterated_integral_computed_another_way(jax, rng, input_dim, length):
    paths = rng.normal(size=(30, length, input_dim)).astype(np.float32)
    found = signature_coefficient(paths)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, coefficient(paths), rtol=1e-4, atol=1e-4)


def test_the_label_ignores_where_a_path_starts(jax, rng):
    paths = rng.normal(size=(30, 10, 3)).astype(np.float32)
    shifted = paths + np.float32(8)
    np.testing.assert_allclose(
        signature_coefficient(shifted), signature_coefficient(paths), atol=1e-4
    )


# What is refused as not the paper's


def altered_paths() -> dict:
    def one_step(walks):
        walks[5, 50, 0] += np.float32(1 / 51)

    def last_bit(walks):
        walks[7, 30] = np.nextafter(walks[7, 30], np.float32(2))

    def another_order(walks):
        walks[[3, 4]] = walks[[4, 3]]

    def not_scaled(walks):
        walks *= 51

    def rescaled(walks):
        walks *= np.float32(0.5)

    def zero(walks):
        walks[:] = 0

    return {f.__name__: f for f in (one_step, last_bit, another_order, not_scaled, rescaled, zero)}


@pytest.mark.parametrize("alter", altered_paths().values(), ids=altered_paths())
def test_altered_paths_are_refused(walks_2d, labels_2d, alter):
    walks = walks_2d.copy()
    alter(walks)
    with pytest.raises(DataError, match="data: the walks drifted: their "):
        check_fingerprint(walks, labels_2d)


@pytest.mark.parametrize(
    ("row", "change"), [(0, 1e-5), (99_999, -3e-3), (0, 0.5), (99_999, np.nan)]
)
def test_one_altered_label_is_refused_and_named(walks_2d, labels_2d, row, change):
    labels = labels_2d.copy()
    labels[row] += np.float32(change)
    with pytest.raises(DataError, match=f"^my labels: 1 labels .* the first label {row}: "):
        check_fingerprint(walks_2d, labels, ("my data", "my labels"))


def test_labels_with_the_rounding_of_another_machine_are_accepted(walks_2d, labels_2d):
    """By exact sums, rounded once; and each the next float32 but two."""
    exact = scaled_coefficients(np.rint(walks_2d * 51)).astype(np.float32)
    assert not np.array_equal(exact, labels_2d)
    check_fingerprint(walks_2d, exact)
    check_fingerprint(walks_2d, labels_2d * np.float32(1 + 4e-7))


@pytest.mark.parametrize("input_dim", [2, 3])
def test_exact_coefficients_are_those_of_chens_identity(rng, input_dim):
    walks = np.cumsum(rng.integers(-2, 3, (700, 9, input_dim)), axis=1)
    expected = coefficient(walks)
    np.testing.assert_allclose(
        scaled_coefficients(walks), expected / np.abs(expected).max(), atol=1e-14
    )


@pytest.mark.parametrize("change", [lambda x: x * np.float32(1.001), np.negative, np.roll])
def test_altered_labels_are_refused(walks_2d, labels_2d, change):
    changed = change(labels_2d, 1) if change is np.roll else change(labels_2d)
    with pytest.raises(DataError, match=r"labels: .* labels are not those of the paths"):
        check_fingerprint(walks_2d, changed)


@pytest.mark.parametrize("change", [lambda x, y: (x[:99], y[:99]), lambda x, y: (x, y[:-1])])
def test_wrong_shapes_are_refused(walks_2d, labels_2d, change):
    with pytest.raises(DataError, match=r"(data|labels): shape .* the paper's is"):
        check_fingerprint(*change(walks_2d, labels_2d))


def test_walks_of_the_partitionable_layout_are_refused_with_the_reason(jax, labels_2d):
    with jax.threefry_partitionable(True):
        steps = jax.random.normal(jax.random.PRNGKey(1234), (100_000, 100, 2))
    walks = np.cumsum(np.rint(np.asarray(steps)), axis=1, dtype=np.float32)
    with pytest.raises(DataError, match="is 48, the paper's is 51; 48 comes from JAX's partition"):
        check_fingerprint(walks / np.abs(walks).max(), labels_2d)


def test_drifted_data_replace_nothing(tmp_path, monkeypatch, capsys):
    def drifted(input_dim: int, num_paths: int, length: int) -> np.ndarray:
        return np.ones((num_paths, length, input_dim), np.float32)

    monkeypatch.setattr(generate_toy_dataset, "random_walks", drifted)
    monkeypatch.setattr(generate_toy_dataset, "signature_coefficient", lambda x: x[:, 0, 0])
    (tmp_path / "data_2.npy").write_bytes(b"old")
    assert generate_toy_dataset.main(["--output", str(tmp_path)]) == 1
    assert "data_2.npy as generated: the walks drifted" in capsys.readouterr().err
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("data_2.npy", b"old")]


# Files


@pytest.mark.parametrize("input_dim", [2, 3])
def test_the_first_paths_are_loaded_and_split_in_order(tmp_path, rng, write_toy_files, input_dim):
    paths = rng.normal(size=(50, 7, input_dim)).astype(np.float32)
    labels = rng.normal(size=50).astype(np.float32)
    write_toy_files(tmp_path, paths, labels)
    dataset = load(tmp_path, input_dim, num_paths=30)
    assert np.array_equal(dataset.paths, paths[:30])
    assert np.array_equal(dataset.labels, labels[:30])
    assert dataset.num_train == 24


def saved(array):
    return lambda path: np.save(path, array)


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def archive(path):
    with path.open("wb") as handle:
        np.savez(handle, np.zeros(30, np.float32))


def one_nan(path):
    paths = np.load(path)
    paths[3, 2, 1] = np.nan
    np.save(path, paths)


def fewer_paths(path):
    np.save(path, np.zeros((19, 7, 2), np.float32))
    np.save(path.with_name("labels_2.npy"), np.zeros(19, np.float32))


UNREADABLE = "not a readable .npy file"
TOO_LARGE = "numbers are NaN, infinite or too large for float32"
# Each spoils one file of 30 paths of 7 points; with the words of the error.
SPOILT = {
    "truncated": ("data", cut(-10), UNREADABLE),
    "truncated header": ("labels", cut(20), UNREADABLE),
    "empty": ("data", cut(0), UNREADABLE),
    "text": ("labels", lambda path: path.write_text("0.1, 0.2"), UNREADABLE),
    "objects": ("labels", saved(np.array([{}] * 30)), UNREADABLE),
    "archive": ("labels", archive, UNREADABLE),
    "imaginary": ("labels", saved(np.zeros(30, "c8")), "dtype complex64, expected real numbers"),
    "too large": ("labels", saved(np.full(30, 1e39)), f"30 {TOO_LARGE}"),
    "one NaN": ("data", one_nan, f"1 {TOO_LARGE}, the first at [3, 2, 1]"),
    "infinite": ("labels", saved(np.full(30, np.inf, "f4")), f"30 {TOO_LARGE}"),
    "no data": ("data", Path.unlink, "missing, though its partner is there"),
    "no labels": ("labels", Path.unlink, "missing, though its partner is there"),
    "fewer labels": ("labels", saved(np.zeros(29, "f4")), "shape (29,), expected (30,)"),
    "fewer paths": ("data", fewer_paths, "19 paths, num_paths asks for 20"),
} | {
    f"shape {shape}": (
        "data",
        saved(np.zeros(shape, np.float32)),
        f"shape {shape}, expected (paths, points, 2)",
    )
    for shape in ((30, 7, 3), (30, 1, 2), (30, 7), (), (0, 7, 2))
}


@pytest.mark.parametrize(("file", "spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_file_is_named_and_left_alone(tmp_path, write_toy_files, file, spoil, words):
    files = write_toy_files(tmp_path, np.zeros((30, 7, 2), np.float32), np.zeros(30, np.float32))
    path = files[0].with_name(f"{file}_2.npy")
    spoil(path)
    before = {path: path.read_bytes() for path in files[0].parent.iterdir()}
    for paper_data, advice in ((False, "stay as they are"), (True, "move both files")):
        with pytest.raises(DataError) as caught:
            load(tmp_path, paper_data=paper_data)
        assert str(caught.value).startswith(f"{path}: {words}")
        assert advice in str(caught.value)
        assert "delete" not in str(caught.value) and "remove" not in str(caught.value)
    assert {path: path.read_bytes() for path in files[0].parent.iterdir()} == before


def test_other_data_are_refused_where_the_papers_are_asked_for(tmp_path, write_toy_files):
    write_toy_files(tmp_path, np.zeros((30, 7, 2), np.float32), np.zeros(30, np.float32))
    with pytest.raises(DataError, match=r"data_2\.npy: shape .* the paper's is"):
        load(tmp_path, paper_data=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.longdouble, np.int64, ">f4"])
def test_other_real_numbers_are_read_as_float32(tmp_path, rng, write_toy_files, dtype):
    paths, labels = (rng.integers(-5, 5, shape).astype(dtype) for shape in ((30, 7, 2), 30))
    write_toy_files(tmp_path, paths, labels)
    dataset = load(tmp_path)
    assert dataset.paths.dtype == dataset.labels.dtype == np.float32
    assert np.array_equal(dataset.paths, paths[:20]) and np.array_equal(dataset.labels, labels[:20])


def test_the_digests_are_those_of_the_files(tmp_path, write_toy_files):
    files = write_toy_files(tmp_path, np.zeros((30, 7, 2)), np.zeros(30, np.float32))
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert load(tmp_path).digests == expected


def test_missing_data_are_made_and_announced(tmp_path, monkeypatch, capsys, write_toy_files):
    def write(folder: Path, input_dim: int) -> None:
        paths = np.zeros((30, 7, input_dim), np.float32)
        write_toy_files(folder.parent, paths, np.zeros(30, np.float32))

    monkeypatch.setattr(generate_toy_dataset, "write_toy_dataset", write)
    assert load(tmp_path, 3).paths.shape == (20, 7, 3)
    assert "making the 3D toy data" in capsys.readouterr().err


def test_a_jax_without_the_cpu_is_named(jax, tmp_path):
    command = [sys.executable, SCRIPT, "--output", tmp_path]
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "JAX_PLATFORMS=cuda: the toy data are made on the CPU, use cuda,cpu" in done.stderr


def test_a_file_in_the_way_of_the_folder_is_an_error_without_a_traceback(
    tmp_path, monkeypatch, capsys
):
    made = np.zeros(3, np.float32), np.zeros(3, np.float32)
    monkeypatch.setattr(generate_toy_dataset, "make_toy_dataset", lambda input_dim: made)
    (tmp_path / "file").touch()
    assert generate_toy_dataset.main(["--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
