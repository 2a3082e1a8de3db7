"""What is asked of SLURM, without a cluster: nothing from a config becomes a command."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import walks
from harness.paths import CONFIG_FOLDER, ROOT

pytest.importorskip("submitit", reason="needs '.[slurm]'")

SETTINGS = yaml.safe_load((CONFIG_FOLDER / "slurm.yaml").read_text())


@pytest.fixture
def fake_slurm(tmp_path):
    """Commands of SLURM that accept everything; `sbatch` keeps the script it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'cp "$1" {tmp_path}/script.sh; echo Submitted batch job 7',
        "srun": "true",
        "squeue": "true",
    }
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def launch(folder, path_variable, *words, settings=(), **changes):
    config = folder / "slurm.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, **dict(settings), **changes}))
    words = ["--launcher", "slurm", "--slurm-config", config, *words]
    return walks.finish(folder, *words, variables={"PATH": path_variable})


@pytest.fixture
def with_fakes(fake_slurm):
    return f"{fake_slurm}:/usr/bin:/bin"


def test_settings_become_quoted_options_and_set_up_commands_stand_as_they_are(tmp_path, with_fakes):
    changes = {"partition": "a; touch /tmp/b", "account": "$(id)", "gpus": 2, "cpus": 6}
    changes |= {"memory_gb": 1.5, "time_minutes": 90, "signal_before_end_s": 45}
    changes |= {"sbatch": {"mail-user": "me@example.org", "exclusive": True}}
    changes |= {"setup": ["module load cuda && true"], "python": "~/my env/python"}
    done = launch(tmp_path, with_fakes, **changes)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "script.sh").read_text().splitlines()
    options = dict(
        shlex.split(line)[1].removeprefix("--").partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH")
    )
    wanted = {
        "partition": "a; touch /tmp/b",
        "account": "$(id)",
        "gpus-per-node": "2",
        "cpus-per-task": "6",
        "mem": "1536M",
        "time": "90",
        "signal": "USR2@45",
        "mail-user": "me@example.org",
        "exclusive": "",
        "requeue": "",
    }
    assert wanted.items() <= options.items()
    (before,) = (i for i, line in enumerate(lines) if line == "module load cuda && true")
    (command,) = (shlex.split(line) for line in lines[before:] if line.startswith("srun "))
    assert "--cpus-per-task=6" in command
    assert command[command.index("-u") - 1] == str(Path("~/my env/python").expanduser())


def test_without_memory_the_cluster_decides(tmp_path, with_fakes):
    done = launch(tmp_path, with_fakes, memory_gb=None)
    assert done.returncode == 0, done.stderr
    assert "--mem" not in (tmp_path / "script.sh").read_text()


def test_runs_beyond_the_largest_array_are_submitted_in_more_of_them(
    tmp_path, fake_slurm, with_fakes
):
    scripts = {
        "scontrol": "echo 'MaxArraySize            = 3'",
        "sbatch": f'grep -- --array= "$1" >> {tmp_path}/arrays; echo Submitted batch job $$',
    }
    for name, body in scripts.items():
        (fake_slurm / name).write_text(f"#!/bin/sh\n{body}\n")
        (fake_slurm / name).chmod(0o755)
    words = walks.walk_words(tmp_path, lengths=list(range(3, 11)))
    config = tmp_path / "slurm.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "array_parallelism": 6}))
    command = [sys.executable, ROOT / "run_experiment.py", *words, "--launcher", "slurm"]
    environment = walks.environment(PATH=with_fakes)
    done = subprocess.run(
        [*command, "--slurm-config", config], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    arrays = [
        line.partition("--array=")[2] for line in (tmp_path / "arrays").read_text().splitlines()
    ]
    assert arrays == ["0-2%2", "0-2%2", "0-1%2"]
    assert len(list((tmp_path / "results" / "logs" / "slurm").glob("*.job"))) == 8


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"partition": "a\nmodule load b"}, "partition: 'a\\nmodule load b' String should match"),
        ({"sbatch": {"mail user": "me"}}, "sbatch: "),
        ({"sbatch": {"comment": "a\nb"}}, "sbatch: "),
        ({"gpus": -1}, "gpus: -1 should be greater than or equal to 0"),
        ({"cpus": "4"}, "cpus: '4' should be a valid integer"),
        ({"partiton": "gpu"}, "unknown key 'partiton', did you mean 'partition'?"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_file_and_key(tmp_path, with_fakes, changes, found):
    refused = launch(tmp_path, with_fakes, **changes)
    assert refused.returncode == 2
    assert f"error: {tmp_path / 'slurm.yaml'}: {found}" in refused.stderr
    assert not (tmp_path / "script.sh").exists()


def test_without_slurms_commands_it_says_where_to_run_it(tmp_path):
    refused = launch(tmp_path, "/nowhere")
    assert refused.returncode == 2
    assert "error: --launcher slurm: sbatch, srun, squeue not found; run it where" in refused.stderr


def test_a_slurm_that_does_not_answer_is_named_before_anything_is_submitted(
    tmp_path, fake_slurm, with_fakes
):
    (fake_slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    refused = launch(tmp_path, with_fakes)
    assert refused.returncode == 2 and "squeue does not answer" in refused.stderr
    assert not (tmp_path / "script.sh").exists()


def test_launching_imports_no_framework():
    code = "import launchers.slurm, sys; print({'torch', 'jax'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_without_submitit_it_says_what_to_install(tmp_path, with_fakes):
    (tmp_path / "submitit.py").write_text("raise ModuleNotFoundError(name='submitit')")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import run_experiment; "
    words = walks.walk_words(tmp_path, "--launcher", "slurm")
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(run_experiment.main({words!r}))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "submitit is not installed; install what --launcher slurm needs with" in done.stderr
    assert "pip install -c requirements-lock.txt '.[slurm]'" in done.stderr
