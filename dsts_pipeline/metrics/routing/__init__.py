"""Who does the work: what a routed head's neurons serve, and whether it is more than chance."""

from dsts_pipeline.metrics.routing.information import (
    adjusted_mutual_information,
    describe_information,
    mutual_information,
    normalised_mutual_information,
)
from dsts_pipeline.metrics.routing.need import class_need, clip_need, describe_gates
from dsts_pipeline.metrics.routing.pairs import describe_pairs
from dsts_pipeline.metrics.routing.similarity import (
    central_clips,
    describe_similarity,
    pair_cosines,
    unit_directions,
)
from dsts_pipeline.metrics.routing.summary import RoutingOptions, assemble_routing
from dsts_pipeline.metrics.routing.usage import (
    class_by_neuron,
    dead_neurons,
    neuron_usage,
    usage_entropy,
)
from dsts_pipeline.metrics.routing.views import describe_view_changes, number_routes

__all__ = [
    "RoutingOptions",
    "adjusted_mutual_information",
    "assemble_routing",
    "central_clips",
    "class_by_neuron",
    "class_need",
    "clip_need",
    "dead_neurons",
    "describe_gates",
    "describe_information",
    "describe_pairs",
    "describe_similarity",
    "describe_view_changes",
    "mutual_information",
    "neuron_usage",
    "normalised_mutual_information",
    "number_routes",
    "pair_cosines",
    "unit_directions",
    "usage_entropy",
]
