"""The lock, pyproject.toml and the conda files say one thing about every package."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.paths import ROOT

CONDA_FILES = {
    "docs/environment-jax.yml": ["jax"],
    "docs/environment-torch.yml": ["torch"],
}


def locked_versions() -> dict[str, Version]:
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def conda_pins(name: str) -> dict[str, Requirement]:
    dependencies = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return {canonicalize_name(r.name): r for r in map(Requirement, pip)}


def test_lock_has_one_exact_pin_for_each_package():
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins), pins
    assert len(locked_versions()) == len(pins)


def test_lock_pins_every_declared_package_in_its_declared_range():
    locked = locked_versions()
    extras = "jax", "torch", "triton", "cuda", "slurm", "tensorboard", "benchmarks", "dev"
    for requirement in declared(*extras):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


@pytest.mark.parametrize("name", CONDA_FILES)
def test_conda_file_pins_what_the_lock_pins(name):
    locked = locked_versions()
    for package, requirement in conda_pins(name).items():
        assert str(requirement.specifier) == f"=={locked[package]}", package


@pytest.mark.parametrize(("name", "extras"), CONDA_FILES.items())
def test_conda_file_installs_everything_its_part_declares(name, extras):
    needed = {canonicalize_name(r.name) for r in declared(*extras)}
    assert needed <= conda_pins(name).keys()


def test_conda_files_and_lint_use_a_python_that_the_project_supports():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lowest = pyproject["project"]["requires-python"].removeprefix(">=")
    assert pyproject["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    for name in CONDA_FILES:
        assert f"python={lowest}" in yaml.safe_load((ROOT / name).read_text())["dependencies"]


def test_mamba_build_that_keeps_its_cuda_scan_is_explained():
    text = (ROOT / "docs/environment-torch.yml").read_text()
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation" in text
