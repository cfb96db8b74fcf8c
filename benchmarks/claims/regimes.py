"""The four regimes: which data set, which backbone, how that is made.

In the paper's regime the backbone was trained on the set's own classes. In the generic one it never
saw them: for stick something it is the recognizer of stick diving, for stick diving a backbone that
was taught poses and no class, since dives can't be learned from maps made for stick something.

Enters: nothing. Leaves: for each regime its experiment of configs/ and the settings that say where
things are. Paths are relative to the regime's own folder, in which all commands run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "dsts_pipeline" / "extract" / "pretrained" / "stick_r18.safetensors"


@dataclass(frozen=True)
class Regime:
    """A data set on a frozen backbone.

    Args:
        name: Also of its folder and of its file of results.
        title: For people.
        experiment: Of configs/experiment.
        weights: The backbone's file below the runs' weights folder; None for the embedded one.
        maker: The regime whose settings pretrain that backbone; None for the embedded one.
        num_seeds: How often each variant is trained.
        size: Of its data set where that is another one than the regimes'; for the folder's name.
        real: Its data set of `real.py`, if it is one; the regime is a cross-validation then.
        learning_rate: Another one than the experiment's, for all heads.
        more: Other settings than the experiment's.
        brief: `short`, where it is not made of the name.
        maps: Its classes, clips and features, for people.
    """

    name: str
    title: str
    experiment: str
    weights: str | None = None
    maker: str | None = None
    num_seeds: int = 5
    learning_rate: float | None = None
    size: str = ""
    real: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    brief: str = ""
    maps: str = ""

    @property
    def has_videos(self) -> bool:
        """Whether a real data set is extracted here; else its features are imported."""
        return self.real == "ut_interaction"

    @property
    def data(self) -> str:
        """Which embedded data set: "diving" or "something"."""
        return "diving" if "diving" in self.name else "something"

    @property
    def short(self) -> str:
        """Its title for a narrow column, such as "dives, known"."""
        if self.brief:
            return self.brief
        data = "dives" if self.data == "diving" else "something"
        return f"{data}, {'new' if 'generic' in self.name else 'known'}"

    @property
    def settings(self) -> dict[str, str]:
        """Where data, weights and stores are, and the learning rate, as overrides."""
        if self.real is not None:
            own = {"dataset.root": "data", "store.root": "../stores"}
            reference = str(EMBEDDED.with_name("efficientnet_lite0.json"))
            return own | ({"backbone.weights": reference} if self.has_videos else {})
        weights = str(EMBEDDED) if self.weights is None else f"../weights/{self.weights}"
        places = {
            "backbone.weights": weights,
            "dataset.root": f"../data/stick_{self.data}{self.size}",
            "pretrain.pool": "../pool",
            "store.root": "../stores",
        } | dict(self.more)
        if self.learning_rate is None:
            return places
        return places | {"train.learning_rate": str(self.learning_rate)}

    def at(self, learning_rate: float) -> Regime:
        """The same with another learning rate for all heads, once: a step of `SEARCH`."""
        return replace(
            self,
            name=f"{self.name}_rate_{learning_rate:g}",
            num_seeds=1,
            learning_rate=learning_rate,
        )


REGIMES = (
    Regime(
        "diving_paper",
        "Stick diving, backbone trained on the same classes",
        "claims_diving",
    ),
    Regime(
        "diving_generic",
        "Stick diving, backbone that never saw the classes",
        "claims_diving_generic",
        "diving_pose.safetensors",
        "diving_generic",
    ),
    Regime(
        "something_paper",
        "Stick something, backbone trained on the same classes",
        "claims_something",
        "something_classes.safetensors",
        "something_paper",
    ),
    Regime(
        "something_generic",
        "Stick something, backbone that never saw the classes",
        "claims_something_generic",
    ),
)
STUDIES = (
    Regime(
        "routing",
        "What keeps routing from paying: stick something, generic backbone, ordinary steps",
        "claims_routing",
        num_seeds=1,
    ),
    Regime(
        "choices",
        "What the paper leaves open: stick something, generic backbone",
        "claims_choices",
        num_seeds=1,
    ),
    Regime(
        "readouts",
        "Readouts and a neuron's own operators: stick something, generic backbone",
        "claims_readouts",
        num_seeds=3,
        size="_10k",
    ),
)
NEW = (
    Regime(
        "heads_something",
        "Stick something",
        "claims_heads",
        size="_heads_1",
        brief="stick something",
        maps="24 classes, 5,000 clips to train (1,000 held out), 2,000 to test; 128x8x4x4 of the "
        "embedded recognizer of dives",
    ),
    Regime(
        "heads_something_groups",
        "Stick something, ten people and places in train, ten others in test",
        "claims_heads_groups",
        size="_groups_1",
        brief="stick something by groups",
        maps="24 classes, 3,000 clips to train (two people of ten held out), 2,000 to test; the "
        "same backbone",
    ),
    Regime(
        "thetis",
        "THETIS, tennis strokes of other players",
        "claims_thetis",
        num_seeds=3,
        real="thetis",
        brief="THETIS",
        maps="12 classes, 1,980 clips of 55 players, five folds; 2048x16x1x1, vectors of "
        "Inception-v3 averaged over space",
    ),
    Regime(
        "ut_interaction",
        "UT-Interaction, other sequences",
        "claims_ut_interaction",
        real="ut_interaction",
        brief="UT-Interaction",
        maps="6 classes, 120 clips of 20 sequences, ten folds; 320x8x7x7 of EfficientNet-Lite0, "
        "which was trained on pictures",
    ),
)
"""Which head for classes that the backbone never saw: every head with the same search. The last two
are cross-validations over groups on real data that a person has to fetch."""
CONTROLS = (
    Regime(
        "heads_diving",
        "Stick diving, backbone that was taught poses",
        "claims_heads_diving",
        "diving_pose.safetensors",
        "diving_generic",
        size="_heads_1",
        brief="dives, poses",
    ),
    Regime(
        "heads_diving_known",
        "Stick diving, backbone trained on the same classes",
        "claims_heads_diving",
        size="_heads_1",
        brief="dives, known",
    ),
    Regime(
        "heads_something_known",
        "Stick something, backbone trained on the same classes",
        "claims_heads",
        "something_classes.safetensors",
        "something_paper",
        size="_heads_1",
        brief="something, known",
    ),
)
"""The same where the backbone knows more."""
CURVE_EPOCHS = {1000: 80, 4000: 40, 16000: 20, 64000: 10}
"""By training clips: twice the steps for four times the clips."""
CURVE = tuple(
    Regime(
        f"curve_{number}",
        f"{number:,} clips",
        "claims_curve",
        num_seeds=3,
        size=f"_{number}_1",
        more={"dataset.render.num_train": str(number), "train.num_epochs": str(epochs)},
    )
    for number, epochs in CURVE_EPOCHS.items()
)
"""N = 1, 4, 10 of the same head on more and more rendered clips."""
UDL = Regime(
    "thetis_udl",
    "THETIS, what UDL adds",
    "claims_thetis_udl",
    num_seeds=3,
    real="thetis",
    brief="THETIS, UDL",
)
"""Ten gated neurons by plain steps, by UDL, and by UDL whose two batches share no player."""
END_TO_END = Regime("end_to_end", "Stick something, end to end", "claims_end_to_end", num_seeds=3)
"""Backbone and head together (benchmarks/claims/end_to_end.py)."""
OTHER_RATES = (4e-3, 8e-3)
"""What the search tries beside the experiments' own rate, 2e-3. It goes upward because 4e-3 was
the better for nearly every head."""
SEARCH = tuple(regime.at(rate) for regime in REGIMES for rate in OTHER_RATES)
BY_NAME = {one.name: one for one in (*NEW, *CONTROLS, *CURVE, UDL, *REGIMES, *STUDIES, *SEARCH)}
