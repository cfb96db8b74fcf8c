"""Exported models: a torch.export program (.pt2) or an ONNX file, with any batch size.

Enters: what `as_exportable` gives, or a `WholeModel`, and the shape of its input. Leaves: a file.
Source: torch.export and torch.onnx.export (the exporter by way of onnxscript) of torch's manual.

A .pt2 file is for trusted use: `torch.export.load` unpickles parts of it. Nothing here loads one.
An ONNX file holds a graph and tensors, no code.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from dsts_pipeline.base.errors import ExportError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.serve.exportable import ExportableHead, PlainHead, WholeModel

Exportable = ExportableHead | PlainHead | WholeModel
Run = Callable[[Tensor], tuple[Tensor, ...]]
"""A model as a function: its input to its outputs, on the CPU."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Weights beyond this lie in a file of their own: a protobuf message holds 2 GB at most.
ONE_FILE_BYTES = 1_500_000_000


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
        ExportError: Naming those that are missing.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX needs {', '.join(missing)}, not installed here; "
            "pip install -c constraints.txt -e '.[onnx]'"
        )


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
