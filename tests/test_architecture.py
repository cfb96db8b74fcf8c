"""The layout keeps its shape: imports, the pipeline's declared inputs, settings, start-up time."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import time
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dsts_pipeline.base.params import load_settings, section_of, setting_keys, settings_as_yaml
from dsts_pipeline.base.settings import (
    BackboneSettings,
    DatasetSettings,
    FeedSettings,
    HeadSettings,
    Section,
    Settings,
    UdlSettings,
)
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.feed import EpochSampler, FeatureFeed
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.dsts import NOT_OF_DSTS
from dsts_pipeline.learn import meta_gradient
from tests.imports import closure_of, file_of, imports_of, statements_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dsts_pipeline"
FOLDERS = (  # in the order of imports
    "base clips extract feature_store feed head learn stick metrics report serve mmaction2"
).split()
FORMER_ADDRESSES = {PACKAGE / "serve" / "mmaction2.py"}  # they only lead to where a thing is now
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "stages").rglob("*.py")), ROOT / "cli.py"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "mlflow": "mlflow-skinny",
    "mmaction": "mmaction2",
    "mmcv": "mmcv-lite",
    "ruamel": "ruamel.yaml",
    "sklearn": "scikit-learn",
    "vl_convert": "vl-convert-python",
}  # where the names of package and distribution differ


def load_yaml(name: str):
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text())


MAIN_STAGES = load_yaml("dvc.yaml")["stages"]
EXTRA_STAGES = load_yaml("extra/dvc.yaml")["stages"]  # beside the default run
STAGES = MAIN_STAGES | EXTRA_STAGES


def folder_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts if path.is_relative_to(PACKAGE) else ()
    return parts[0] if len(parts) > 1 else None


# What decides messages and wiring but no result: a change there reruns nothing.
WIRING = {
    PACKAGE / "__init__.py",
    ROOT / "stages" / "__init__.py",
    PACKAGE / "base" / "__init__.py",
}
# Of settings, the values are tracked, as params.
WIRES = (
    "errors.py",
    "progress.py",
    "children.py",
    "transfers.py",
    "hub.py",
    "settings.py",
    "plain_sections.py",
    "params.py",
)
WIRING |= {PACKAGE / "base" / name for name in WIRES}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- imports ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted({*MODULES} - FORMER_ADDRESSES), ids=shown)
def test_imports_go_upwards_only(path):
    own = folder_of(path)
    if own is None:
        return
    allowed = set(FOLDERS[: FOLDERS.index(own) + 1]) | {None}
    for used in imports_of(path, ROOT):
        assert used.is_relative_to(PACKAGE), f"{shown(path)} imports {shown(used)}"
        assert folder_of(used) in allowed, f"{shown(path)} imports {shown(used)}"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=shown)
def test_stages_import_nothing_of_each_other_but_what_they_share(path):
    shared = {ROOT / "stages" / name for name in ("__init__.py", "common.py")}
    used = {used for used in imports_of(path, ROOT) if used.is_relative_to(ROOT / "stages")}
    assert used <= shared, f"{shown(path)} imports {', '.join(map(shown, used - shared))}"


def edges_of(path: Path) -> set[Path]:
    """What `path` imports; packages that it lies in only where it takes a name of theirs.

    Python runs these before it anyway.
    """
    around = {folder / "__init__.py" for folder in path.parents}
    named = {
        file_of(module, ROOT)
        for module, name in statements_of(path, ".".join(path.relative_to(ROOT).parts[:-1]))
        if name and not file_of(f"{module}.{name}", ROOT)
    }
    return imports_of(path, ROOT) - (around - named)


def test_imports_make_no_circle():
    try:
        TopologicalSorter({path: edges_of(path) for path in SOURCES}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(map(shown, reversed(error.args[1]))))


def test_nothing_but_the_command_line_imports_stages():
    others = [path for folder in ("benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    for path in [*MODULES, *others]:
        for module, _ in statements_of(path, ".".join(path.relative_to(ROOT).parts[:-1])):
            assert module.split(".")[0] not in ("stages", "cli"), f"{shown(path)}: {module}"


def test_every_folder_has_its_place_in_the_order():
    assert {folder_of(path) for path in MODULES} - {None} == set(FOLDERS)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("module", ["cli", "dsts_pipeline.clips.index"])
def test_is_free_of_torch(module):
    assert run_python(f"import sys, {module}; print('torch' in sys.modules)") == "False\n"


def test_base_is_free_of_torch():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES]
    base = ", ".join(n for n in names if n.startswith("dsts_pipeline.base.") and "__" not in n)
    assert run_python(f"import sys, {base}; print('torch' in sys.modules)") == "False\n"


def test_page_takes_of_the_report_its_strips_alone():
    code = "import sys, dsts_pipeline.serve.app; print(*sorted(sys.modules))"
    loaded = {name for name in run_python(code).split() if name.startswith("dsts_pipeline.report.")}
    assert loaded == {"dsts_pipeline.report.previews"}


def test_help_answers_in_half_a_second():
    def measure(*arguments: str) -> float:
        start = time.perf_counter()
        run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True)
        assert run.returncode == 0
        return time.perf_counter() - start

    # The best of several: other tests run beside this one. On a slow or busy machine, where Typer's
    # own imports take that long, twice their time (torch alone would be far more).
    libraries = "import typer.rich_utils, rich.markdown, rich.columns, rich.traceback"
    bare, ours = (
        min(measure(*arguments) for _ in range(5))
        for arguments in (("-c", libraries), ("cli.py", "--help"))
    )
    assert ours < max(0.5, 2 * bare), f"{ours:.2f} s, Typer and rich alone {bare:.2f} s"


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for names in extras for name in names)]
    declared = {re.split(r"[<>=!~\[ ]", name)[0].lower().replace("_", "-") for name in wanted}
    for path in SOURCES:
        for module, _ in statements_of(path, ".".join(path.relative_to(ROOT).parts[:-1])):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("dsts_pipeline", "stages", "cli"):
                continue
            name = DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
            assert name in declared, f"{shown(path)} imports {top}: declare {name}"


# ---- the pipeline -----------------------------------------------------------------------------


# The functions of stages; where a file is named as the stage is, its function `run`.
ENTRIES = {"pretrain-backbone": ("finetune", "pretrain_backbone")}


def entry_of(name: str) -> tuple[str, str]:
    return ENTRIES.get(name, (name.replace("-", "_"), "run"))


def stage_file(name: str) -> Path:
    return ROOT / "stages" / f"{entry_of(name)[0]}.py"


def definitions_of(path: Path) -> dict[str, ast.AST]:
    """Functions and classes at the top of a file, by name."""
    tree = ast.parse(path.read_text())
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def reached_from(path: Path, function: str) -> list[ast.AST]:
    """The definitions of a file that a function of it uses, directly or by others; itself, too."""
    known = definitions_of(path)
    reached, waiting = {function}, [function]
    while waiting:
        nodes = ast.walk(known[waiting.pop()])
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        new = names & known.keys() - reached
        reached |= new
        waiting += new
    return [known[name] for name in sorted(reached)]


def sections_read_in(node: ast.AST) -> set[str]:
    """Sections of the settings: of `settings` itself, or of what holds them as `settings`."""

    def is_settings(value: ast.AST) -> bool:
        return "settings" in (getattr(value, "id", None), getattr(value, "attr", None))

    found = (child for child in ast.walk(node) if isinstance(child, ast.Attribute))
    return {child.attr for child in found if is_settings(child.value)}


def stages_run_by(command: str) -> set[str]:
    """What a command names in its calls of `run_stage`."""
    definition = definitions_of(ROOT / "cli.py")[command]
    calls = [node for node in ast.walk(definition) if isinstance(node, ast.Call)]
    return {
        call.args[0].value  # type: ignore[attr-defined]
        for call in calls
        if getattr(call.func, "id", None) == "run_stage"
    }


@pytest.mark.parametrize("name", STAGES)
def test_stage_runs_the_command_of_its_name(name):
    assert STAGES[name]["cmd"] == f"python cli.py {name}"
    file, function = entry_of(name)
    expected = file if function == "run" else f"{file}.{function}"
    assert expected in stages_run_by(name.replace("-", "_"))


@pytest.mark.parametrize("name", EXTRA_STAGES)
def test_stage_beside_the_default_run_starts_in_the_root(name):
    assert EXTRA_STAGES[name]["wdir"] == ".." and name not in MAIN_STAGES


@pytest.mark.parametrize("name", STAGES)
def test_stage_lists_the_code_that_it_uses(name):
    used = closure_of(stage_file(name), ROOT) - WIRING
    listed = [ROOT / dep for dep in STAGES[name]["deps"] if dep.startswith(("dsts_", "stages/"))]
    for path in used:
        covering = [dep for dep in listed if path == dep or path.is_relative_to(dep)]
        assert covering, f"stage {name} uses {shown(path)}: list it in dvc.yaml"
    for dep in listed:
        serving = [path for path in used if path == dep or path.is_relative_to(dep)]
        assert serving, f"stage {name} lists {shown(dep)} and uses nothing of it"


# Sections that decide a warning on the terminal and nothing that the stage leaves behind.
WARNED_OF = {"prepare": {"seed", "head", "train", "udl"}}


@pytest.mark.parametrize("name", STAGES)
def test_stage_lists_the_settings_that_it_uses(name):
    reached = reached_from(stage_file(name), entry_of(name)[1])
    used = set().union(*(sections_read_in(node) for node in reached))
    listed = {param.split(".")[0] for param in STAGES[name].get("params", [])}
    assert used - WARNED_OF.get(name, set()) == listed


@pytest.mark.parametrize("name", ["prepare", "extract"])
def test_settings_of_later_stages_never_reach_the_costly_ones(name):
    later = {"seed", "head", "udl", "train", "evaluate", "report"}
    assert not later & {param.split(".")[0] for param in STAGES[name]["params"]}


def test_prepare_lists_all_of_the_data_set_but_the_folds():
    # Folds deal the clips of a store: no video need be looked at again for them.
    params = STAGES["prepare"]["params"]
    listed = [param.removeprefix("dataset.") for param in params if param.startswith("dataset.")]
    assert {*listed} == DatasetSettings.model_fields.keys() - {"num_folds", "fold"}


# ---- settings ---------------------------------------------------------------------------------


def compose(*overrides: str) -> dict:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = hydra_compose("config", overrides=list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def test_params_file_is_what_the_groups_compose_to():
    assert compose() == load_yaml("params.yaml")


def test_params_file_says_what_each_key_is():
    # A key's meaning is the text below it in its section; `make params` writes it here.
    settings = load_settings(ROOT / "params.yaml")
    assert (ROOT / "params.yaml").read_text() == settings_as_yaml(settings), "run `make params`"


def test_defaults_in_code_are_those_of_the_first_head():
    # Files of earlier releases lack later keys, and mean what they meant: `head=dsts`.
    options = load_yaml("configs/head/dsts.yaml")
    assert HeadSettings().model_dump(mode="json") == options


def sections(model: type[Section] = Settings) -> set[type[Section]]:
    parts = {section_of(model, name) for name in model.model_fields} - {None}
    return parts.union(*(sections(part) for part in parts))


def test_every_key_says_what_it_is():
    lines = [line for line in (ROOT / "params.yaml").read_text().splitlines() if "- " not in line]
    assert len(lines) == len(list(setting_keys()))
    for line in lines:
        assert re.fullmatch(r" *\w+:( .+)? # .{8,}", line), line


def test_a_default_is_stated_once_or_inherited():
    # A section that inherits a key may give it another default, nothing else.
    for section in sections():
        for name in section.__annotations__.keys() & section.model_fields.keys():
            own = section.model_fields[name]
            for base in section.__mro__[1:]:
                if (known := getattr(base, "model_fields", {}).get(name)) is not None:
                    assert (own.annotation, own.metadata) == (known.annotation, known.metadata)
                    assert own.description is None, f"{section.__name__}.{name} says it again"
                    assert known.is_required(), f"{section.__name__}.{name} has two defaults"


# Public constructors and functions, with the section whose keys their arguments are.
SIGNATURES = [
    (DSTSHead, HeadSettings),
    (EpochSampler, FeedSettings),
    (FeatureFeed, FeedSettings),
    (meta_gradient, UdlSettings),
    (DecodePool, BackboneSettings),
]


@pytest.mark.parametrize(("called", "section"), SIGNATURES)
def test_defaults_of_a_signature_are_those_of_its_section(called, section):
    given = inspect.signature(called).parameters
    same = [name for name in given if name in section.model_fields]
    for name in same:
        assert given[name].default == section.model_fields[name].default, name


def test_arguments_of_the_head_are_the_keys_of_its_section():
    names = set(inspect.signature(DSTSHead).parameters) - {"in_channels", "num_classes"}
    assert names == HeadSettings.model_fields.keys() - NOT_OF_DSTS


def test_the_papers_head_is_the_group_of_that_name():
    head = HeadSettings.model_validate_json(json.dumps(compose("head=paper")["head"]))
    found = DSTSHead.paper(8, 3).config
    assert found == DSTSHead.from_settings(8, 3, head).config
    assert DSTSHead.paper(8, 3, width=4, impulse="mean").config["width"] == 4


def group_options() -> list[str]:
    options = sorted((ROOT / "configs").glob("*/*.yaml"))
    return [f"{path.parent.name}={path.stem}" for path in options]


@pytest.mark.parametrize("option", group_options())
def test_every_option_of_a_group_is_valid(option, tmp_path):
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(compose(option), file)
    load_settings(tmp_path / "params.yaml")


# ---- repetition -------------------------------------------------------------------------------

RUN = 6  # equal lines in a row that are one thing said twice
EXPLAINED: dict[frozenset[str], str] = {}


def told_lines(path: Path) -> list[str]:
    """Lines of code, not indented; docstrings, comments, imports and blank lines left out."""
    text = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [line for n, line in lines if line and n not in left_out and not line.startswith("#")]


def test_no_run_of_lines_stands_in_two_files():
    where: dict[tuple[str, ...], set[str]] = {}
    for path in MODULES:
        lines = told_lines(path)
        for start in range(len(lines) - RUN + 1):
            run = tuple(lines[start : start + RUN])
            if sum(len(line) > 3 for line in run) == RUN:  # brackets alone say nothing
                where.setdefault(run, set()).add(shown(path))
    twice = {run: files for run, files in where.items() if len(files) > 1}
    found = {frozenset(files): run for run, files in twice.items()}
    unexplained = {files: run for files, run in found.items() if files not in EXPLAINED}
    told = [f"{sorted(files)}: {' | '.join(run)}" for files, run in unexplained.items()]
    assert not told, "\n".join(told)
    assert EXPLAINED.keys() <= found.keys(), "explained, but there no more"
