"""The local page: a predictor with this run's features beside it, until interrupted."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.errors import DataError, SettingsError, StoreError, UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.serve import Bundle, Predictor
from dsts_pipeline.serve.app.limits import Limits
from dsts_pipeline.serve.neighbours import Neighbours
from stages import places
from stages.bundles import open_bundle
from stages.inputs import open_features
from stages.predict_options import predictor_options

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(
    settings: Settings,
    *,
    bundle: Path | None = None,
    weights: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    max_upload_mib: float = 64.0,
    timeout_seconds: float = 30.0,
) -> None:
    """Serve the page on `host` and `port`.

    Raises:
        BundleError: The bundle is damaged, or its parts don't belong together.
        UserError: FastAPI or uvicorn is not installed, or the address is taken.
    """
    try:
        from dsts_pipeline.serve.app.server import serve
    except ImportError as error:
        raise UserError(
            f"demo-app needs FastAPI and uvicorn ({error}); install them with "
            '`pip install -c constraints.txt -e ".[app]"`'
        ) from None
    is_open, limits = host not in LOOPBACK, Limits(upload_bytes=int(max_upload_mib * 2**20))
    if is_open:
        console.print(
            f"warning: with --host {host} everyone who reaches this machine can send it videos; "
            "there is no password and no encryption",
            soft_wrap=True,
        )
    held = open_bundle(settings, bundle, weights)
    options = predictor_options(settings) | {"clip_timeout_seconds": timeout_seconds}
    options["num_decode_workers"] = limits.num_at_once
    with Predictor(held, **options) as predictor:
        predictor.warm_up()
        near = _find_neighbours(settings, held)
        try:
            serve(predictor, near, host=host, port=port, is_open=is_open, limits=limits)
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port"
            ) from None


def _find_neighbours(settings: Settings, bundle: Bundle) -> Neighbours | None:
    """Training clips of this run, if its features are those that the head was trained on."""
    try:
        store = open_features(settings.feed)
        if store.fingerprint != bundle.store["fingerprint"]:
            raise StoreError("the features of this folder are others than the head's")
        return Neighbours(store, ClipIndex.load(places.CLIP_INDEX))
    except (DataError, StoreError) as error:
        console.print(f"no nearest clips: {error}", soft_wrap=True)
        return None
