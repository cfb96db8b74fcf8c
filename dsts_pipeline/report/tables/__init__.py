"""All tables of the page, by name: they are also written as Markdown and LaTeX files."""

from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.tables.calibration import calibration_table
from dsts_pipeline.report.tables.paper import beside_table, paper_tables
from dsts_pipeline.report.tables.results import result_tables
from dsts_pipeline.report.tables.routing import routing_tables
from dsts_pipeline.report.tables.table import Table, table_files

__all__ = ["Table", "make_tables", "table_files"]


def make_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; one that the run has no rows for is left out."""
    calibration = calibration_table(inputs)
    return (
        result_tables(inputs)
        | ({calibration.name: calibration} if calibration.rows else {})
        | routing_tables(inputs)
        | {"beside": beside_table(inputs)}
        | paper_tables(inputs)
    )
