"""The DSTS head in the order of the paper's equations: N separate neurons, masked inputs.

Takes parameters and buffers as dictionaries under the names that `DSTSHead` documents, so that the
two can be compared value by value; shares no code with it. Everything is differentiable to any
order by plain autograd.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F

EPS, MOMENTUM = 1e-5, 0.1


class LiteralHead:
    """`config` holds the keyword arguments of `DSTSHead`; `tensors` its parameters and buffers."""

    def __init__(self, config, tensors):
        self.config, self.tensors = config, dict(tensors)

    def forward(self, x, noise=None, training=False, update=True):
        """Logits [B, K] of x [B, C, T, H, W]; noise per layer: (gumbel, gate_normal, gate_hard)."""
        config, t = self.config, self.tensors
        self.training, self.update, self.choices = training, update, []
        num_layers = config["num_layers"]
        dropout = noise[-1].factors if training and config.get("readout_dropout") else None
        if num_layers == 0:
            return self.classify(x, dropout)
        hidden = x
        projects = config.get("width") is not None
        if projects:
            hidden = F.conv3d(x, t["project_in.weight"][:, :, None, None, None])
        start = hidden
        for j in range(num_layers):
            output = self.layer(j, hidden, noise[j] if training else None)
            hidden = hidden + output if config.get("layer_residual") else output
        if config.get("layer_residual") and not projects:
            hidden = hidden - start
        if projects:
            hidden = F.conv3d(hidden, t["project_out.weight"][:, :, None, None, None])
        elif "output_gain" in t:
            hidden = hidden * t["output_gain"][None, :, None, None, None]
        if config.get("skip", True):
            hidden = x + hidden
        return self.classify(hidden, dropout)

    def classify(self, z, dropout):
        """Logits of a map [B, C, T, H, W]."""
        t = self.tensors
        attends = self.config.get("readout") == "attentive"
        vector = self.attend(z) if attends else z.mean((2, 3, 4))
        if dropout is not None:
            vector = dropout * vector
        return F.linear(vector, t["classifier.weight"], t["classifier.bias"])

    def attend(self, z):
        """V-JEPA's attentive pooler: sample by sample, head by head, keys and values in full."""
        t, depth = self.tensors, self.config.get("readout_depth", 1)
        rows = []
        for one in z.flatten(2).transpose(1, 2):
            if "pooler.positions.weight" in t:
                one = self.normal(one, "pooler.entry_norm")
            if "pooler.project.weight" in t:
                one = one @ t["pooler.project.weight"].T
            if "pooler.positions.weight" in t:
                one = one + self.places(z.shape[2:]) @ t["pooler.positions.weight"].T
            for k in range(depth - 1):
                at = f"pooler.blocks.{k}"
                w, b = t[f"{at}.to_query_key_value.weight"], t[f"{at}.to_query_key_value.bias"]
                query, key, value = (self.normal(one, f"{at}.norm") @ w.T + b).chunk(3, 1)
                one = one + self.linear(self.heads(query, key, value), f"{at}.mix")
                one = one + self.mlp(self.normal(one, f"{at}.mlp_norm"), f"{at}.mlp")
            key, value = self.linear(
                self.normal(one, "pooler.input_norm"), "pooler.to_key_value"
            ).chunk(2, 1)
            asked = t["pooler.query"][None]
            query = self.linear(asked, "pooler.to_query")
            pooled = asked + self.heads(query, key, value)
            pooled = pooled + self.mlp(self.normal(pooled, "pooler.mlp_norm"), "pooler.mlp")
            rows.append(pooled[0])
        return torch.stack(rows)

    def places(self, grid):
        """Cosines of every position, axis by axis, T outermost: [P, 3 * 8]."""
        rows = []
        for t, h, w in itertools.product(*(range(size) for size in grid)):
            at = zip((t, h, w), grid, strict=True)
            rows.append([math.cos(math.pi * k * (i + 0.5) / n) for i, n in at for k in range(1, 9)])
        return torch.tensor(rows, dtype=torch.float64)

    def heads(self, query, key, value):
        """Attention of rows of `query` to rows of `key`, in heads side by side."""
        size = query.shape[1] // self.config.get("readout_heads", 8)
        parts = []
        for start in range(0, query.shape[1], size):
            q, k, v = (part[:, start : start + size] for part in (query, key, value))
            parts.append(torch.softmax(q @ k.T / size**0.5, 1) @ v)
        return torch.cat(parts, 1)

    def linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def normal(self, x, name):
        """Layer norm with V-JEPA's epsilon."""
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def mlp(self, x, name):
        hidden = self.linear(x, f"{name}.0")
        hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / 2**0.5))
        return self.linear(hidden, f"{name}.2")

    def layer(self, j, x, noise):
        """The layer's output, the common neuron's added where there is one."""
        own = self.routed(j, x, noise)
        if not self.config.get("common_neuron"):
            return own
        n = self.config["num_neurons"]
        of_common = None if noise is None else (None, noise[1][n:], noise[2][n:])
        everyone = torch.ones(len(x), dtype=torch.bool)
        changed = {"num_neurons": 1, "synapse": False, "shared_neuron": False}
        alone = LiteralHead(self.config | changed, self.tensors)
        alone.training, alone.update, alone.fed = self.training, self.update, None
        common = alone.neuron(f"{j}.common", 0, x, of_common, everyone)
        return own + common

    def routed(self, j, x, noise):
        n = self.config["num_neurons"]
        self.fed = None
        if not self.config.get("synapse", True):
            everyone = torch.ones(len(x), dtype=torch.bool)
            outputs = [self.neuron(j, i, x, noise, everyone) for i in range(n)]
            return sum(outputs) / n
        v = self.impulses(j, x)
        if noise is not None:
            v = v + self.config.get("gumbel_scale", 1.0) * noise[0]
        v = v / self.config.get("temperature", 1.0)
        a = v.argmax(1)
        self.choices.append(a)
        if not self.training:
            rows = []
            for b in range(len(x)):
                one = torch.ones(1, dtype=torch.bool)
                rows.append(self.neuron(j, int(a[b]), x[b : b + 1], None, one))
            return torch.cat(rows)
        self.fed = self.outputs_of_own_neurons(j, x, a, noise)
        if self.config.get("routing_gradient", "dense") == "selected":
            return self.combine_selected(j, x, v, a, noise)
        soft = torch.softmax(v, 1)
        y = F.one_hot(a, n).to(x) - soft.detach() + soft
        total = 0.0
        for i in range(n):
            feeds = a == i
            if self.config.get("norm_statistics", "routed") == "batch":
                feeds = torch.ones_like(feeds)
            z = self.neuron(j, i, x, noise, feeds)
            total = total + y[:, i, None, None, None, None] * z
        return total

    def outputs_of_own_neurons(self, j, x, a, noise):
        """Where a layer has one statistic: what feeds it, by norm; and its update, once."""
        if self.config.get("norm_statistics", "routed") != "layer":
            return None
        n, fed = self.config["num_neurons"], {}
        for i in range(n):
            for name, z in self.operators(j, i, x, noise):
                fed.setdefault(name, []).append(z[a == i])
        fed = {name: torch.cat(parts) for name, parts in fed.items()}
        if self.update and next(iter(fed.values()))[:, 0].numel() >= 2:
            for name, values in fed.items():
                for i in range(n):
                    self.update_running(name, i, values)
        return fed

    def combine_selected(self, j, x, v, a, noise):
        """Only the chosen neuron counts; other impulses are constants in its softmax entry."""
        n = self.config["num_neurons"]
        parts = {}
        for i in range(n):
            where = (a == i).nonzero()[:, 0]
            if len(where):
                everyone = torch.ones(len(where), dtype=torch.bool)
                z = self.neuron(j, i, x[where], noise, everyone)
                for position, b in enumerate(where.tolist()):
                    parts[b] = z[position]
        rows = []
        for b in range(len(x)):
            entries = [v[b, i] if i == a[b] else v[b, i].detach() for i in range(n)]
            p = torch.softmax(torch.stack(entries), 0)[a[b]]
            rows.append((1.0 - p.detach() + p) * parts[b])
        return torch.stack(rows)

    def impulses(self, j, x):
        """Eq. 1-3: full scoring convolutions, every element summed."""
        kind = self.config.get("impulse", "sum")
        if self.config.get("impulse_gradient", "map") == "kernel":
            x = x.detach()
        m = self.tensors[f"layers.{j}.scoring_kernel"]
        columns = []
        for i in range(len(m)):
            q = F.conv3d(x, m[i][:, :, None, None, None])
            if kind == "sum":
                columns.append(q.sum((1, 2, 3, 4)))
            elif kind == "mean":
                columns.append(q.mean((1, 2, 3, 4)))
            else:
                columns.append(q.sum(1).mean((1, 2, 3)))
        v = torch.stack(columns, 1)
        if kind != "standardized":
            return v
        mean = self.tensors[f"layers.{j}.impulses.running_mean"]
        var = self.tensors[f"layers.{j}.impulses.running_var"]
        if self.training:
            running = (mean, var) if self.update else (None, None)
            if self.update:
                F.batch_norm(v.detach(), *running, training=True, momentum=MOMENTUM, eps=EPS)
            mean, var = v.mean(0), v.var(0, unbiased=False)
        return self.config["impulse_spread"] * (v - mean) / torch.sqrt(var + EPS)

    def gates(self, j, i, noise):
        """Eq. 4-5's b by Improved SemHash."""
        kind = self.config.get("specialization", "gated")
        if kind == "fixed":
            channels = self.tensors[f"layers.{j}.spatial_kernel"].shape[2]
            return (torch.arange(channels) >= channels // 2).to(torch.float64)
        g = self.tensors[f"layers.{j}.gate_logits"][i]
        if self.config.get("shared_neuron", False):
            own = self.config.get("own_scale", 1.0) * g
            g = self.tensors[f"layers.{j}.shared_gate_logits"] + own
        if noise is None:
            return (g > 0).to(g)
        noisy = g + self.config.get("gate_noise_scale", 1.0) * noise[1][i]
        soft = torch.clamp(1.2 * torch.sigmoid(noisy) - 0.1, 0.0, 1.0)
        if not noise[2][i]:
            return soft
        return (noisy > 0).to(g) - soft.detach() + soft

    def neuron(self, j, i, x, noise, feeds):
        """Eq. 4-8 and the fusion: neuron i of layer j on every sample of x."""
        parts = [
            torch.relu(self.norm(name, i, z, feeds)) for name, z in self.operators(j, i, x, noise)
        ]
        conv3d = self.config.get("specialization", "gated") == "conv3d"
        if conv3d and not self.config.get("bottleneck"):
            return parts[0]
        fusion = self.kernel(j, i, "fusion")[:, :, None, None, None]
        return F.conv3d(parts[0] if conv3d else parts[0] + parts[1], fusion)

    def operators(self, j, i, x, noise):
        """Norm's name and output, before it, of every operator of neuron i."""
        if self.config.get("specialization", "gated") == "conv3d":
            z = F.conv3d(x, self.kernel(j, i, "volume"), padding=1)
            return [(f"layers.{j}.volume_norm", z)]
        spatial = self.kernel(j, i, "spatial")[:, :, None]
        temporal = self.kernel(j, i, "temporal")[:, :, :, None, None]
        if self.config.get("specialization") == "ungated":
            to_spatial = to_temporal = x
        else:
            b = self.gates(j, i, noise)[None, :, None, None, None]
            to_spatial, to_temporal = (1 - b) * x, b * x
        around = temporal.shape[2] // 2
        return [
            (f"layers.{j}.spatial_norm", F.conv3d(to_spatial, spatial, padding=(0, 1, 1))),
            (f"layers.{j}.temporal_norm", F.conv3d(to_temporal, temporal, padding=(around, 0, 0))),
        ]

    def kernel(self, j, i, name):
        """Neuron i's own kernel, and what all neurons of the layer have in common."""
        own = self.tensors[f"layers.{j}.{name}_kernel"][i]
        if not self.config.get("shared_neuron", False):
            return own
        scale = self.config.get("own_scale", 1.0)
        return scale * own + self.tensors[f"layers.{j}.shared_{name}_kernel"]

    def norm(self, name, i, z, feeds):
        """Batch norm by the statistics of the samples in `feeds`; running ones if too few."""
        t = self.tensors
        weight, bias = t[f"{name}.weight"][i], t[f"{name}.bias"][i]
        mean, var = t[f"{name}.running_mean"][i], t[f"{name}.running_var"][i]
        of_layer = self.training and self.config.get("norm_statistics") == "layer" and self.fed
        fed = self.fed[name] if of_layer else z[feeds]
        if self.training and fed.numel() // z.shape[1] >= 2:
            if self.update and not of_layer:
                self.update_running(name, i, fed)
            mean, var = fed.mean((0, 2, 3, 4)), fed.var((0, 2, 3, 4), unbiased=False)
        shape = (1, -1, 1, 1, 1)
        normal = (z - mean.view(shape)) / torch.sqrt(var.view(shape) + EPS)
        return normal * weight.view(shape) + bias.view(shape)

    def update_running(self, name, i, fed):
        """torch's own rule for running statistics."""
        mean, var = (self.tensors[f"{name}.running_{what}"][i] for what in ("mean", "var"))
        F.batch_norm(fed.detach(), mean, var, training=True, momentum=MOMENTUM, eps=EPS)
