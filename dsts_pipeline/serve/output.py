"""Where `predict` leaves answers besides the terminal: a file of JSON lines, annotated copies.

The JSON file appears when all is done; an annotated copy as soon as it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import open_atomic
from dsts_pipeline.serve.answers import TOP, as_json, tell_route, tell_shares
from dsts_pipeline.serve.predictor import Prediction, Predictor, Refusal
from dsts_pipeline.serve.video_list import name_outputs


class Outputs:
    """Takes answers in the order of `paths`.

    Args:
        json_file: A line per video; None for none.
        folder: Of annotated copies; None for none.
        suffix: ".mp4" or ".gif".

    Raises:
        DataError: The JSON file or the folder is one of the videos.
    """

    def __init__(
        self,
        predictor: Predictor,
        paths: Sequence[Path],
        json_file: Path | None,
        folder: Path | None,
        suffix: str,
    ) -> None:
        if json_file is not None and json_file.resolve() in {path.resolve() for path in paths}:
            raise DataError(f"{json_file}: is one of the videos; give --json another name")
        self._predictor, self._json_file, self._folder = predictor, json_file, folder
        self._names = iter(name_outputs(paths, f"-annotated{suffix}"))
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Outputs:
        if self._json_file is not None:
            self._file = self._stack.enter_context(open_atomic(self._json_file))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, answer: Prediction | Refusal) -> Prediction | Refusal:
        """Leave `answer` where it was asked for; a copy that can't be drawn is a refusal."""
        predictor, name = self._predictor, next(self._names)
        class_names, shares = predictor.bundle.class_names, predictor.temporal_shares
        if self._folder is not None and isinstance(answer, Prediction):
            bars = [(class_names[number], p) for number, p in answer.top(TOP)]
            lines = []
            if answer.neurons is not None:
                lines = [
                    f"neurons {tell_route(answer)}",
                    f"temporal channels {tell_shares(answer, shares)}",
                ]
            answer = predictor.annotate(answer, self._folder / name, bars, lines)
        if self._file is not None:
            line = json.dumps(as_json(answer, class_names, shares), allow_nan=False)
            self._file.write(f"{line}\n".encode())
        return answer
