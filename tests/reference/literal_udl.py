"""UDL done literally: differentiate through an explicitly updated copy of d (Eq. 9-10)."""

from __future__ import annotations

import torch


def literal_meta_gradient(loss, upstream, downstream, train_batch, val_batch, alpha):
    """`loss(u, d, batch)` -> scalar. Returns grad by u of `loss(u_hat, d_hat(u); val)`."""
    u = {name: value.detach().clone().requires_grad_() for name, value in upstream.items()}
    d = {name: value.detach().clone().requires_grad_() for name, value in downstream.items()}
    train_loss = loss(u, d, train_batch)
    step = torch.autograd.grad(
        train_loss, list(d.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    d_hat = {name: value - alpha * g for (name, value), g in zip(d.items(), step, strict=True)}
    u_hat = {name: value.detach() for name, value in u.items()}
    val_loss = loss(u_hat, d_hat, val_batch)
    found = torch.autograd.grad(
        val_loss, list(u.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(u, found, strict=True))
