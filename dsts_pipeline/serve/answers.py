"""Answers in words and numbers: rows for a terminal, lines of JSON, where time went.

Enters: predictions and refusals. Leaves: plain values. Nothing of a file's name is interpreted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import open_atomic
from dsts_pipeline.serve.predictor import PARTS, Prediction, Predictor, Refusal

TOP = 5


def as_json(
    answer: Prediction | Refusal,
    class_names: Sequence[str],
    shares: Sequence[Sequence[float] | None] = (),
) -> dict[str, Any]:
    """One answer as a JSON object: "video" and either "error" or what was found.

    Classes, neurons and views are numbered from 0. "temporal_share" is, per layer, the share of
    channels that the first view's neuron sends to its temporal operator.
    """
    if isinstance(answer, Refusal):
        return {"video": str(answer.path), "error": answer.reason}
    top = [
        {"class": number, "name": class_names[number], "probability": probability}
        for number, probability in answer.top(TOP)
    ]
    info = answer.info
    return {
        "video": str(answer.path),
        "num_frames": info.num_frames,
        "fps": info.fps,
        "size_px": [info.width, info.height],
        "num_views": len(answer.logits),
        "top": top,
        "neurons": None if answer.neurons is None else answer.neurons.tolist(),
        "temporal_share": chosen_shares(answer, shares),
        "seconds": answer.seconds,
    }


def chosen_shares(
    answer: Prediction, shares: Sequence[Sequence[float] | None]
) -> list[float | None] | None:
    """Per layer, the share of temporal channels of the neuron that the first view went to."""
    if answer.neurons is None:
        return None
    route = answer.neurons[0].tolist()
    return [
        None if of_layer is None else float(of_layer[neuron])
        for neuron, of_layer in zip(route, shares, strict=True)
    ]


def tell_route(answer: Prediction) -> str:
    """Such as "7 > 2 > 9"; how many views went another way is added."""
    if answer.neurons is None:
        return "-"
    first = answer.neurons[0]
    others = int((answer.neurons != first).any(axis=1).sum())
    text = " > ".join(str(neuron + 1) for neuron in first.tolist())
    return f"{text} ({others} of {len(answer.neurons)} views otherwise)" if others else text


def tell_shares(answer: Prediction, shares: Sequence[Sequence[float] | None]) -> str:
    """Such as "41 % > 38 % > 52 %"."""
    chosen = chosen_shares(answer, shares) or []
    return " > ".join("-" if share is None else f"{share:.0%}" for share in chosen) or "-"


def printable(text: str) -> str:
    """`text` without what could move a terminal's cursor or colours."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def answers_table(rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """The table of `predict`, a row per video as `table_row` makes it; columns that say nothing of
    any video are left out."""
    table = Table(show_lines=True)
    titles = ("video", "top-5", "neurons", "temporal channels")
    shown = [n for n in range(len(titles)) if n < 2 or any(row[n] not in ("", "-") for row in rows)]
    for number in shown:
        table.add_column(titles[number], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[number]) for number in shown))
    return table


def table_row(
    answer: Prediction | Refusal,
    class_names: Sequence[str],
    shares: Sequence[Sequence[float] | None],
) -> tuple[str, str, str, str]:
    """The cells of one video; neurons count from 1, as in the report."""
    name = printable(str(answer.path))
    if isinstance(answer, Refusal):
        return name, f"no answer: {printable(answer.reason)}", "", ""
    best = [
        f"{probability:6.1%}  {printable(class_names[number])}"
        for number, probability in answer.top(TOP)
    ]
    return name, "\n".join(best), tell_route(answer), tell_shares(answer, shares)


def tell_latency(totals: Mapping[str, float], num_videos: int) -> str:
    """Mean milliseconds per video by part."""
    if not num_videos:
        return "no video was answered"
    parts = [f"{part} {1000 * totals[part] / num_videos:.1f}" for part in PARTS]
    whole = 1000 * sum(totals.values()) / num_videos
    return f"milliseconds per video: {', '.join(parts)}; together {whole:.1f}"


# ---- files: JSON lines, annotated copies --------------------------------------------------------


class Outputs:
    """Takes answers in the order of `paths` and leaves them in files.

    The JSON file appears when all is done; an annotated copy as soon as it is whole.

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
        self._predictor = predictor
        self._json_file = json_file
        self._folder = folder
        self._names = iter(name_outputs(paths, f"-annotated{suffix}"))
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Outputs:
        if self._json_file is not None:
            self._file = self._stack.enter_context(open_atomic(self._json_file))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, answer: Prediction | Refusal) -> Prediction | Refusal:
        """Leave `answer` where it was asked for; a copy that can't be drawn is a refusal."""
        predictor = self._predictor
        name = next(self._names)
        class_names = predictor.bundle.class_names
        shares = predictor.temporal_shares
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


def name_outputs(paths: Sequence[Path], suffix: str) -> list[str]:
    """A file name for each of `paths`: its stem, numbered where two have the same, and `suffix`."""
    names: dict[str, None] = {}
    for path in paths:
        stem = path.stem
        number = 2
        while stem + suffix in names:
            stem = f"{path.stem}-{number}"
            number += 1
        names[stem + suffix] = None
    return list(names)
