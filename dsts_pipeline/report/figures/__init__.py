"""All drawings of the page, by name: choose the data here, draw it in plots/."""

from dsts_pipeline.report.figures.drawn import Figure
from dsts_pipeline.report.figures.reliability import reliability_figures
from dsts_pipeline.report.figures.results import result_figures
from dsts_pipeline.report.figures.routing import routing_figures
from dsts_pipeline.report.inputs import ReportInputs

__all__ = ["Figure", "draw_figures"]


def draw_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures by name; one that the run has no data for is left out."""
    figures = result_figures(inputs) | reliability_figures(inputs) | routing_figures(inputs)
    return {name: figure for name, figure in figures.items() if figure.panels}
