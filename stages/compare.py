"""One page about several finished runs on the same clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dsts_pipeline.base.files import read_signed
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.metrics import Bootstrap
from dsts_pipeline.report import Run, render_comparison, write_report
from stages import places
from stages.finished_runs import outputs_of
from stages.report_inputs import read_run


def run(settings: Settings, *, runs: Sequence[str], out: Path) -> None:
    """Write the page to `out`, its plots and tables beside it.

    Raises:
        DataError: A run is not there, or not evaluated on the clips of the first.
    """
    chosen = settings.evaluate
    with TemporaryDirectory() as scratch:
        found = [_read(name, outputs_of(name, Path(scratch))) for name in runs]
    bootstrap = Bootstrap(chosen.num_bootstrap, chosen.confidence, settings.seed)
    page = render_comparison(found, bootstrap)
    write_report(page, out, write_plots=settings.report.write_plots)
    console.print(f"comparison: {out.resolve()}", soft_wrap=True)


def _read(name: str, outputs: Path) -> Run:
    index = outputs / places.CLIP_INDEX.relative_to(places.OUTPUTS)
    heads = outputs / places.HEADS.relative_to(places.OUTPUTS)
    origins = {
        f"head {path.parent.name}": read_signed(path)["extra"].get("provenance", {})
        for path in sorted(heads.glob("*/head.json"))
    }
    # A revision's clip index is not in the cache: its classes are named in its metrics.
    clips = ClipIndex.load(index) if index.exists() else None
    return Run(name.rstrip("/"), read_run(outputs, clips, origins))
