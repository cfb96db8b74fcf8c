"""`meta_gradient` on toys whose answer is known in closed form, and on a smooth model."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.learn.udl import Method, meta_gradient, meta_gradient_of_parts

ALPHA = 0.3
EXACT: list[Method] = ["exact", "forward_over_reverse"]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", EXACT)
def test_quadratic(method):
    """train = d'Ad/2 + d'Bu, val = |d - c|^2/2 + direct(u): gradient -alpha B'(d_hat - c)."""
    a, b, c, d, u = randn(4, 4), randn(4, 3, seed=1), randn(4, seed=2), randn(4, seed=3), randn(3)
    a = a + a.t()

    def loss(up, down, batch):
        if batch == "train":
            return 0.5 * down["d"] @ a @ down["d"] + down["d"] @ b @ up["u"]
        return 0.5 * (down["d"] - c).square().sum() + 1e6 * up["u"].sum()

    found = meta_gradient(loss, {"u": u}, {"d": d}, "train", "val", ALPHA, method=method)
    ahead = d - ALPHA * (a @ d + b @ u)
    torch.testing.assert_close(found["u"], -ALPHA * b.t() @ (ahead - c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", EXACT)
def test_ridge_regression(method):
    """u = log of the penalty; d_hat = d - alpha (X'(Xd - y)/n + e^u d)."""
    x, y, x_val, y_val = randn(8, 3), randn(8, seed=1), randn(5, 3, seed=2), randn(5, seed=3)
    d, u = randn(3, seed=4), torch.tensor(-0.7, dtype=torch.float64)

    def loss(up, down, batch):
        inputs, targets, penalty = batch
        fit = 0.5 * (inputs @ down["d"] - targets).square().mean()
        return fit + penalty * 0.5 * up["u"].exp() * down["d"].square().sum()

    batches = (x, y, 1.0), (x_val, y_val, 0.0)
    found = meta_gradient(loss, {"u": u}, {"d": d}, *batches, ALPHA, method=method)
    ahead = d - ALPHA * (x.t() @ (x @ d - y) / 8 + u.exp() * d)
    v = x_val.t() @ (x_val @ ahead - y_val) / 5
    torch.testing.assert_close(found["u"], -ALPHA * u.exp() * (d @ v), rtol=1e-12, atol=1e-12)


def smooth_loss(up, down, batch):
    inputs, targets = batch
    hidden = torch.tanh(inputs @ (down["a"] * torch.sigmoid(up["gate"])[:, None]))
    return ((hidden @ down["b"]) * up["scale"].cosh() - targets).square().mean()


def smooth_problem():
    up = {"gate": randn(4, seed=5), "scale": randn(1, seed=6)[0]}
    down = {"a": randn(4, 6, seed=7), "b": randn(6, seed=8)}
    train, val = (randn(9, 4), randn(9, seed=1)), (randn(7, 4, seed=2), randn(7, seed=3))
    return up, down, train, val


def after_step(up, down, train, val, up_hat):
    leaves = {name: value.clone().requires_grad_() for name, value in down.items()}
    grads = torch.autograd.grad(smooth_loss(up, leaves, train), list(leaves.values()))
    ahead = {n: p.detach() - ALPHA * g for (n, p), g in zip(leaves.items(), grads, strict=True)}
    return float(smooth_loss(up_hat, ahead, val))


@pytest.mark.parametrize("method", EXACT)
def test_central_differences_with_the_direct_path_held_constant(method):
    up, down, train, val = smooth_problem()
    found = meta_gradient(smooth_loss, up, down, train, val, ALPHA, method=method)
    for name, value in up.items():
        for index in range(value.numel()):
            sides = []
            for shift in (1e-5, -1e-5):
                moved = {n: v.clone() for n, v in up.items()}
                moved[name].view(-1)[index] += shift
                sides.append(after_step(moved, down, train, val, up))
            numeric = (sides[0] - sides[1]) / 2e-5
            assert found[name].view(-1)[index].item() == pytest.approx(numeric, abs=1e-8)


def test_the_direct_path_contributes_nothing():
    up, down, train, val = smooth_problem()

    def with_direct_path(u, d, batch):
        extra = 1e3 * u["gate"].square().sum() if batch is val else 0.0
        return smooth_loss(u, d, batch) + extra

    plain = meta_gradient(smooth_loss, up, down, train, val, ALPHA)
    other = meta_gradient(with_direct_path, up, down, train, val, ALPHA)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_finite_differences_agree_nearly():
    up, down, train, val = smooth_problem()
    exact = meta_gradient(smooth_loss, up, down, train, val, ALPHA)
    near = meta_gradient(smooth_loss, up, down, train, val, ALPHA, method="finite_difference")
    for name, value in exact.items():
        torch.testing.assert_close(near[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", EXACT)
def test_parts_give_what_the_joined_batch_gives(method):
    up, down, train, val = smooth_problem()
    whole = meta_gradient(smooth_loss, up, down, train, val, ALPHA, method=method)
    cuts = [tuple(part[:6] for part in train), tuple(part[6:] for part in train)]
    parts = meta_gradient_of_parts(
        smooth_loss,
        up,
        down,
        [(cuts[0], 6 / 9), (cuts[1], 3 / 9)],
        [(val, 1.0)],
        ALPHA,
        method=method,
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", EXACT)
def test_the_loss_scale_cancels(method):
    up, down, train, val = smooth_problem()
    plain = meta_gradient(smooth_loss, up, down, train, val, ALPHA, method=method)
    options = {"method": method, "loss_scale": 1024.0}
    scaled = meta_gradient(smooth_loss, up, down, train, val, ALPHA, **options)
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-12, atol=1e-14)


def test_first_order_is_refused_with_the_reason():
    up, down, train, val = smooth_problem()
    with pytest.raises(ValueError, match="exactly zero"):
        meta_gradient(smooth_loss, up, down, train, val, ALPHA, method="first_order")


def test_an_upstream_parameter_without_effect_gets_zero():
    up, down, train, val = smooth_problem()
    found = meta_gradient(smooth_loss, up | {"idle": randn(2)}, down, train, val, ALPHA)
    assert torch.equal(found["idle"], torch.zeros(2, dtype=torch.float64))
