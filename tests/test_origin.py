"""What a record says of who made it."""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from harness import records
from harness.paths import ROOT
from harness.records import provenance


def test_the_origin_says_what_it_was_made_with_where_and_when(monkeypatch):
    said = ["-e", "A5", "--only", "length 3", "--results-dir", "/home/me/res", "--data-dir=/d/e/f"]
    monkeypatch.setattr(sys, "argv", ["/home/me/repo/run.py", *said, "-c", "configs/a.yaml"])
    origin = provenance(["numpy", "no-such-package"], "cpu")
    named = {"version", "command", "host", "commit", "dirty", "packages", "device", "machine"}
    assert set(origin) == named
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert origin["version"] == project["version"]
    kept = ["--results-dir", ".../res", "--data-dir=.../f", "-c", "configs/a.yaml"]
    assert shlex.split(origin["command"]) == ["run.py", "-e", "A5", "--only", "length 3", *kept]
    assert origin["host"] == socket.gethostname()
    assert origin["packages"] == {"numpy": np.__version__}
    assert origin["device"] == "cpu"
    assert {"cpu", "cores", "memory_gib", "platform", "python"} <= set(origin["machine"])
    json.dumps(origin)


def test_the_origin_names_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    if not shutil.which("git"):
        pytest.skip("needs git")

    def git(*words: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *identity, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "code.py").write_text("1")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    origin = provenance([], "cpu")
    assert origin["commit"] == git("rev-parse", "HEAD").decode().strip()
    assert origin["dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert provenance([], "cpu")["dirty"] is True
    export = tmp_path / "export"
    export.mkdir()
    shutil.copy(ROOT / "pyproject.toml", export)
    monkeypatch.setattr(records, "ROOT", export)
    assert provenance([], "cpu")["commit"] is None


def test_without_git_the_origin_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    origin = provenance([], "cpu")
    assert origin["commit"] is None and origin["dirty"] is None
