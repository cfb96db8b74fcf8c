"""Provenance: what a result came from, the same for the same code and settings."""

from __future__ import annotations

import json
import subprocess

from dsts_pipeline.base.provenance import collect_provenance, package_versions


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_names_the_commit_and_whether_code_changed(tmp_path):
    (tmp_path / "stages").mkdir()
    code = tmp_path / "stages" / "a.py"
    code.write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "dvc.lock").write_text("written by a run\n")
    clean = collect_provenance({}, tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["code_changed"] is False
    code.write_text("2\n")
    assert collect_provenance({}, tmp_path)["code_changed"] is True


def test_outside_a_repository(tmp_path):
    found = collect_provenance({"seed": 3}, tmp_path)
    assert found["commit"] is None
    assert found["code_changed"] is None
    assert found["settings"] == {"seed": 3}


def test_is_repeatable_and_names_no_place(tmp_path):
    first, second = (collect_provenance({}, tmp_path) for _ in range(2))
    assert first == second
    assert str(tmp_path) not in json.dumps(first)


def test_versions_cover_what_decides_figures():
    assert {"torch", "numpy", "mmaction2", "decord", "zarr"} <= set(package_versions())
