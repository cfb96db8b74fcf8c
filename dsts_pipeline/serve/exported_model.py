"""An exported model's files: the model, what it is, how it compared, how long it took.

Enters: a head, or a backbone and a head, with real clips. Leaves: `<name>` (.pt2 or .onnx),
`<name>.json`, and `<name>.data` where an ONNX file would be too large. They appear when the model
was found to equal PyTorch on the clips, `<name>.json` last; if it does not, nothing is written.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dsts_pipeline.base.errors import DataError, ExportError, missing_extra
from dsts_pipeline.base.files import (
    fsync_directory,
    sha256_file,
    unfinished_folder,
    write_atomic,
    write_json,
)
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.decode_pool import answer, decode_clip
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head import DSTSHead, compile_head
from dsts_pipeline.serve.bundle import Bundle
from dsts_pipeline.serve.head_graph import (
    ExportableHead,
    JoiningBackbone,
    PlainHead,
    WholeModel,
    as_exportable,
)

FORMAT = "dsts-exported-model"
VERSION = 1
FileFormat = Literal["onnx", "program"]
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Weights beyond this lie in a file of their own: a protobuf message holds 2 GB at most.
ONE_FILE_BYTES = 1_500_000_000
TOLERANCE = 1e-4
BATCH_SIZES = (1, 8)

Exportable = ExportableHead | PlainHead | WholeModel
Run = Callable[[Tensor], tuple[Tensor, ...]]
"""A model as a function: its input to its outputs, on the CPU."""


@dataclass(frozen=True)
class Subject:
    """What is exported, and what it is compared with.

    Attributes:
        model: Its exportable form.
        input_name: "maps" or "frames".
        inputs: Real clips `[n, ...]`, n at least 2.
        reference: PyTorch's own answers: logits, and the routing where there is one.
        beside: What is timed beside the export, by name.
    """

    model: Exportable
    input_name: str
    inputs: Tensor
    reference: Run
    beside: Mapping[str, Run]


@dataclass(frozen=True)
class Exported:
    """What `write_model` found: the comparison, and milliseconds per clip by model and batch."""

    comparison: Comparison
    times: Mapping[str, Mapping[str, float]]
    num_bytes: int


def head_subject(head: nn.Module, maps: Tensor) -> Subject:
    """A head alone, on maps float32 `[n, C, T, H, W]`."""
    beside: dict[str, Run] = {"head, PyTorch": lambda batch: (head(batch),)}
    if isinstance(head, DSTSHead):
        compiled = compile_head(head)
        beside["compiled head, PyTorch"] = lambda batch: (compiled(batch),)
    return Subject(as_exportable(head), "maps", maps, _reference_of(head), beside)


def whole_subject(
    backbone: nn.Module, head: nn.Module, frames: Tensor, *, num_joined: int = 1
) -> Subject:
    """A backbone and a head, on frames uint8 `[n, T, H, W, 3]`; of joined views `[n, S T, ...]`."""
    answer = _reference_of(head)
    if num_joined > 1:
        backbone = JoiningBackbone(backbone, num_joined).eval()
    beside: dict[str, Run] = {
        "backbone alone, PyTorch": lambda batch: (backbone(batch),),
        "backbone and head, PyTorch": lambda batch: (head(backbone(batch)),),
    }
    if isinstance(head, DSTSHead):
        compiled = compile_head(head)
        beside["backbone and compiled head, PyTorch"] = lambda b: (compiled(backbone(b)),)
    model = WholeModel(backbone, as_exportable(head)).eval()
    return Subject(model, "frames", frames, lambda batch: answer(backbone(batch)), beside)


def write_model(
    out: Path,
    subject: Subject,
    file_format: FileFormat,
    record: Mapping[str, Any],
    *,
    seconds: float = 1.0,
) -> Exported:
    """Export `subject` to `out`, compare it with PyTorch, time it, and write down both.

    Args:
        record: What belongs to the model: class names, input, provenance. JSON values; an ONNX
            file holds them, too.
        seconds: Spent on timing each model at each batch size, about.

    Raises:
        ExportError: There is something at `out`, the model cannot be exported, or the exported one
            does not say what PyTorch says.
    """
    final = {suffix: out.with_name(out.name + suffix) for suffix in ("", ".data", ".json")}
    for path in final.values():
        if path.exists():
            raise ExportError(f"{path} exists already; give another name, or delete it first")
    if file_format == "onnx":
        require_onnx()
    with unfinished_folder(out) as folder:
        run, details = _save(folder / out.name, subject, file_format, record)
        comparison = compare(run, subject.reference, subject.inputs)
        label = {"onnx": "this file, onnxruntime", "program": "this program, torch"}[file_format]
        times = time_runs({**subject.beside, label: run}, subject.inputs, seconds=seconds)
        written = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.iterdir())
        }
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        packages = ("torch", *ONNX_PACKAGES) if file_format == "onnx" else ("torch",)
        content = {
            "format": FORMAT,
            "version": VERSION,
            **record,
            **details,
            "files": written,
            "check": asdict(comparison)
            | {"tolerance": {"relative": TOLERANCE, "absolute": TOLERANCE}},
            "milliseconds_per_clip": {"by_batch_size": times, "threads": torch.get_num_threads()},
            "packages": {name: version(name) for name in packages},
        }
        write_json(folder / f"{out.name}.json", content)
        for suffix in (".data", "", ".json"):
            if (folder / (out.name + suffix)).exists():
                os.replace(folder / (out.name + suffix), final[suffix])
        fsync_directory(out.parent)
    return Exported(comparison, times, num_bytes)


def _save(
    path: Path, subject: Subject, file_format: FileFormat, record: Mapping[str, Any]
) -> tuple[Run, dict[str, Any]]:
    """Write the model's file; how it is run from there, and what it takes and gives."""
    model = subject.model
    inputs = subject.inputs
    program = trace(model, inputs.shape[1:], inputs.dtype)
    details: dict[str, Any] = {
        "kind": file_format,
        "inputs": {
            subject.input_name: {
                "type": str(inputs.dtype).removeprefix("torch."),
                "shape": ["batch", *inputs.shape[1:]],
            }
        },
        "outputs": list(model.output_names),
    }
    if file_format == "program":
        save_program(program, path)
        return program.module(), details
    names = model.output_names
    details["opset"] = save_onnx(
        program, path, input_name=subject.input_name, output_names=names, metadata=record
    )
    return onnx_runner(path), details


def _reference_of(head: nn.Module) -> Run:
    """The head in evaluation mode: logits, and the routing where every layer chooses."""

    def answer(maps: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(head, DSTSHead) or not head.layers:
            return (head(maps),)
        logits, records = head(maps, with_records=True)
        choices = [record.choice for record in records]
        return (logits,) if choices[0] is None else (logits, torch.stack(choices, dim=1))

    return answer


# ---- the file: a torch.export program (.pt2) or an ONNX file, with any batch size --------------
#
# Source: torch.export and torch.onnx.export (the exporter by way of onnxscript) of torch's manual.
#
# A .pt2 file is for trusted use: `torch.export.load` unpickles parts of it. Nothing here loads one.
# An ONNX file holds a graph and tensors, no code.


def trace(
    model: Exportable, input_shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> ExportedProgram:
    """The program of `model`, whose batch size is free.

    Args:
        input_shape: Sizes of one input: C, T, H, W of a map; T, H, W, 3 of frames.
        dtype: Of the input.

    Raises:
        ExportError: The model cannot be traced.
    """
    example = torch.zeros(2, *input_shape, dtype=dtype)  # a batch of one would be taken as fixed
    batch = ({0: Dim("batch")},)
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=batch, strict=False)
        except Exception as error:  # torch.export raises whatever the model's own code raises
            raise ExportError(
                f"the model cannot be exported: {_first_line(error)}; export the head alone "
                "(without --whole), or another backbone"
            ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def save_program(program: ExportedProgram, path: str | Path) -> None:
    """Write a .pt2 file, to be loaded by `torch.export.load(path).module()`."""
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content)  # onto a full disk it would end the process
    write_atomic(path, content.getvalue())


def save_onnx(
    program: ExportedProgram,
    path: str | Path,
    *,
    input_name: str,
    output_names: tuple[str, ...],
    metadata: Mapping[str, Any],
) -> int:
    """Write an ONNX file; weights beyond 1.5 GB lie beside it, in `<name>.data`.

    Args:
        metadata: JSON values, kept in the file under the key "dsts".

    Returns:
        The version of ONNX's operator set.

    Raises:
        ExportError: The extra `onnx` is not installed, or an operator has no ONNX form.
    """
    require_onnx()
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                input_names=[input_name],
                output_names=list(output_names),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"the model has no ONNX form: {_first_line(error)}; export the head alone "
                "(without --whole), or --format program"
            ) from error
    assert exported is not None
    shape: Any = exported.model.graph.inputs[0].shape
    exported.rename_axes({shape[0]: "batch"})
    exported.model.metadata_props["dsts"] = json.dumps(metadata, sort_keys=True)
    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    exported.save(path, external_data=num_bytes > ONE_FILE_BYTES)
    return exported.model.opset_imports[""]


def onnx_runner(path: str | Path) -> Run:
    """The model in an ONNX file, run by onnxruntime on the CPU, on as many threads as torch has.

    Raises:
        ExportError: The extra `onnx` is not installed.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[np.ndarray] = session.run(None, {name: inputs.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    return run


def require_onnx() -> None:
    """Refuse to go on without the packages that ONNX needs.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    for name in ONNX_PACKAGES:
        if find_spec(name) is None:
            raise missing_extra(name, "an ONNX file")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, such as on packages that no model here needs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# ---- whether it says what PyTorch says, and how long each takes --------------------------------


@dataclass(frozen=True)
class Comparison:
    """What a comparison with PyTorch found.

    Attributes:
        num_clips: Clips that were compared.
        largest_difference: Of two logits.
        largest_excess: Largest `|a - b| / (1e-4 + 1e-4 |b|)`; up to 1 counts as equal.
        num_routed_differently: Clips for which another neuron was chosen in any layer.
        num_routings: Different routings among the clips; 0 where nothing is routed.
    """

    num_clips: int
    largest_difference: float
    largest_excess: float
    num_routed_differently: int
    num_routings: int


@torch.inference_mode()
def compare(exported: Run, reference: Run, inputs: Tensor, *, batch_size: int = 8) -> Comparison:
    """Run both on `inputs` in batches, the last one smaller, and the first clip also alone.

    Args:
        exported: The exported model.
        reference: PyTorch's, the logits first, then the routing where there is one.
        inputs: At least two clips.

    Raises:
        ExportError: A logit differs by more than 1e-4 + 1e-4 |logit|, or one is not finite.
    """
    spans = [slice(0, 1), *(slice(i, i + batch_size) for i in range(0, len(inputs), batch_size))]
    difference = excess = 0.0
    rerouted = 0
    routings = set[tuple[int, ...]]()
    for number, span in enumerate(spans):
        found = exported(inputs[span])
        expected = reference(inputs[span])
        gap = (found[0].double() - expected[0].double()).abs()
        if not gap.isfinite().all():
            raise ExportError(f"exported logits of clips {span.start} on are not finite")
        difference = max(difference, float(gap.max()))
        allowed = TOLERANCE * (1.0 + expected[0].double().abs())
        excess = max(excess, float((gap / allowed).max()))
        if len(expected) > 1 and number > 0:
            rerouted += int((found[1] != expected[1]).any(dim=1).sum())
            routings |= {tuple(row) for row in expected[1].tolist()}
    result = Comparison(len(inputs), difference, excess, rerouted, len(routings))
    if excess > 1.0 or rerouted:
        raise ExportError(
            f"the exported model differs from PyTorch on {len(inputs)} clips: by up to "
            f"{difference:.2e} in a logit, {excess:.1f} times the tolerance of {TOLERANCE:g}; "
            f"{rerouted} clips are routed differently. Nothing was written; please report it"
        )
    return result


def time_runs(
    runs: Mapping[str, Run],
    inputs: Tensor,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Milliseconds per clip of each of `runs`, by batch size: the median over many calls.

    The models take turns, so that a slow moment of the machine meets all of them.

    Args:
        seconds: How long each model is called at each batch size, about.
    """
    figures: dict[str, dict[str, float]] = {name: {} for name in runs}
    for size in batch_sizes:
        repeats = -(-size // len(inputs))
        batch = inputs.repeat(repeats, *(1 for _ in inputs.shape[1:]))[:size]
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            _measure(run, batch)  # first calls allocate
        slowest = max(_measure(run, batch) for run in runs.values())
        for _ in range(min(200, max(5, int(seconds / slowest)))):
            for name, run in runs.items():
                taken[name].append(_measure(run, batch))
        for name, times in taken.items():
            figures[name][str(size)] = round(1000 * float(np.median(times)) / size, 4)
    return figures


def _measure(run: Run, batch: Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        run(batch)
    return time.perf_counter() - started


def times_table(times: Mapping[str, Mapping[str, float]]) -> Table:
    """Milliseconds per clip, a row per model, a column per batch size."""
    sizes = list(next(iter(times.values())))
    table = Table("milliseconds per clip")
    for size in sizes:
        table.add_column(f"batch {size}", justify="right")
    for name, by_size in times.items():
        table.add_row(name, *(f"{by_size[size]:.2f}" for size in sizes))
    return table


# ---- real clips to compare and time models on, as a head or a backbone sees them ---------------


def read_some(store: FeatureStore, split: str, count: int) -> Tensor:
    """Up to `count` maps of `split`, evenly spread over it.

    Raises:
        StoreError: The store has no row of that split, or a shard is missing or damaged.
    """
    rows = store.rows_of_split(split)
    maps = store.read(rows[_spread(len(rows), count)])
    return torch.from_numpy(maps.astype(np.float32))


def decode_some(bundle: Bundle, index: ClipIndex, split: str, count: int) -> Tensor:
    """The first view of up to `count` clips of `split`, evenly spread over it.

    Frames uint8 `[n, T, H, W, 3]`; of views that are joined all, one after another.

    A clip that cannot be decoded is left out.

    Raises:
        DataError: Fewer than two clips could be decoded.
    """
    plan = ViewPlan(index, bundle.backbone, bundle.views, bundle.decoder, bundle.decoder_fallback)
    numbers = [n for n, clip in enumerate(index.clips) if clip.split == split]
    chosen = [numbers[place] for place in _spread(len(numbers), count)]
    views = range(bundle.num_joined)
    jobs = [plan.job([plan.row(number, view) for view in views]) for number in chosen]
    decoded = [answer(decode_clip, job) for job in jobs]
    frames = [np.concatenate(found.frames) for found in decoded if found.frames is not None]
    if len(frames) < 2:
        reason = next((found.reason for found in decoded if found.frames is None), "there are none")
        raise DataError(
            f"{len(frames)} clips of {split} could be decoded ({reason}), expected at least 2; run "
            "`python cli.py prepare`, or export the head alone (without --whole)"
        )
    return torch.from_numpy(np.stack(frames))


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))
