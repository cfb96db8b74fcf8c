"""Files that appear whole or not at all, and their digests."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, strategies

from dsts_pipeline.base import files
from dsts_pipeline.base.errors import BusyError, DataError
from tests.mounts import can_mount, in_mount
from tests.pipeline import ROOT


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.bin"
    files.write_atomic(path, b"one")
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.bin"]


def test_write_atomic_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "b.bin"
    files.write_atomic(path, b"old")

    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.bin"]


def test_equal_values_give_equal_bytes(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, "ä"]})
    files.write_json(tmp_path / "y.json", {"a": [1.5, "ä"], "b": 1})
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    assert files.read_json(tmp_path / "x.json") == {"a": [1.5, "ä"], "b": 1}


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def plain(cell: str) -> str:
    """The text of a cell, as the documentation says it."""
    return re.sub(r"(^|[;\t\r\n])'", r"\1", cell)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "a;=1", "a\n@b"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_table_begins_a_formula(text):
    written = files.csv_text(("a", "b"), [(text, -1.5), ("plain, text", 2)])
    # Wherever a spreadsheet may part cells: at commas, or at semicolons, tabs and lines.
    (head, row, other) = csv.reader(io.StringIO(written, newline=""))
    assert (head, other) == (["a", "b"], ["plain, text", "2"])
    assert row[1] == "-1.5" and plain(row[0]) == text
    for piece in re.split(r"[;\t\r\n]", row[0]):
        assert not piece.strip() or piece.strip()[0] not in "=+-@＝＋－＠"


@given(strategies.text(strategies.sampled_from("=+-@＝'; \t\r\n,\"ab"), max_size=12))
def test_texts_of_a_table_come_back(text):
    written = files.csv_text(("a",), [(text,)])
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert plain(rows[1][0] if rows[1] else "") == text
    if re.fullmatch('[ab, "]*', text):
        assert rows[1] == [text] or not text


def test_read_json_accepts_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_read_json_names_a_damaged_file(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match="x.json: not a JSON file"):
        files.read_json(tmp_path / "x.json")


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="x.json: no such file"):
        files.read_json(tmp_path / "x.json")


def test_digests(tmp_path):
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": "1"})


# ---- a disk that takes no more ------------------------------------------------------------------

FULL = """
import json, sys
from pathlib import Path
from dsts_pipeline.base import files
folder, told = Path(sys.argv[1]), {}
files.write_atomic(folder / "old", b"x" * 100_000)
def attempt(name, action):
    try:
        action()
    except OSError as error:
        told[name] = [error.errno, error.filename, error.strerror]
def stream():
    with files.open_atomic(folder / "stream.bin") as file:
        for _ in range(100):
            file.write(b"x" * 10_000)
def other():
    with files.open_atomic(folder / "b"):
        raise OSError(28, "No space left on device", "another.bin")
attempt("content", lambda: files.write_atomic(folder / "new" / "big.bin", b"x" * 500_000))
attempt("json", lambda: files.write_json(folder / "big.json", "y" * 500_000))
attempt("stream", stream)
attempt("other", other)
attempt("over", lambda: files.write_atomic(folder / "old", b"x" * 500_000))
left = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*.*")}
print(json.dumps([told, left, (folder / "old").stat().st_size]))
"""


def test_a_full_disk_is_told_with_path_and_bytes(tmp_path):
    if not can_mount(tmp_path / "probe"):
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    folder = tmp_path / "full"
    done = in_mount("size=300k", FULL, str(folder))
    assert done.returncode == 0, done.stderr
    told, left, size = json.loads(done.stdout)
    full, free = "No space left on device", r"20\d\.\d kB are free\)"
    for name, path, wanted in [
        ("content", "new/big.bin", "500.0 kB wanted"),
        ("json", "big.json", "500.0 kB wanted"),
        ("stream", "stream.bin", r"more than \d+\.\d kB wanted"),
        ("over", "old", "500.0 kB wanted"),
    ]:
        number, where, reason = told[name]
        assert number == errno.ENOSPC and where == str(folder / path)
        assert re.fullmatch(rf"{full} \({wanted}, {free}", reason), reason
    assert told["other"] == [errno.ENOSPC, "another.bin", full]
    assert not left and size == 100_000, "the old file, and no rest"


def test_a_folder_that_takes_nothing_is_told_by_the_files_own_name(tmp_path):
    if not can_mount(tmp_path / "probe"):
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    program = (
        "import sys\nfrom dsts_pipeline.base import files\n"
        "try:\n    files.write_atomic(sys.argv[1] + '/a.bin', b'x')\n"
        "except OSError as error:\n    print(error.filename, error.strerror, sep=': ')\n"
    )
    done = in_mount("size=1m,ro", program, str(tmp_path / "ro"))
    assert done.stdout == f"{tmp_path}/ro/a.bin: Read-only file system\n", done.stderr


def test_free_space_of_a_folder_that_is_yet_to_be_made(tmp_path):
    assert re.fullmatch(r"[\d.,]+ (bytes|[kMGT]B) are free", files.tell_free(tmp_path / "a" / "b"))


# ---- digests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{"a": [1.5, None]}, {"n": {2: "b", 10: "a"}}, {}])
def test_what_is_signed_and_read_again_holds(tmp_path, content):
    path = tmp_path / "x.json"
    files.write_json(path, files.sign(content))
    assert files.read_signed(path).keys() == {*content, "digest"}
    assert files.is_signed(files.read_json(path))


def test_a_signed_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, files.sign({"top1": 0.5}))
    for found in (b"0.6", b"NaN"):
        changed = path.read_bytes().replace(b"0.5", found)
        (tmp_path / "y.json").write_bytes(changed)
        with pytest.raises(DataError, match="its digest does not hold"):
            files.read_signed(tmp_path / "y.json")
    files.write_json(tmp_path / "old.json", {"top1": 0.5})
    assert files.read_signed(tmp_path / "old.json") == {"top1": 0.5}


def test_json_too_deep_to_read_is_told(tmp_path):
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="not a JSON file"):
        files.read_json(tmp_path / "x.json")


# ---- processes that are killed, and those that live ---------------------------------------------

_WRITER = """
import sys, time
from dsts_pipeline.base import files
kind, path = sys.argv[1:]
make = {"file": files.open_atomic, "folder": files.unfinished_folder,
        "hold": lambda p: files.hold_alone(p, "train-head")}[kind]
with make(path):
    print("in", flush=True)
    time.sleep(600)
"""


@contextmanager
def writing(kind, path):
    """A process that is in the middle of it; killed in the end, if it was not before."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, kind, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_left_overs_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path, kind):
    path = tmp_path / "out"
    with writing(kind, path):
        pass
    (dead,) = tmp_path.iterdir()
    with writing(kind, path):
        (alive,) = set(tmp_path.iterdir()) - {dead}
        others = [
            tmp_path / name for name in (".out.onnx.abcdefgh.tmp", ".out.mine.tmp", "out.tmp")
        ]
        for other in others:
            other.write_bytes(b"")
        files.remove_left_overs(path)
        assert set(tmp_path.iterdir()) == {alive, *others}
    files.remove_left_overs(path)
    assert set(tmp_path.iterdir()) == set(others)


def test_an_unfinished_folder_leaves_nothing_when_it_fails(tmp_path):
    with pytest.raises(RuntimeError), files.unfinished_folder(tmp_path / "out") as folder:
        (folder / "part").write_bytes(b"x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one_process_and_a_killed_one_holds_nothing(tmp_path):
    heads = tmp_path / "outputs" / "heads"
    with writing("hold", heads) as first:
        for _ in range(2):
            with pytest.raises(BusyError) as refusal, files.hold_alone(heads, "evaluate"):
                pass
            assert f"{heads}: train-head, process {first.pid} on " in str(refusal.value)
        with files.hold_alone(tmp_path / "outputs" / "finetuned", "finetune"):
            pass
    with files.hold_alone(heads, "evaluate"):  # the first was killed
        pass
    assert not list((tmp_path / "outputs").iterdir())


def test_holding_leaves_no_folder_that_was_not_there(tmp_path):
    with files.hold_alone(tmp_path / "outputs" / "heads", "evaluate"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_holder_deleted_is_no_lock(tmp_path, monkeypatch):
    """Opened before the holder deleted it, locked after: another process has a new file by then."""
    heads, opened = tmp_path / "heads", []
    open_file = os.open

    def open_and_lose(path, *arguments):
        descriptor = open_file(path, *arguments)
        if not opened:
            os.unlink(path)
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with files.hold_alone(heads, "evaluate"):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), os.stat(tmp_path / ".heads.lock"))
