"""An exported model's files: the model, what it is, how it compared, how long it took.

Enters: a head, or a backbone and a head, with real clips. Leaves: `<name>` (.pt2 or .onnx),
`<name>.json`, and `<name>.data` where an ONNX file would be too large. They appear when the model
was found to equal PyTorch on the clips, `<name>.json` last; if it does not, nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from dsts_pipeline.base.errors import ExportError
from dsts_pipeline.base.files import fsync_directory, sha256_file, unfinished_folder, write_json
from dsts_pipeline.head import DSTSHead, compile_head
from dsts_pipeline.serve.export_check import Comparison, compare, time_runs
from dsts_pipeline.serve.exportable import WholeModel, as_exportable
from dsts_pipeline.serve.exporting import (
    Exportable,
    Run,
    onnx_runner,
    require_onnx,
    save_onnx,
    save_program,
    trace,
)

FileFormat = Literal["onnx", "program"]
FORMAT = "dsts-exported-model"
VERSION = 1
_PACKAGES = {"program": ("torch",), "onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}


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


def whole_subject(backbone: nn.Module, head: nn.Module, frames: Tensor) -> Subject:
    """A backbone and a head, on frames uint8 `[n, T, H, W, 3]`."""
    answer = _reference_of(head)
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
        names = sorted(path.name for path in folder.iterdir())
        sizes = {name: (folder / name).stat().st_size for name in names}
        digests = {name: sha256_file(folder / name) for name in names}
        content = {"format": FORMAT, "version": VERSION, **record, **details}
        content["files"] = {n: {"bytes": sizes[n], "sha256": digests[n]} for n in names}
        content["check"] = comparison.describe()
        content["milliseconds_per_clip"] = {
            "by_batch_size": times,
            "threads": torch.get_num_threads(),
        }
        content["packages"] = {name: version(name) for name in _PACKAGES[file_format]}
        write_json(folder / f"{out.name}.json", content)
        for suffix in (".data", "", ".json"):
            if (folder / (out.name + suffix)).exists():
                os.replace(folder / (out.name + suffix), final[suffix])
        fsync_directory(out.parent)
    return Exported(comparison, times, sum(sizes.values()))


def _save(
    path: Path, subject: Subject, file_format: FileFormat, record: Mapping[str, Any]
) -> tuple[Run, dict[str, Any]]:
    """Write the model's file; how it is run from there, and what it takes and gives."""
    model, inputs = subject.model, subject.inputs
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


def times_table(times: Mapping[str, Mapping[str, float]]) -> Table:
    """Milliseconds per clip, a row per model, a column per batch size."""
    sizes = list(next(iter(times.values())))
    table = Table("milliseconds per clip")
    for size in sizes:
        table.add_column(f"batch {size}", justify="right")
    for name, by_size in times.items():
        table.add_row(name, *(f"{by_size[size]:.2f}" for size in sizes))
    return table
