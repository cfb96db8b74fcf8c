"""`report` after `import-features`: all that needs no videos, and a line on what it lacks."""

from __future__ import annotations

from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.settings import Settings
from stages import report
from tests.stages.ready_store import make_ready
from tests.stages.test_compare import write_run

NUM_CLASSES = 4  # of the store that make_ready writes


def test_imported_features_have_a_report_without_a_gallery(tmp_path, monkeypatch, capsys):
    """An imported store and evaluated heads; a clip index that lies there is of other clips."""
    monkeypatch.chdir(tmp_path)
    make_ready(tmp_path)
    write_run(tmp_path / "outputs", num_classes=NUM_CLASSES)
    described = {"extra": {"provenance": {"command": "tests"}}}
    for history in (tmp_path / "outputs" / "heads").glob("*/history.json"):
        write_json(history.with_name("head.json"), described)
    (tmp_path / "outputs" / "clips.json").write_text("of another data set")
    report.run(Settings())
    told = " ".join(capsys.readouterr().err.split())
    assert "left out: gallery and previews, since imported features have no videos" in told
    html = (tmp_path / "outputs" / "report" / "report.html").read_text()
    for part in ("summary", "errors", "reliability", "routing", "run"):
        assert f'<section id="{part}"' in html
    assert '<section id="gallery"' not in html
