"""The exportable head, its program and its ONNX file say what the head says, routing included."""

from __future__ import annotations

import json
import sys
from itertools import product

import pytest
import torch

from dsts_pipeline.base.errors import ExportError, MissingExtraError
from dsts_pipeline.head import (
    AttentiveProbe,
    ConvBlockHead,
    DSTSHead,
    GSTHead,
    LinearProbe,
    TQNHead,
    compile_head,
)
from dsts_pipeline.serve import exported_model as exporting
from dsts_pipeline.serve.exported_model import (
    compare,
    onnx_runner,
    save_onnx,
    save_program,
    time_runs,
    trace,
)
from dsts_pipeline.serve.head_graph import as_exportable, neighbour_positions
from tests.reference.variants import CHANNELS, CLASSES, EXTENT, VARIANTS, build, sample_input

SHAPE = (CHANNELS, *EXTENT)
ATTRIBUTES = [[str(number // 2), str(number % 2)] for number in range(CLASSES)]
# One of each kind of graph; what differs otherwise decides nothing at test time.
OTHERS = [
    "no-layer",
    "paper",
    "fixed",
    "conv3d",
    "no-synapse",
    "no-synapse-conv3d",
    "no-skip",
    "zero-start",
]
OTHERS += ["no-skip", "zero-start", "residual", "width", "one-neuron", "many-neurons"]


def reference_of(head):
    if isinstance(head, DSTSHead) and head.layers and next(head.dsts_layers()).options.synapse:
        return lambda maps: (head(maps), head.routing(maps))
    return lambda maps: (head(maps),)


def single(name):
    """A variant and maps in float32."""
    head, _ = build(name)
    return head.float().eval(), sample_input(samples=19)[0].float()


@pytest.mark.parametrize("name", VARIANTS)
def test_exportable_form_equals_the_head(name):
    head, _ = build(name)
    head.eval()
    maps, _ = sample_input(samples=9)
    for batch in (maps, maps[:1]):
        found, expected = as_exportable(head)(batch), reference_of(head)(batch)
        assert len(found) == len(expected)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
        assert all(torch.equal(*pair) for pair in zip(found[1:], expected[1:], strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_exportable_form_equals_the_compiled_head_in_single_precision(name):
    head, maps = single(name)
    found = as_exportable(head)(maps)[0]
    torch.testing.assert_close(found, head(maps), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, compile_head(head)(maps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [-1.0, 1.0])
def test_an_operator_that_no_neuron_uses(gate):
    head, maps = single("paper")
    with torch.no_grad():
        for layer in head.dsts_layers():
            layer.gate_logits.fill_(gate)
    found, routing = as_exportable(head)(maps)
    torch.testing.assert_close(found, head(maps), rtol=1e-5, atol=1e-5)
    assert torch.equal(routing, head.routing(maps))


def test_neighbours_are_those_of_a_convolution():
    grid, extent = (3, 2, 4), (3, 3, 3)
    found = torch.tensor(neighbour_positions(grid, extent)).view(*grid, 27)
    for t, y, x in product(*map(range, grid)):
        for tap, (dt, dy, dx) in enumerate(product((-1, 0, 1), repeat=3)):
            at = (t + dt, y + dy, x + dx)
            inside = all(0 <= i < size for i, size in zip(at, grid, strict=True))
            assert found[t, y, x, tap] == ((at[0] * 2 + at[1]) * 4 + at[2] if inside else 24)


def check_files(head, maps, folder):
    """Export both forms of `head`, compare the files' answers, return the ONNX comparison."""
    exportable, reference = as_exportable(head), reference_of(head)
    program = trace(exportable, maps.shape[1:])
    save_program(program, folder / "head.pt2")
    # Only in a test, of the file just written: loading a .pt2 may run code.
    loaded = torch.export.load(folder / "head.pt2").module()
    compare(loaded, reference, maps)
    names = exportable.output_names
    metadata = {"classes": ["a", "b"]}
    save_onnx(
        program, folder / "head.onnx", input_name="maps", output_names=names, metadata=metadata
    )
    return compare(onnx_runner(folder / "head.onnx"), reference, maps)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The house's default variant as files, and how its ONNX file compared with the head."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, check_files(*single("house-default"), folder)


@pytest.mark.slow
def test_files_equal_the_head(exported):
    _, found = exported
    assert found.num_clips == 19 and found.largest_excess < 0.1
    # The dynamic choice: samples of one batch go different ways, and each answer is its own.
    assert found.num_routings > 1


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_variants_equal_the_head(name, tmp_path):
    head, maps = single(name)
    found = check_files(head, maps, tmp_path)
    assert found.largest_excess < 0.1
    if "routing" in as_exportable(head).output_names and head.config["num_neurons"] > 1:
        assert found.num_routings > 1


@pytest.mark.long
@pytest.mark.parametrize(
    "head",
    [
        LinearProbe(CHANNELS, CLASSES),
        AttentiveProbe(CHANNELS, CLASSES, readout_heads=2, readout_depth=2),
        ConvBlockHead(CHANNELS, CLASSES, num_parameters=500),
        GSTHead(CHANNELS, CLASSES, num_layers=1, width=4),
        TQNHead(CHANNELS, CLASSES, attributes=ATTRIBUTES, num_layers=1, readout_heads=2),
    ],
    ids=lambda head: type(head).__name__,
)
def test_files_of_baselines_equal_them(head, tmp_path):
    check_files(head.eval(), single("paper")[1], tmp_path)


@pytest.mark.slow
def test_file_names_inputs_and_no_folder_of_this_machine(exported, repository):
    import onnxruntime

    folder, _ = exported
    session = onnxruntime.InferenceSession(folder / "head.onnx")
    (given,), outputs = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("maps", "tensor(float)")
    assert given.shape == ["batch", *SHAPE]
    assert [(output.name, output.shape) for output in outputs] == [
        ("logits", ["batch", CLASSES]),
        ("routing", ["batch", 2]),
    ]
    kept = json.loads(session.get_modelmeta().custom_metadata_map["dsts"])
    assert kept == {"classes": ["a", "b"]}
    for file in ("head.onnx", "head.pt2"):
        content = (folder / file).read_bytes()
        assert str(repository).encode() not in content
        assert b"site-packages" not in content and sys.prefix.encode() not in content


def test_a_difference_is_an_error_that_states_it():
    head, maps = single("house-default")
    reference = reference_of(head)

    def off(batch):
        logits, routing = reference(batch)
        return logits + 0.01, routing

    with pytest.raises(ExportError, match=r"by up to 1\.00e-02 in a logit, .* 0 clips are routed"):
        compare(off, reference, maps)


def test_another_route_is_an_error_that_counts_clips():
    head, maps = single("house-default")
    reference = reference_of(head)

    def rerouted(batch):
        logits, routing = reference(batch)
        routing = routing.clone()
        routing[0] += 1
        return logits, routing

    # Batches of 8, 8 and 3 clips: the first of each.
    with pytest.raises(ExportError, match="3 clips are routed differently"):
        compare(rerouted, reference, maps)


def test_logits_that_are_not_finite_are_an_error():
    head, maps = single("no-layer")

    def broken(batch):
        return (head(batch) * float("nan"),)

    with pytest.raises(ExportError, match="not finite"):
        compare(broken, reference_of(head), maps)


def test_missing_packages_are_named_with_their_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(
        exporting, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(MissingExtraError, match=r"needs onnxscript, .*\[onnx\]"):
        onnx_runner(tmp_path / "head.onnx")


def test_what_cannot_be_traced_is_an_error_in_a_line():
    class Branching(torch.nn.Module):
        output_names = ("logits",)

        def forward(self, x):
            return (x.mean(dim=(2, 3, 4)) if x.sum() > 0 else x[:, :, 0, 0, 0],)

    with pytest.raises(ExportError, match="cannot be exported: .*; export the head alone"):
        trace(Branching(), SHAPE)


def test_times_are_per_clip_at_each_batch_size():
    head, maps = single("house-default")
    times = time_runs({"head": reference_of(head)}, maps[:3], seconds=0.01)
    assert set(times["head"]) == {"1", "8"} and min(times["head"].values()) > 0
