"""A bundle goes to a hub and comes back; what bundle.json doesn't list never comes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dsts_pipeline.base.errors import BundleError, UserError
from dsts_pipeline.base.files import sign
from dsts_pipeline.serve import hub, load_bundle, save_bundle
from dsts_pipeline.serve.hub import copy_files, from_hub, list_files
from tests.clips.videos import write_video
from tests.pipeline import ROOT, params_of
from tests.serve.fake_hub import TOKEN, running_hub
from tests.serve.small_bundle import CLASSES, make_bundle

NAME = "me/dives"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundles") / "sound", make_bundle())


@pytest.fixture
def server(monkeypatch):
    """A hub that holds nothing yet."""
    pytest.importorskip("huggingface_hub")
    with running_hub() as running:
        yield running


def run(server, home, *arguments, **environment):
    """A command as a user starts it, who knows no other hub."""
    known = {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    left = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    command += ["--params", str(params_of())]
    run = subprocess.run(
        command,
        env=left | {"NO_PROXY": "*"} | known | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return run


def put(server, folder, name=NAME):
    """Let the hub hold the files of a folder, whatever they are."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    server.repositories[name] = {"main": files}


# ---- what is sent --------------------------------------------------------------------------------


def test_the_files_are_those_of_the_bundle_and_a_page(bundle, tmp_path):
    files = list_files(bundle, NAME, license="apache-2.0")
    assert {file.name for file in files} == {p.name for p in bundle.iterdir()} | {"README.md"}
    copy_files(files, tmp_path / "copy")
    for file in files:
        assert (tmp_path / "copy" / file.name).stat().st_size == file.num_bytes
    page = (tmp_path / "copy/README.md").read_text()
    _, metadata, text = page.split("---\n", 2)
    assert YAML(typ="safe").load(metadata) == {
        "library_name": "dsts-pipeline",
        "pipeline_tag": "video-classification",
        "license": "apache-2.0",
        "tags": ["action-recognition", "fine-grained", "video", "dsts"],
    }
    assert text.startswith((bundle / "MODEL_CARD.md").read_text().rstrip())
    assert f'from_hub("{NAME}")' in text
    assert "license" not in list_files(bundle, NAME)[0].source.decode().split("---\n")[1]
    with pytest.raises(BundleError, match="exists already"):
        copy_files(files, tmp_path / "copy")
    with pytest.raises(BundleError, match="lies in the bundle itself"):
        copy_files(files, bundle / "copy")


def test_a_bundle_that_is_of_no_use_elsewhere_is_refused(tmp_path):
    folder = save_bundle(tmp_path / "b", make_bundle(), with_backbone=False)
    with pytest.raises(BundleError, match="nobody else has; export it again with --with-backbone"):
        list_files(folder, NAME)
    (folder / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="head.safetensors"):
        list_files(folder, NAME)


@pytest.mark.parametrize("name", ["dives", "me/dives/x", "../x", "me/", "me/dives@main", "-a/b"])
def test_a_name_that_is_none(bundle, name):
    with pytest.raises(UserError, match="expected USER/NAME"):
        list_files(bundle, name)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install .*"dsts-pipeline\[hub\]"'):
        from_hub(NAME)


# ---- to the hub and back, by the commands --------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_and_a_folder_send_nothing(server, bundle, tmp_path):
    for option in (["--dry-run"], ["--to", tmp_path / "copy"]):
        done = run(server, tmp_path / "home", "push", bundle, NAME, *option)
        assert done.returncode == 0 and "nothing is sent" in done.stderr, done.stderr
        assert "head.safetensors" in done.stderr and "README.md" in done.stderr
    assert not server.repositories and (tmp_path / "copy/README.md").exists()


@pytest.mark.slow
def test_a_bundle_goes_to_the_hub_and_predicts_from_there(server, bundle, tmp_path):
    write_video(tmp_path / "dive.mp4", num_frames=20)
    home = tmp_path / "home"
    options = "--private", "--revision", "v1"
    pushed = run(server, home, "push", bundle, NAME, *options, HF_TOKEN=TOKEN)
    assert pushed.returncode == 0, pushed.stderr
    sent = server.repositories[NAME]["v1"]
    assert {name: len(data) for name, data in sent.items() if name != "README.md"} == {
        path.name: path.stat().st_size for path in bundle.iterdir()
    }
    assert not server.repositories[NAME]["main"] and server.private == {NAME}

    asks = "predict", tmp_path / "dive.mp4", "--bundle", f"hub:{NAME}@v1", "--json"
    found = run(server, home, *asks, tmp_path / "a.jsonl")
    assert found.returncode == 0, found.stderr
    assert set(server.asked) == {path.name for path in bundle.iterdir()}  # README.md is not
    here = run(server, home, *asks[:2], "--bundle", bundle, "--json", tmp_path / "b.jsonl")
    assert here.returncode == 0, here.stderr
    both = [json.loads((tmp_path / f"{name}.jsonl").read_text()) for name in "ab"]
    assert both[0]["top"] == both[1]["top"] and both[0]["top"][0]["name"] in CLASSES

    server.asked.clear()  # from the cache alone
    again = run(server, home, *asks, tmp_path / "c.jsonl", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and not server.asked, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "environment", "told"),
    [
        ("hub:me/nothing", {}, "hub:me/nothing: no such repository, or you may not use it"),
        (f"hub:{NAME}@v9", {}, f"hub:{NAME}@v9: there is no such branch, tag or commit"),
        ("hub:me/empty", {}, "hub:me/empty: holds no bundle"),
        (f"hub:{NAME}", {"HF_HUB_OFFLINE": "1"}, "not in the cache, and the hub can't be reached"),
        (f"hub:{NAME}", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub can't be reached"),
        ("hub:dives", {}, "'dives' is no repository of the hub: expected USER/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(server, bundle, tmp_path, place, environment, told):
    put(server, bundle)
    server.repositories["me/empty"] = {"main": {"README.md": b"x"}}
    write_video(tmp_path / "dive.mp4", num_frames=20)
    asks = "predict", tmp_path / "dive.mp4", "--bundle", place
    done = run(server, tmp_path / "home", *asks, **environment)
    *before, last = done.stderr.strip().splitlines()
    assert done.returncode == 2 and told in last, done.stderr
    assert all("etry" in line or "refused" in line for line in before)  # huggingface_hub's patience


@pytest.mark.slow
def test_nobody_logged_in_is_one_line(server, bundle, tmp_path):
    done = run(server, tmp_path / "home", "push", bundle, NAME)
    assert done.returncode == 2 and "`hf auth login`" in done.stderr, done.stderr


# ---- repositories of others ----------------------------------------------------------------------


@pytest.fixture
def of_others(server, bundle, tmp_path, monkeypatch):
    """A repository whose files a test may change, and this process's hub."""
    import huggingface_hub

    get = huggingface_hub.hf_hub_download
    cache = {"endpoint": server.address, "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **options: get(*a, **options, **cache)
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    put(server, bundle)
    return server.repositories[NAME]["main"]


def test_what_is_not_listed_is_not_fetched(of_others, server, tmp_path):
    of_others |= {"evil.py": b"raise SystemExit", "config.json": b"{}", "README.md": b"x"}
    loaded = from_hub(NAME)
    assert loaded.class_names == CLASSES
    assert {"evil.py", "config.json", "README.md"}.isdisjoint(server.asked)
    (folder,) = (tmp_path / "home/dsts-bundles/me--dives").iterdir()
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert load_bundle(folder).title == loaded.title


@pytest.mark.parametrize("name", ["evil.py", "../../evil", "/etc/passwd", "x.json"])
def test_names_that_no_export_writes_are_refused_before_anything_is_fetched(
    of_others, server, tmp_path, name
):
    record = json.loads(of_others["bundle.json"])
    record["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    of_others["bundle.json"] = json.dumps(sign(record)).encode()
    with pytest.raises(BundleError, match="names "):
        from_hub(NAME)
    assert set(server.asked) == {"bundle.json"}
    assert not (tmp_path / "home").exists()


def test_a_file_that_is_not_the_one_that_was_exported_is_refused(of_others):
    of_others["head.safetensors"] = b"x" * len(of_others["head.safetensors"])
    with pytest.raises(BundleError, match="head.safetensors: its sha256"):
        from_hub(NAME)


def test_a_new_commit_is_another_bundle_and_the_old_one_stays(of_others, server):
    first = server.find(NAME, "main")[0]
    from_hub(NAME)
    of_others["bundle.json"] = b"{}"
    with pytest.raises(BundleError, match="damaged"):
        from_hub(NAME)
    assert from_hub(NAME, revision=first).class_names == CLASSES
    assert hub.fetch_bundle(NAME, first).name == first
