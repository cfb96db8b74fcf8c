"""What is installed and imported: the base, the extras, and what is said where one is missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

import dsts_pipeline
from cli import app
from dsts_pipeline.base.errors import (
    EXTRA_OF,
    LazyExtra,
    MissingExtraError,
    UserError,
    import_extra,
    missing_extra,
)
from tests.feature_store.small_store import write_store

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("dsts_pipeline/**/*.py"), *ROOT.glob("stages/*.py"), ROOT / "cli.py"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where a package is imported under another name than it is installed by.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "google_crc32c": "google-crc32c",
    "hydra": "hydra-core",
    "lightning_fabric": "lightning-fabric",
    "mmaction": "mmaction2",
    "mmcv": "mmcv-lite",
    "ruamel": "ruamel.yaml",
    "vl_convert": "vl-convert-python",
}
BROUGHT_ALONG = {"mlflow": "mlflow-skinny", "torchvision": "timm"}  # by what an extra asks for
OPTIONAL = {"cv2": "used where it is there, else a stand-in"}
# Folders and files that are of an extra as a whole, and import its packages at their top.
OF_EXTRAS = {
    "dsts_pipeline/mmaction2/": {"mmaction2"},
    "dsts_pipeline/report/": {"pipeline"},
    "dsts_pipeline/serve/annotate.py": {"pipeline"},
    "dsts_pipeline/serve/app.py": {"app", "pipeline"},
    "dsts_pipeline/serve/bundle.py": {"pipeline"},
    "dsts_pipeline/stick/": {"pipeline"},
}
BASE = [Requirement(line).name for line in PROJECT["dependencies"]]
EXTRAS = {
    extra: [Requirement(line) for line in lines]
    for extra, lines in PROJECT["optional-dependencies"].items()
}
FOR_DEVELOPMENT = {"test", "dev", "docs", "bench"}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def distribution_of(package: str) -> str:
    return DISTRIBUTIONS.get(package, package)


def packages_at_top(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Packages whose import runs when the file is imported: outside of functions."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield from ((name, node) for name in packages_of(node))
        waiting += ast.iter_child_nodes(node)


def packages_of(node: ast.AST) -> list[str]:
    """The packages of others that an import statement names."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    ours = ("dsts_pipeline", "stages", "cli")
    packages = [name.partition(".")[0] for name in names]
    return [name for name in packages if name not in sys.stdlib_module_names and name not in ours]


# ---- where imports stand -----------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_package_that_is_imported_is_of_the_base_or_of_an_extra(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for package in packages_of(node):
            known = distribution_of(package) in BASE or package in EXTRA_OF or package in OPTIONAL
            assert known, f"line {node.lineno} imports {package}: name its extra in EXTRA_OF"


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_package_of_an_extra_is_imported_where_it_is_used(path):
    own = [extras for start, extras in OF_EXTRAS.items() if shown(path).startswith(start)]
    allowed = set().union(*own)
    for package, node in packages_at_top(ast.parse(path.read_text())):
        if distribution_of(package) not in BASE:
            extra = EXTRA_OF[package]
            assert extra in allowed, f"line {node.lineno} imports {package}, of the extra {extra}"


def test_extras_bring_what_they_are_said_to():
    for package, extra in EXTRA_OF.items():
        names = {requirement.name for requirement in EXTRAS[extra]}
        wanted = BROUGHT_ALONG.get(package) or distribution_of(package)
        assert wanted in names, f"{extra} does not install {wanted}"


def test_the_extra_all_has_every_extra_of_users():
    found = set().union(*(requirement.extras for requirement in EXTRAS["all"]))
    assert found == EXTRAS.keys() - FOR_DEVELOPMENT - {"all"}


# ---- few packages ------------------------------------------------------------------------------


BASE_PACKAGES = "torch,numpy,zarr,pydantic,safetensors,rich,typer,ruamel,packaging"


def run_with(packages: str, code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tests/without.py", packages, code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


HEAD = """
import torch
from dsts_pipeline.head import DSTSHead
head = DSTSHead(8, 3, num_neurons=2, num_layers=1, width=4)
assert head(torch.zeros(4, 8, 2, 3, 3)).shape == (4, 3)
for given in ({"num_neurons": 0}, {"impulse": "all"}, {"width": 1.5}, {"temperature": 0.0}):
    try:
        DSTSHead(8, 3, **given)
    except ValueError as error:
        print(error)
"""
STORE = """
import sys, torch
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.head import DSTSHead, load_head, save_head
store = open_store(sys.argv[1])
head = DSTSHead(store.map_shape[0], 3, num_neurons=2, num_layers=1, width=2).eval()
answers = head(torch.from_numpy(store.read([0, 1])).float())
save_head(sys.argv[2], head)
assert torch.equal(load_head(sys.argv[2])[0](torch.from_numpy(store.read([0, 1])).float()), answers)
"""
TRAINING = """
from dsts_pipeline.base.settings import TrainSettings, UdlSettings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import train_head
feed = FeatureFeed(store, store.rows_of_split("train"))
how = TrainSettings(num_epochs=2, batch_size=4, heldout_fraction=0.0)
assert len(train_head(head, feed, how, UdlSettings())) == 2
"""


def test_the_head_takes_torch_alone():
    # pydantic checks the arguments where it is there; what stands in for it refuses the same.
    alone, with_it = (run_with(names, HEAD) for names in ("torch", "torch,pydantic"))
    assert alone.returncode == with_it.returncode == 0, alone.stderr
    refused, expected = (
        [line.split(";")[0] for line in done.stdout.splitlines()] for done in (alone, with_it)
    )
    assert refused == expected and len(refused) == 4


def test_five_packages_open_a_store(tmp_path):
    store = write_store(tmp_path / "stores")
    code = STORE + TRAINING
    done = run_with("torch,numpy,zarr,pydantic,safetensors", code, str(store), str(tmp_path / "h"))
    assert done.returncode == 0, done.stderr


def test_the_base_imports_all_that_is_of_no_extra():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if not shown(path).startswith(tuple(OF_EXTRAS)) and path.stem not in ("__init__", "cli")
    ]
    code = "import sys\nfor name in sys.argv[1:]: __import__(name)"
    needing = [name for name in names if name.startswith("stages.") or ".serve." in name]
    done = run_with(BASE_PACKAGES, code, *(name for name in names if name not in needing))
    assert done.returncode == 0, done.stderr


# ---- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("prepare",), "pipeline"),
        (("report",), "pipeline"),
        (("predict", "clip.mp4"), "pipeline"),
        (("search",), "search"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(command, extra, tmp_path):
    done = run_with(BASE_PACKAGES, "cli.py", *command)
    assert done.returncode == UserError.exit_status, done.stderr
    assert done.stderr.count("\n") == 1
    command = f'pip install -c constraints.txt "dsts-pipeline[{extra}]"'
    assert done.stderr.endswith(f"not installed: {command}\n")


def test_help_and_show_need_no_extra():
    for arguments in (["--help"], ["show"]):
        done = run_with(BASE_PACKAGES, "cli.py", *arguments)
        assert done.returncode == 0 and not done.stderr


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = "an HDF5 file needs h5py, which is not installed: pip install "
    assert str(missing_extra("h5py", "an HDF5 file")) == f'{told}"dsts-pipeline[pipeline]"'
    (tmp_path / "constraints.txt").touch()  # of a checkout
    pinned = '-c constraints.txt "dsts-pipeline[pipeline]"'
    assert str(missing_extra("h5py", "an HDF5 file")) == told + pinned


def test_an_extra_that_is_used_first_is_imported_then(monkeypatch):
    package = LazyExtra("h5py", "an HDF5 file")
    assert package.File is import_extra("h5py", "x").File
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"an HDF5 file needs h5py.*\[pipeline\]"):
        package.File  # noqa: B018


def test_a_package_that_is_there_and_broken_is_no_missing_one(tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("raise OSError('libray.so: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(UserError, match=r"x needs ray, .* cannot be imported: OSError: libray.so"):
        import_extra("ray", "x")


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_brackets_as_they_are(name):
    text = COMMANDS[name].help + " ".join(
        option.help or "" for option in COMMANDS[name].params if hasattr(option, "help")
    )
    wanted = re.findall(r"\S*\[[^\]]*\]", text.replace("\\[", "["))
    environment = {"COLUMNS": "200", "TERM": "dumb"}
    shown_help = CliRunner().invoke(app, [name, "--help"], env=environment).output
    for words in wanted:
        assert words in shown_help


def test_consoles_take_no_text_for_markup():
    # "[app]" and a file called "[1].mp4" are printed as they are; colours come by styles.
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            given = {keyword.arg for keyword in node.keywords}
            if node.func.id in ("Console", "TextColumn") and (given or node.args):
                assert "markup" in given, f"{shown(path)}:{node.lineno}"


# ---- constraints -------------------------------------------------------------------------------

PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_has_one_pin_that_fits(python):
    environment = {"python_version": python, "python_full_version": f"{python}.9", "extra": ""}
    pins: dict[str, list[str]] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(environment):
            name = re.sub(r"[-_.]+", "-", pin.name).lower()
            pins.setdefault(name, []).append(str(pin.specifier).removeprefix("=="))
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    for requirement in wanted + [line for lines in EXTRAS.values() for line in lines]:
        if requirement.name == "dsts-pipeline":
            continue
        (version,) = pins[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement}: pinned at {version}"


def test_pins_name_no_address():
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_hooks_of_commits_have_the_pinned_ruff():
    (pinned,) = (str(pin.specifier).removeprefix("==") for pin in PINS if pin.name == "ruff")
    assert f"rev: v{pinned}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_version_is_said_alike_everywhere():
    version = PROJECT["version"]
    assert dsts_pipeline.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
