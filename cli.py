"""The command line: one thin command per stage; dvc.yaml runs these same commands.

The commands themselves are in stages/commands/; help lists them in the order of this file.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from stages.commands import (
    ablation,
    around,
    end_to_end,
    experiments,
    features,
    mmaction,
    pipeline,
    serving,
)

app = typer.Typer(
    help="Fine-grained action recognition with Dynamic Spatio-Temporal Specialization.\n\n"
    "The stages, in order: prepare, extract, train-head, evaluate, report. `dvc repro` runs those "
    "of them whose inputs or settings changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A function's name with hyphens is its command's name.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "The stages of a run": (
        pipeline.prepare,
        pipeline.extract,
        pipeline.train_head,
        pipeline.evaluate,
        pipeline.report,
    ),
    "Answers": (serving.predict, serving.demo_app),
    "Many trainings": (
        ablation.ablate,
        experiments.search,
    ),
    "Feature stores": (
        features.verify,
        features.stores,
        features.export,
        features.import_features,
    ),
    "Backbone and head together": (
        end_to_end.finetune,
        end_to_end.pretrain_backbone,
    ),
    "Around a run": (
        around.doctor,
        around.results,
        around.compare,
        around.show,
        around.pretrain,
    ),
    "With mmaction2's own tools": (
        mmaction.export_annotations,
        mmaction.convert_checkpoint,
    ),
}

for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.replace("_", "-"), rich_help_panel=panel)(command)


if __name__ == "__main__":
    app()
