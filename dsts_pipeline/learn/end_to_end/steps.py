"""One iteration with the backbone among the downstream parameters (paper 3.3, Eq. 9-11).

Let w be the backbone's parameters, u and h those of the head (upstream and downstream), so that
`d = (w, h)`, and let `m(x; w)` be the map of clips x. The loss is `L(u, h, m(x; w))`. Two ways:

"all", the literal text. The simulated step moves all of d:

    d_hat = d - alpha grad_d L(u, h, m(x_train; w))                                      (Eq. 9)
    u'    = u - alpha grad_u L(u_hat, h_hat, m(x_val; w_hat))  (u_hat is u held constant) (Eq. 10)
    d'    = d - alpha grad_d L(u', h, m(x_train; w))                                     (Eq. 11)

The training clips go through the backbone twice (Eq. 9 and 11), the validation clips once, with
other weights, and the second derivative reaches into the backbone.

"head". Deviation: the simulated step leaves the backbone alone,

    h_hat = h - alpha grad_h L(u, h, m_train),   m_train = m(x_train; w)
    u'    = u - alpha grad_u L(u_hat, h_hat, m_val),   m_val = m(x_val; w)
    d'    = d - alpha grad_d L(u', h, m(x_train; w))

so that Eq. 9 and 10 happen in the head, on maps that are constants. Eq. 11 is kept as it is. u' is
no argument of m, hence m_train is the very map that Eq. 11 needs: its graph, kept since Eq. 9, is
gone through backwards once. Each clip passes the backbone once. What is lost of the meta-gradient
is the part by which u moves w_hat, `-alpha d/du [grad_w L(u, h, m_train) . grad_{w_hat} L_val]`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.learn.end_to_end.model import EndToEnd
from dsts_pipeline.learn.objective import Draw, Objective
from dsts_pipeline.learn.precision import forward_context
from dsts_pipeline.learn.steps import Stepper, StepResult, check_disjoint

InnerStep = Literal["head", "all"]


@dataclass(frozen=True)
class FrameDraw(Draw):
    """A batch of frames with the noise of its pass; `seed` is that of the backbone's dropout."""

    seed: int | None = None


@dataclass(frozen=True)
class JointObjective(Objective):
    """Loss of an `EndToEnd` model on frames."""

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> FrameDraw:
        """Fix the randomness of a pass, the backbone's too."""
        drawn = super().draw(batch, generator)
        seed = None
        if self.model.dropout:
            device = None if generator is None else generator.device
            drawn_seed = torch.randint(2**62, (1,), generator=generator, device=device)
            seed = int(drawn_seed) + self.processes.rank
        return FrameDraw(drawn.batch, drawn.noise, seed)

    @property
    def model(self) -> EndToEnd:
        """The model."""
        assert isinstance(self.head, EndToEnd)
        return self.head

    @property
    def of_the_head(self) -> Objective:
        """The same loss as a function of maps and the head's parameters."""
        return Objective(
            self.model.head,
            self.label_smoothing,
            self.balance_weight,
            self.precision,
            self.processes,
        )

    def options_of(self, draw: Draw) -> dict[str, Any]:
        """The dropout's seed goes to the model."""
        assert isinstance(draw, FrameDraw)
        return {"seed": draw.seed}

    def map_part(self, draw: Draw, *, with_graph: bool, update_statistics: bool = False) -> Draw:
        """The part with its map in place of its frames."""
        assert isinstance(draw, FrameDraw)
        batch = draw.batch
        with (
            nullcontext() if with_graph else torch.no_grad(),
            forward_context(self.precision, batch.maps.device),
        ):
            maps = self.model.maps(batch.maps, update_statistics=update_statistics, seed=draw.seed)
        return Draw(replace(batch, maps=maps), draw.noise)


@dataclass
class JointStepper(Stepper):
    """Makes the iterations of end-to-end training.

    Args:
        inner_step: What UDL's simulated step moves: "head" or "all"; see above.
    """

    inner_step: InnerStep = "head"

    def udl_step(
        self, train_batch: FeatureBatch, val_batch: FeatureBatch, *, inner_lr: float
    ) -> StepResult:
        """UDL's three steps on frames.

        A batch that is gone through in parts keeps no graph of more than one part: with "head" the
        maps of its training clips are then computed twice, once for Eq. 9 and 10, once for Eq. 11.
        """
        if self.inner_step == "all":
            return super().udl_step(train_batch, val_batch, inner_lr=inner_lr)
        check_disjoint(train_batch, val_batch)
        joint = self.objective
        assert isinstance(joint, JointObjective)
        train, val = self._parts(train_batch), self._parts(val_batch)
        keeps = len(train) == 1
        with_maps = [
            (joint.map_part(draw, with_graph=keeps, update_statistics=keeps), weight)
            for draw, weight in train
        ]
        of_val = [(joint.map_part(draw, with_graph=False), weight) for draw, weight in val]
        head = joint.of_the_head
        self._meta_update(head, [(_constant(draw), w) for draw, w in with_maps], of_val, inner_lr)
        if self.redraw:
            train = self._parts(train_batch)
        if not keeps:
            return self._downstream_update(joint, train)
        if self.redraw:
            with_maps = [(Draw(with_maps[0][0].batch, train[0][0].noise), with_maps[0][1])]
        return self._downstream_update(head, with_maps)


def _constant(draw: Draw) -> Draw:
    """The part with its map cut from the backbone."""
    batch: FeatureBatch = replace(draw.batch, maps=draw.batch.maps.detach())
    return Draw(batch, draw.noise)
