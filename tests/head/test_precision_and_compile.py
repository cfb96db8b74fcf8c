"""Half precision and torch.compile."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.head import DSTSHead

OPTIONS = {"num_neurons": 3, "num_layers": 2, "impulse": "standardized", "impulse_spread": 3.0}


@pytest.mark.parametrize("estimator", ["dense", "selected"])
@pytest.mark.parametrize("specialization", ["gated", "conv3d"])
@pytest.mark.parametrize("width", [None, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(estimator, specialization, width, dtype):
    torch.manual_seed(0)
    options = {**OPTIONS, "specialization": specialization, "width": width, "num_neurons": 1}
    head = DSTSHead.paper(8, 4, routing_gradient=estimator, **options)
    maps, labels = torch.randn(16, 8, 3, 4, 4), torch.arange(16) % 4
    noise = head.draw_noise(16)
    gradients = []
    for enabled in (False, True):
        head.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            logits = head(maps, noise, first_order=True)
        F.cross_entropy(logits.float(), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
    for layer in head.dsts_layers():
        assert all(buffer.dtype == torch.float32 for buffer in layer.buffers())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["evaluation", "dense", "selected"])
def test_captured_whole_by_dynamo(mode):
    """One graph, no break; the eager backend keeps the test free of a compiler."""
    torch.manual_seed(0)
    estimator = "dense" if mode == "evaluation" else mode
    head = DSTSHead.paper(8, 4, routing_gradient=estimator, **OPTIONS)
    head.train(mode != "evaluation")
    maps = torch.randn(6, 8, 3, 4, 4)
    noise = head.draw_noise(6)
    options = {"update_statistics": False, "first_order": True}
    eager = head(maps, noise, **options)
    compiled = torch.compile(head, backend="eager", fullgraph=True)(maps, noise, **options)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    if head.training:
        wanted = torch.autograd.grad(eager.square().sum(), list(head.parameters()))
        found = torch.autograd.grad(compiled.square().sum(), list(head.parameters()))
        for first, second in zip(found, wanted, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_channels_last_maps_give_the_same():
    head = DSTSHead.paper(8, 4, **OPTIONS).eval()
    maps = torch.randn(6, 8, 3, 4, 4)
    torch.testing.assert_close(head(maps.to(memory_format=torch.channels_last_3d)), head(maps))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_compiled_by_inductor(training, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    options = OPTIONS | {"num_layers": 1}
    head = DSTSHead.paper(8, 4, routing_gradient="selected", **options).train(training)
    maps, noise = torch.randn(6, 8, 3, 4, 4), head.draw_noise(6)
    settings = {"update_statistics": False, "first_order": True}
    torch._dynamo.reset()
    eager = head(maps, noise, **settings)
    compiled = torch.compile(head, fullgraph=True)(maps, noise, **settings)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    if training:
        wanted = torch.autograd.grad(eager.square().sum(), list(head.parameters()))
        found = torch.autograd.grad(compiled.square().sum(), list(head.parameters()))
        for first, second in zip(found, wanted, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["dense", "selected"])
def test_autocast_on_a_gpu(estimator, dtype):
    torch.manual_seed(0)
    head = DSTSHead.paper(8, 4, routing_gradient=estimator, **(OPTIONS | {"num_neurons": 1})).cuda()
    maps, labels = torch.randn(16, 8, 3, 4, 4).cuda(), (torch.arange(16) % 4).cuda()
    noise, gradients = head.draw_noise(16), []
    for enabled in (False, True):
        head.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=enabled):
            logits = head(maps, noise, first_order=True)
        F.cross_entropy(logits.float(), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    assert torch.isfinite(gradients[1]).all()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
