"""Checks of versions and space: what is wrong is named, with what to do."""

from __future__ import annotations

import importlib.metadata
import shutil
from types import SimpleNamespace

import pytest

from dsts_pipeline.base.errors import DataError, UserError
from stages.doctor import check_space, check_versions, examine, read_constraints

HERE = {"zarr": "3.1.6", "torch": "2.13.0+cpu"}


def installed(name: str) -> str:
    if name not in HERE:
        raise importlib.metadata.PackageNotFoundError(name)
    return HERE[name]


def test_right_versions_are_counted():
    text = check_versions(
        ["zarr>=3.1,<4", "torch==2.13.0", 'ray>=2; extra == "ray"'], installed=installed
    )
    assert "2 packages as required" in text


def test_wrong_and_missing_packages_are_named():
    with pytest.raises(UserError) as told:
        check_versions(["zarr>=4", "decord>=0.6", "torch>=2.6"], installed=installed)
    assert "zarr is 3.1.6, expected >=4" in str(told.value)
    assert "decord is missing (expected >=0.6)" in str(told.value)
    assert "torch" not in str(told.value) and "make setup" in str(told.value)


def test_a_version_other_than_the_tested_one_is_told_but_fine():
    text = check_versions(["zarr>=3"], installed=installed, tested={"zarr": "3.1.0"})
    assert "untested: zarr 3.1.6 (tested: 3.1.0)" in text
    assert "untested" not in check_versions(
        ["torch"], installed=installed, tested={"torch": "2.13.0"}
    )


def test_this_projects_own_requirements_are_met_here(repository):
    assert "packages as required" in check_versions(
        tested=read_constraints(repository / "constraints.txt")
    )


def test_constraints_are_read_and_may_be_absent(tmp_path):
    (tmp_path / "constraints.txt").write_text("# tested\nav==18.1.0\nzarr==3.1.6  # store\n")
    found = read_constraints(tmp_path / "constraints.txt")
    assert found == {"av": "18.1.0", "zarr": "3.1.6"}
    assert read_constraints(tmp_path / "none.txt") == {}


def test_too_little_space_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4_000_000_000))
    assert "4.00 GB are free" in check_space(tmp_path / "not" / "yet", 3_900_000_000)
    with pytest.raises(UserError, match=r"4\.10 GB are still needed .* 4\.00 GB are free; free"):
        check_space(tmp_path / "not" / "yet", 4_100_000_000)


def test_findings_come_from_user_errors_and_missing_packages_alone():
    def fail(error: Exception):
        def check() -> str:
            raise error

        return check

    assert examine("a", lambda: "fine").is_ok
    assert examine("a", fail(DataError("gone"))).text == "gone"
    missing = examine("a", fail(ModuleNotFoundError("No module named 'scipy'", name="scipy")))
    assert not missing.is_ok and '"dsts-pipeline[pipeline]"' in missing.text
    broken = examine("a", fail(ImportError("libscipy.so")))
    assert not broken.is_ok and "libscipy.so" in broken.text
    with pytest.raises(ZeroDivisionError):
        examine("a", fail(ZeroDivisionError()))
