"""What a user exported or configured changes no number; a device that is missing is named."""

import json
import os
import subprocess
import sys

import pytest

from harness.machine import others_running
from harness.paths import CONFIG_FOLDER, ROOT

JAX_EXPORTS = {
    "JAX_ENABLE_X64": "1",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true --xla_dump_hlo_as_text",
}
TORCH_EXPORTS = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "NVIDIA_TF32_OVERRIDE": "1"}
LCDE_A5 = ["-m", "LCDE", "-e", "A5", "-c", str(CONFIG_FOLDER / "quick_lcde_a5.yaml"), "-l", "2"]
RNN_A5 = ["-m", "SequenceModel", "-e", "A5", "-n", "RNN", "-l", "2", "-d", "1"]
TINY = {
    "lcde": {"max_steps": 2, "eval_interval": 1, "samples": 500},
    "rnn": {"epochs": 1, "eval_interval": 5, "samples": 500, "num_heads": 1, "search": False},
}


def run(words: list[str], tiny: dict, folder, **exported) -> tuple[list, str]:
    words = [*words, "--data-dir", str(folder), "--results-dir", str(folder / "results")]
    for key, value in {"hidden_dim": 8, "short_batch_size": 0, **tiny}.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    done = subprocess.run(
        [sys.executable, ROOT / "run_experiment.py", *words, "--device", "cpu"],
        env={**os.environ, **exported},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (folder / "results" / "outputs_A5").glob("*.json")
    history = json.loads(record.read_text())["history"]
    return [history["accuracy"], history["train_loss"]], done.stderr


@pytest.mark.parametrize(
    ("framework", "words", "tiny", "exported"),
    [
        ("jax", LCDE_A5, TINY["lcde"], JAX_EXPORTS),
        ("torch", RNN_A5, TINY["rnn"], TORCH_EXPORTS),
    ],
    ids=["jax", "torch"],
)
def test_what_is_exported_changes_no_bit_and_is_named(tmp_path, framework, words, tiny, exported):
    pytest.importorskip(framework)
    plain, _ = run(words, tiny, tmp_path / "plain")
    under_exports, warnings = run(words, tiny, tmp_path / "exported", **exported)
    assert under_exports == plain
    assert all(f"warning: {name}=" in warnings for name in exported)


def test_harmless_variables_stay(monkeypatch):
    from experiments.devices import forget_exported

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_cpu_enable_fast_math=true")
    forget_exported()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


def test_a_platform_that_is_exported_and_not_there_is_named(tmp_path):
    pytest.importorskip("jax")
    words = [*LCDE_A5, "--data-dir", tmp_path, "--results-dir", tmp_path / "results"]
    done = subprocess.run(
        [sys.executable, ROOT / "run_experiment.py", *map(str, words)],
        env={**os.environ, "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_PLATFORMS=cuda: this JAX finds no such device")


@pytest.mark.parametrize("tf32", [False, True])
def test_pytorch_multiplies_in_the_configured_precision_on_a_gpu(tf32):
    torch = pytest.importorskip("torch")
    from experiments.devices import torch_numbers

    torch.set_float32_matmul_precision("high" if not tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = not tf32
    try:
        torch_numbers("tf32" if tf32 else "float32")
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    finally:
        torch_numbers("float32")


@pytest.mark.parametrize(
    ("others", "exported", "looks"),
    [(0, {}, "16000"), (1, {}, "1000"), (1, {"GOMP_SPINCOUNT": "7"}, "7")],
    ids=["alone", "beside another", "exported"],
)
def test_threads_that_wait_sleep_sooner_beside_others(monkeypatch, others, exported, looks):
    pytest.importorskip("torch")
    from experiments import devices

    monkeypatch.setattr(devices, "others_running", lambda: others)
    monkeypatch.setattr(devices, "available_cores", os.cpu_count)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "to be put back")
    del os.environ["GOMP_SPINCOUNT"]
    os.environ.update(exported)
    devices.torch_numbers("float32")
    assert os.environ["GOMP_SPINCOUNT"] == looks


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts what runs")
def test_others_that_run_are_seen():
    loop = [sys.executable, "-c", "print('running', flush=True)\nwhile True: pass"]
    others = [subprocess.Popen(loop, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for other in others:
            other.stdout.readline()
        assert others_running() >= 2
    finally:
        for other in others:
            with other:
                other.kill()


@pytest.mark.parametrize("experiment", ["toy", "A5"])
def test_tf32_is_refused_on_a_cpu(tmp_path, capsys, experiment):
    pytest.importorskip("torch")
    from run_experiment import main

    words = ["-m", "SequenceModel", "-e", experiment, "--device", "cpu"]
    words += ["--results-dir", str(tmp_path), "--set", "matmul_precision=tf32"]
    assert main(words) == 2
    assert "error: matmul_precision: a CPU has no 'tf32'" in capsys.readouterr().err


def test_a_scan_backend_that_a_device_has_not_is_named(tmp_path, capsys):
    pytest.importorskip("torch")
    from run_experiment import main

    words = ["-m", "SequenceModel", "-e", "toy", "--device", "cpu"]
    words += ["--results-dir", str(tmp_path), "--set", "scan_backend=triton"]
    assert main(words) == 2
    reason = "backend 'triton' does not compute on cpu in torch.float32"
    assert capsys.readouterr().err == f"error: scan_backend: {reason}\n"
