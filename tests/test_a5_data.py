"""The word problem's files: what is drawn, how it is written, and that nothing wrong is read."""

import hashlib
import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_dir import a5_dataset, generate_a5_dataset
from data_dir.a5_dataset import load_word_problem, read_csv, split
from data_dir.finite_groups import Group, group
from data_dir.generate_a5_dataset import distinct_sequences, main, make_sequences, write_dataset
from harness.errors import DataError
from harness.paths import ROOT

SCRIPT = Path(generate_a5_dataset.__file__).resolve()
A5 = group("A5")
PUBLISHED_A5_2 = "5fa1b247ecf078d027a71fff7c486d6e4f12df4d0f8ff4526bc91cf759bbf307"
DRAWN_A5_4 = "17abe5a4524583c538d669a2c1882d9198804ec3cc52b472dde373af87a2659b"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arrays_of(path: Path, word_group: Group, length: int) -> tuple[np.ndarray, np.ndarray]:
    rows = read_csv(path, word_group, length)
    return rows.inputs, rows.targets


def looks_uniform(counts: list[int]) -> bool:
    """Pearson's statistic within three standard deviations of its mean under uniformity."""
    expected, freedom = np.mean(counts), len(counts) - 1
    statistic = np.sum((np.array(counts) - expected) ** 2) / expected
    return abs(statistic - freedom) < 3 * np.sqrt(2 * freedom)


def run_script(*arguments: str, folder: Path, through=()) -> subprocess.CompletedProcess:
    """through: a command that is given this one."""
    command = [*through, sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


# What is drawn


def test_where_all_sequences_fit_there_is_every_one_in_product_order():
    for samples in (3600, 1_000_000):
        sequences = make_sequences(A5, 2, samples, seed=1)
        assert sequences.tolist() == [list(pair) for pair in product(range(60), repeat=2)]
    assert make_sequences(A5, 3, 1_000_000, seed=1).shape == (216_000, 3)


@pytest.mark.parametrize(("order", "length", "count"), [(60, 2, 3599), (2, 10, 1023), (3, 1, 2)])
def test_rows_are_different_even_when_almost_all_sequences_are_wanted(order, length, count):
    sequences = distinct_sequences(order, length, count, np.random.default_rng(5))
    assert sequences.shape == (count, length)
    assert sequences.max() < order
    assert len(set(map(tuple, sequences.tolist()))) == count


def test_a_sequence_drawn_twice_is_drawn_again_and_the_others_keep_their_place():
    """Length 20 has more sequences than 64 bits count; rows that differ in one place differ."""
    row = np.arange(20, dtype=np.uint8)
    first, last = row.copy(), row.copy()
    first[0], last[-1] = 59, 59
    draws = iter([np.stack([row, last, row, first]), np.stack([last, row[::-1], row, row])])

    class Stub:
        def integers(self, order, size, dtype):
            return next(draws)

    sequences = distinct_sequences(60, 20, 4, Stub())
    assert np.array_equal(sequences, np.stack([row, last, first, row[::-1]]))


def test_draws_without_replacement_are_uniform():
    """All 72 ordered pairs of different sequences out of 9 are equally likely."""
    rng = np.random.default_rng(2024)
    draws = [distinct_sequences(3, 2, 2, rng).tobytes() for _ in range(7200)]
    counts = Counter(draws)
    assert len(counts) == 72
    assert looks_uniform(list(counts.values()))


def test_every_element_is_equally_likely_at_every_position():
    sequences = make_sequences(A5, 20, 60_000, seed=7)
    counts = [np.bincount(column, minlength=60) for column in sequences.T]
    assert looks_uniform(np.concatenate(counts).tolist())


def test_the_same_arguments_draw_the_same_and_another_seed_or_length_does_not():
    sequences = make_sequences(A5, 5, 6000, seed=3)
    assert np.array_equal(sequences, make_sequences(A5, 5, 6000, seed=3))
    for other in (make_sequences(A5, 5, 6000, seed=4), make_sequences(A5, 6, 6000, seed=3)[:, :5]):
        assert np.mean(sequences == other) < 2 / 60  # chance is 1/60


@pytest.mark.parametrize(
    ("length", "samples", "seed", "message"),
    [(0, 10, 1, "length.* not 0"), (4, 0, 1, "samples.* not 0"), (4, 10, -1, "seed .* is -1")],
)
def test_arguments_without_sense_are_refused(length, samples, seed, message):
    with pytest.raises(ValueError, match=message):
        make_sequences(A5, length, samples, seed)


# What is written


def test_the_file_of_length_2_is_the_published_one(tmp_path):
    assert write_dataset(tmp_path / "A5=2.csv", A5, 2, 1_000_000, seed=946607) == 3600
    assert (tmp_path / "A5=2.csv").stat().st_size == 66_018
    assert digest(tmp_path / "A5=2.csv") == PUBLISHED_A5_2


def test_a_drawn_file_is_the_same_on_every_machine(tmp_path):
    write_dataset(tmp_path / "A5=4.csv", A5, 4, 1000, seed=946607)
    assert digest(tmp_path / "A5=4.csv") == DRAWN_A5_4


def test_rows_have_the_benchmarks_form(tmp_path):
    write_dataset(tmp_path / "S5=3.csv", group("S5"), 3, 50, seed=11)
    header, *rows = (tmp_path / "S5=3.csv").read_bytes().split(b"\n")
    sequences = make_sequences(group("S5"), 3, 50, seed=11)
    targets = group("S5").running_products(sequences)
    expected = [
        f"11,{' '.join(map(str, x))},{' '.join(map(str, y))}".encode()
        for x, y in zip(sequences.tolist(), targets.tolist(), strict=True)
    ]
    assert header == b"seed,input,target"
    assert rows == [*expected, b""]


def test_targets_are_the_composition_of_permutations_of_five_items(tmp_path):
    """Moves five items by hand and looks up the arrangement, without the product table."""
    write_dataset(tmp_path / "A5=6.csv", A5, 6, 200, seed=2)
    arrangements = [tuple(row) for row in A5.elements.tolist()]
    inputs, targets = arrays_of(tmp_path / "A5=6.csv", A5, 6)
    for sequence, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        items = (0, 1, 2, 3, 4)
        for number, expected in zip(sequence, target, strict=True):
            items = tuple(items[place] for place in arrangements[number])
            assert arrangements.index(items) == expected


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
def test_the_chunk_size_does_not_change_the_file(tmp_path, monkeypatch, rows_per_chunk):
    write_dataset(tmp_path / "whole.csv", A5, 4, 100, seed=1)
    monkeypatch.setattr(generate_a5_dataset, "_TOKENS_PER_CHUNK", 4 * rows_per_chunk)
    write_dataset(tmp_path / "chunks.csv", A5, 4, 100, seed=1)
    assert digest(tmp_path / "whole.csv") == digest(tmp_path / "chunks.csv")


# What is read


@pytest.mark.parametrize(("name", "length"), [("A5", 1), ("S5", 3), ("Z60", 20), ("A4xZ5", 5)])
def test_what_is_written_is_read_back(tmp_path, name, length):
    path, samples = tmp_path / "file.csv", 2000
    write_dataset(path, group(name), length, samples, seed=6)
    inputs, targets = arrays_of(path, group(name), length)
    assert inputs.dtype == targets.dtype == np.uint8
    assert np.array_equal(inputs, make_sequences(group(name), length, samples, seed=6))
    assert np.array_equal(targets, group(name).running_products(inputs))


@pytest.fixture
def lines(tmp_path) -> list[bytes]:
    """The lines of a good file with 40 rows of length 3; lines[n - 1] is line n."""
    write_dataset(tmp_path / "good.csv", A5, 3, 40, seed=8)
    return (tmp_path / "good.csv").read_bytes().splitlines(keepends=True)


@pytest.fixture(params=[1 << 20, 50], ids=["one block", "many blocks"])
def block_bytes(request, monkeypatch) -> int:
    """How much of a file is parsed at a time: line numbers must not depend on it."""
    monkeypatch.setattr(a5_dataset, "_BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("seed", [b"1", b"20240419", b"-3", b"1.5", b"none"])
def test_any_seed_column_is_read_as_it_is(tmp_path, lines, block_bytes, seed):
    good = arrays_of(tmp_path / "good.csv", A5, 3)
    rows = [seed + row[row.index(b",") :] for row in lines[1:]]
    (tmp_path / "other.csv").write_bytes(b"".join([lines[0], *rows]))
    assert np.array_equal(arrays_of(tmp_path / "other.csv", A5, 3), good)


def test_carriage_returns_before_line_feeds_are_accepted(tmp_path, lines, block_bytes):
    (tmp_path / "crlf.csv").write_bytes(b"".join(lines).replace(b"\n", b"\r\n"))
    good = arrays_of(tmp_path / "good.csv", A5, 3)
    assert np.array_equal(arrays_of(tmp_path / "crlf.csv", A5, 3), good)


def test_a_file_is_known_by_its_digest_and_its_seeds(tmp_path, lines, block_bytes):
    rows = read_csv(tmp_path / "good.csv", A5, 3)
    assert rows.digest == {"good.csv": digest(tmp_path / "good.csv")}
    assert rows.seeds == {"8"}
    lines[40] = lines[40].replace(b"8,", b"11,", 1)
    (tmp_path / "other.csv").write_bytes(b"".join(lines))
    assert read_csv(tmp_path / "other.csv", A5, 3).seeds == {"8", "11"}


def test_a_sequence_that_is_there_twice_is_refused_with_both_lines(tmp_path, lines, block_bytes):
    (tmp_path / "bad.csv").write_bytes(b"".join([*lines[:30], lines[6], *lines[31:]]))
    with pytest.raises(DataError, match=r"bad\.csv, line 31: the sequence of line 7 again"):
        read_csv(tmp_path / "bad.csv", A5, 3)


BAD_ROWS = {
    "too few inputs": (b"8,1 2,1 2 3\n", "3 numbers expected in input, found 2"),
    "too many targets": (b"8,0 0 0,0 0 0 0\n", "3 numbers expected in target, found 4"),
    "first number too large": (b"8,0 0 60,0 0 0\n", "'60' in input is not a number from 0 to 59"),
    "three digits": (b"8,0 0 0,0 0 999\n", "'999' in target is not"),
    "four digits": (b"8,0 0 1000,0 0 0\n", "'1000' in input is not"),
    "six hundred digits": (b"8,0 0 " + b"9" * 600 + b",0 0 0\n", "'99999999999999999999' in input"),
    "negative": (b"8,0 -1 0,0 0 0\n", "'-1' in input is not"),
    "decimal": (b"8,0 1.0 0,0 0 0\n", "'1.0' in input is not"),
    "letter": (b"8,0 0 x,0 0 0\n", "'x' in input is not"),
    "character after nine": (b"8,: 0 0,: : :\n", "':' in input is not"),
    "digits of another script": ("8,0 0 \u0663,0 0 0\n".encode(), "in input is not"),
    "byte that is no text": (b"8,0 0 \xff,0 0 0\n", "in input is not"),
    "two spaces": (b"8,0  0,0 0 0\n", "'' in input is not"),
    "trailing space": (b"8,0 0 0,0 0 0 \n", "3 numbers expected in target, found 4"),
    "missing column": (b"8,0 0 0\n", "3 columns expected (seed, input, target), found 2"),
    "extra column": (b"8,0 0 0,0 0 0,0 0 0\n", "3 columns expected (seed, input, target), found 4"),
    "quotes": (b'8,"0 0 0","0 0 0"\n', "in input is not"),
    "empty line": (b"\n", "3 columns expected (seed, input, target), found 1"),
    "carriage return alone": (b"8,0 0 0,0 0 0\r8,0 0 0,0 0 0\n", "3 columns expected"),
    "wrong product": (b"8,1 2 3,1 0 4\n", "target 3 is 4, but the running product in A5 is 3"),
}


@pytest.mark.parametrize("line", [2, 41])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_with_its_file_and_line(tmp_path, lines, block_bytes, case, line):
    row, message = BAD_ROWS[case]
    lines[line - 1] = row
    (tmp_path / "bad.csv").write_bytes(b"".join(lines))
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path / "bad.csv", A5, 3)
    assert str(caught.value).startswith(f"{tmp_path / 'bad.csv'}, line {line}: ")
    assert message in str(caught.value)


def test_the_first_of_several_bad_rows_is_named(tmp_path, lines, block_bytes):
    lines[4], lines[8] = BAD_ROWS["wrong product"][0], BAD_ROWS["letter"][0]
    (tmp_path / "bad.csv").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="line 5: target 3"):
        read_csv(tmp_path / "bad.csv", A5, 3)


@pytest.mark.parametrize("kept", [1, 2, 5, -3, -1], ids="kept {} bytes".format)
def test_a_file_cut_off_in_its_last_line_is_refused(tmp_path, lines, block_bytes, kept):
    (tmp_path / "cut.csv").write_bytes(b"".join([*lines[:-1], lines[-1][:kept]]))
    with pytest.raises(DataError, match="line 41: the file ends in the middle"):
        read_csv(tmp_path / "cut.csv", A5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file ends before its first sequence"),
        (b"seed,input,target\n", "line 2: the file ends before its first sequence"),
        (b"seed,input,target", "line 1: the header is 'seed,input,target', not"),
        (b"input,target\n0 0 0,0 0 0\n", "line 1: the header is 'input,target"),
        (b"\xef\xbb\xbfseed,input,target\n8,0 0 0,0 0 0\n", "line 1: the header is"),
    ],
)
def test_a_file_without_header_or_rows_is_refused(tmp_path, content, message):
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path / "bad.csv", A5, 3)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "A5=2.csv"
    write_dataset(path, A5, 2, 20, seed=9)
    return path


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_file_with_one_byte_changed_is_read_right_or_refused(small_file, data):
    content = bytearray(small_file.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] = data.draw(st.sampled_from(list(b"0159 ,\n\r-x\x00\xff")))
    changed = small_file.with_name("changed.csv")
    changed.write_bytes(content)
    try:
        inputs, targets = arrays_of(changed, A5, 2)
    except DataError as error:
        assert f"{changed}, line " in str(error)
    else:
        assert np.array_equal(targets, A5.running_products(inputs))
        assert len(inputs) == 20


def test_another_groups_file_is_refused(tmp_path):
    write_dataset(tmp_path / "A5=2.csv", group("Z60"), 2, 3600, seed=1)
    with pytest.raises(DataError, match="running product in A5"):
        read_csv(tmp_path / "A5=2.csv", A5, 2)


# What is loaded, made if missing, and split


def test_a_missing_file_is_made_once_and_announced(tmp_path, capsys):
    first = load_word_problem(tmp_path / "new", A5, 4, seed=5, samples=300)
    (announced,) = capsys.readouterr().err.splitlines()
    assert "writing 300 sequences to" in announced
    again = load_word_problem(tmp_path / "new", A5, 4, seed=5, samples=300)
    assert np.array_equal(first.inputs, again.inputs) and first.digest == again.digest
    assert np.array_equal(first.inputs, make_sequences(A5, 4, 300, seed=5))
    assert capsys.readouterr().err == ""


def test_a_file_of_another_seed_is_read_as_it_is_with_a_warning(tmp_path, capsys):
    write_dataset(tmp_path / "A5=4.csv", A5, 4, 300, seed=5)
    rows = load_word_problem(tmp_path, A5, 4, seed=6, samples=300)
    assert np.array_equal(rows.inputs, make_sequences(A5, 4, 300, seed=5))
    assert "A5=4.csv is read as it is: its seed column has 5, not 6" in capsys.readouterr().err


def test_a_file_with_another_number_of_rows_is_refused_and_can_be_asked_for(tmp_path):
    write_dataset(tmp_path / "A5=4.csv", A5, 4, 300, seed=5)
    with pytest.raises(DataError) as caught:
        load_word_problem(tmp_path, A5, 4)
    assert "A5=4.csv: 300 sequences where 1,000,000 are asked for" in str(caught.value)
    assert "samples to 300" in str(caught.value) and "remove" not in str(caught.value)
    assert len(load_word_problem(tmp_path, A5, 4, samples=300).inputs) == 300


def test_files_have_the_published_names(tmp_path, capsys):
    for name in ("A5", "S5", "Z60", "A4xZ5"):
        load_word_problem(tmp_path, group(name), 2)
    names = ["A4_x_Z5=2.csv", "A5=2.csv", "S5=2.csv", "Z60=2.csv"]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == names


def test_a_file_of_our_former_name_is_read_where_it_is_alone(tmp_path, capsys):
    A4xZ5 = group("A4xZ5")
    write_dataset(tmp_path / "A4xZ5=3.csv", A4xZ5, 3, 50, seed=5)
    rows = load_word_problem(tmp_path, A4xZ5, 3, seed=5, samples=50)
    assert list(rows.digest) == ["A4xZ5=3.csv"]
    assert "the published benchmark's name is A4_x_Z5=3.csv" in capsys.readouterr().err
    write_dataset(tmp_path / "A4_x_Z5=3.csv", A4xZ5, 3, 50, seed=6)
    assert load_word_problem(tmp_path, A4xZ5, 3, seed=6, samples=50).seeds == {"6"}


def test_progress_goes_to_standard_error(tmp_path, capsys):
    load_word_problem(tmp_path, group("Z60"), 2)
    assert "Z60=2.csv" in capsys.readouterr().err


def test_a_split_keeps_every_row_once_with_its_target():
    inputs = make_sequences(A5, 3, 1000, seed=1)
    targets = A5.running_products(inputs)
    train, validation = split(inputs, targets, 0.8, np.random.default_rng(2))
    assert [len(part) for part in (*train, *validation)] == [800, 800, 200, 200]
    for part_inputs, part_targets in (train, validation):
        assert np.array_equal(A5.running_products(part_inputs), part_targets)
    together = np.concatenate([train[0], validation[0]])
    assert sorted(together.tolist()) == sorted(inputs.tolist())
    assert not np.array_equal(together, inputs)


def test_a_split_depends_on_the_generator_alone():
    inputs = make_sequences(A5, 3, 1000, seed=1)
    first, same, other = (split(inputs, inputs, 0.8, np.random.default_rng(n)) for n in (2, 2, 3))
    assert np.array_equal(first[0][0], same[0][0])
    assert not np.array_equal(first[0][0], other[0][0])


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5, 0.001])
def test_a_split_with_an_empty_side_is_refused(fraction):
    inputs = make_sequences(A5, 3, 100, seed=1)
    with pytest.raises(ValueError, match=r"train_fraction: .* of 100 sequences .*allowed: 1 to 99"):
        split(inputs, inputs, fraction, np.random.default_rng(1))


# The command line


def test_the_script_runs_from_another_folder(tmp_path):
    result = run_script("--lengths", "2", "3", "--output", "made", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "made" / "A5=2.csv") == PUBLISHED_A5_2
    assert (tmp_path / "made" / "A5=3.csv").stat().st_size == 5_184_018
    lines = result.stdout.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "writing A5=2.csv ... 3",
        "writing A5=3.csv ... 216",
    ]


def test_defaults_are_the_repositorys_folder_and_the_papers_lengths():
    arguments = generate_a5_dataset._build_parser().parse_args([])
    assert arguments.output == SCRIPT.parent / "illusion"
    assert list(arguments.lengths) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20]
    assert (arguments.group, arguments.samples) == ("A5", 1_000_000)


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--lengths 2 3 --seed 946607 --output DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "2", "0"], "a sequence length must be at least 1, not 0"),
        (["--lengths", "two"], "invalid int value: 'two'"),
        (["--samples", "0"], "the number of samples must be at least 1, not 0"),
        (["--seed", "-1"], "the seed must not be negative, but is -1"),
        (
            ["--group", "a5"],
            "unknown group 'a5': choose one of A5, S5, Z60, A4xZ5; did you mean A5",
        ),
    ],
)
def test_bad_arguments_exit_with_2_before_anything_is_written(tmp_path, arguments, message):
    result = run_script("--output", str(tmp_path / "made"), *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_overwrite_is_asked_for(tmp_path, capsys):
    arguments = ["--lengths", "4", "2", "--samples", "50", "--output", str(tmp_path)]
    (tmp_path / "A5=2.csv").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "A5=2.csv" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

    assert main([*arguments, "--overwrite"]) == 0
    assert len(read_csv(tmp_path / "A5=2.csv", A5, 2).inputs) == 50


def test_a_full_disk_leaves_no_file_and_no_temporary_file(tmp_path):
    # 20 or 40 KiB, by the shell, and less than the file.
    little_space = ["sh", "-c", 'ulimit -f 40 && exec "$@"', "sh"]
    arguments = "--lengths", "2", "--output", str(tmp_path)
    result = run_script(*arguments, folder=tmp_path, through=little_space)
    assert result.returncode == 1
    assert "error: cannot write" in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


# The script, but it says when it has written a part of the file, and goes no further.
HALF_WRITER = """
import runpy, sys, time
from contextlib import contextmanager
from harness import atomic_files

class Half:
    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(data)
        self.file.flush()
        print("written", flush=True)
        while True:  # a signal that comes as a sleep begins is answered when it ends
            time.sleep(0.01)

@contextmanager
def half_written(path):
    with atomic_write(path) as file:
        yield Half(file)

atomic_write, atomic_files.atomic_write = atomic_files.atomic_write, half_written
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_writer_leaves_no_half_file(tmp_path, how, code):
    command = [sys.executable, "-c", HALF_WRITER, SCRIPT, "--lengths", "2", "--output", tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline().endswith("written\n"), process.communicate()
        (half,) = tmp_path.iterdir()
        assert half.name != "A5=2.csv" and half.stat().st_size
        process.send_signal(how)
        process.communicate()
    assert process.returncode == code
    # What SIGKILL leaves, which no program can answer, does not have the name.
    assert list(tmp_path.iterdir()) == ([half] if how == signal.SIGKILL else [])


def test_a_file_that_is_there_is_read_without_a_lock(tmp_path, monkeypatch):
    """As from a folder that cannot be written."""
    write_dataset(tmp_path / "A5=2.csv", A5, 2, 50, 1)
    monkeypatch.setattr(a5_dataset, "waiting", None)
    assert len(load_word_problem(tmp_path, A5, 2, samples=50).inputs) == 50
