"""Train many variants in one pass over the cached maps, and compare them with the full model.

On the test split, or by a cross-validation: then in one pass per fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich.console import Console

from dsts_pipeline.base.children import Budget, BudgetOver
from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.files import hold_alone, sign, write_atomic, write_json
from dsts_pipeline.base.params import Variant, list_candidates, list_variants
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import AblateSettings, EvaluateSettings, Settings, UdlSettings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head.building import own_head_of
from dsts_pipeline.learn import Recipe, stop_on_sigterm
from dsts_pipeline.learn.ablation import (
    Estimates,
    RunPlan,
    Runs,
    share_out,
    show_ablation,
    stream_of,
    train_in_processes,
)
from dsts_pipeline.learn.processes import choose_device
from dsts_pipeline.learn.train import require_held_out, warn_of_groups
from dsts_pipeline.metrics import HeadResult, Predictions
from dsts_pipeline.metrics.ablation import (
    AblationRun,
    AblationVariant,
    CrossValidation,
    ablation_table,
    assemble_ablation,
    of_split,
    results_csv,
)
from dsts_pipeline.metrics.intervals import Bootstrap
from dsts_pipeline.metrics.predictions import join_folds
from dsts_pipeline.metrics.scoring import load_fitting_head, score_head
from stages import common

WIDTH = 150


def run(settings: Settings) -> None:
    """Write outputs/ablation: runs, results.json, results.csv; print the table.

    Raises:
        BudgetOver: The time of `ablate.minutes` is over before all is trained.
        BusyError: Another ablation is at work here.
        SettingsError: A variant can't be trained (told before anything is), or one diverged, of a
            search all of its values.
    """
    with hold_alone(common.ABLATION, "ablate"):
        _ablate(settings)


def _ablate(settings: Settings) -> None:
    variants = list_variants(settings)
    how = settings.evaluate
    seeds = [settings.seed + number for number in range(settings.ablate.num_seeds)]
    plans = {variant.name: _plan_runs(settings, variant, seeds) for variant in variants}
    everything = _plans_of(plans)
    stores = _open_stores(settings)
    sections = {"head": settings.head, "udl": settings.udl, "train": settings.train}
    sections |= {"feed": settings.feed, "evaluate": how, "ablate": settings.ablate}
    made_by = {name: section.model_dump(mode="json") for name, section in sections.items()}
    provenance = collect_provenance(made_by | {"seed": settings.seed})
    of_folds = [_make_runs(settings, store, provenance) for store in stores]
    for store in stores:
        store.rows_of_split(how.split)
    fitted = of_folds[0].fit(everything, stores)
    _check_training(settings)
    by_evaluated = settings.ablate.choose_by == "evaluated"
    if settings.ablate.search and not by_evaluated:
        _require_held_out(stores, fitted)
    adapted = _tell_adapted(fitted)
    warn_of_groups(stores[0], fitted[0][0].recipe)

    budget = Budget(settings.ablate.minutes)
    failures: dict[Path, str] = {}
    lost: dict[Path, str] = {}
    found: dict[str, list[_Trained]] = {variant.name: [] for variant in variants}
    folders = dict[str, list[Path]]()
    for number, (runs, store) in enumerate(zip(of_folds, stores, strict=True)):
        planned = _put_back(plans, fitted[number])
        feed = FeatureFeed.from_settings(store, store.rows_of_split(how.split), settings.feed)
        answers: dict[Path, HeadResult] = {}
        num_searching = _num_searching(settings.ablate)
        if settings.ablate.search and num_searching < len(seeds):
            firsts = {name: tried[:num_searching] for name, tried in planned.items()}
            failures |= _train_runs(settings, runs, _plans_of(firsts), store, budget)
            if by_evaluated:
                answers = _answer_runs(runs, _plans_of(firsts), feed, how)
            planned = _narrow(runs, planned, answers, num_searching)
        remaining = [plan for plan in _plans_of(planned) if runs.folder(plan) not in failures]
        failures |= _train_runs(settings, runs, remaining, store, budget)
        if by_evaluated:
            answers = _answer_runs(runs, _plans_of(planned), feed, how)
        num_together = num_searching if settings.ablate.search_seeds == "together" else 0
        chosen = {
            name: _choose_together(runs, tried[:num_together], answers)
            + _choose(runs, tried[num_together:], answers)
            for name, tried in planned.items()
        }
        judges = answers
        if not by_evaluated:
            kept = [one.plan for ones in chosen.values() for one in ones]
            answers = _answer_runs(runs, kept, feed, how)
        for name, tried in planned.items():
            for of_seed in tried:
                made = [runs.folder(one.plan) for one in of_seed]
                folders.setdefault(name, []).extend(made)
                if failures.keys() >= set(made):  # the seed is left without a figure
                    lost |= {folder: failures[folder] for folder in made}
            of_seeds = {of_seed[0].plan.seed: of_seed for of_seed in tried}
            for one in chosen[name]:
                rated = _tell_tried(runs, of_seeds[one.plan.seed], judges)
                answer = answers[runs.folder(one.plan)]
                found[name].append(_Trained(one, rated, number, runs, answer))
    described = {
        variant.name: _describe_variant(
            variant, folders[variant.name], found[variant.name], len(stores), failures, how.split
        )
        for variant in variants
    }
    results = assemble_ablation(
        described,
        reference=settings.ablate.reference,
        split=how.split,
        store=stores[0].fingerprint,
        seeds=seeds,
        bootstrap=Bootstrap(how.num_bootstrap, how.confidence, settings.seed),
        provenance=provenance,
        dealt=_describe_folds(stores) if settings.ablate.folds else None,
    )
    if adapted:
        results["adapted"] = adapted
    if settings.ablate.search:
        results["chosen_by"] = of_split(how.split) if by_evaluated else "held-out clips"
    write_json(common.ABLATION / "results.json", sign(results))
    write_atomic(common.ABLATION / "results.csv", results_csv(results).encode())
    Console(width=max(WIDTH, Console().width), markup=False).print(ablation_table(results))
    if failures:
        why = next(iter((lost or failures).values()))
        told = f"{len(failures)} of the trainings diverged: {why}"
        if lost:
            raise SettingsError(told)
        console.print(f"{told}; the search chose among the others", soft_wrap=True, markup=False)


def _open_stores(settings: Settings) -> list[FeatureStore]:
    """The store of the run; over folds, once per fold with that one as its test split."""
    dataset = settings.dataset
    if not settings.ablate.folds or dataset.num_folds is None:
        return [open_features(common.FEATURES, settings.feed, dataset)]
    if dataset.fold is not None:
        console.print("dataset.fold has no effect here: ablate.folds takes all of them")
    store = open_features(common.FEATURES, settings.feed)
    return store.deal_folds(dataset.num_folds, dataset.heldout_seed)


def _make_runs(settings: Settings, store: FeatureStore, provenance: dict[str, Any]) -> Runs:
    return Runs(
        common.ABLATION / "runs",
        common.ABLATION / "checkpoints",
        store.fingerprint,
        (store.map_shape[0], len(store.class_names)),
        own_head_of(settings.backbone.weights, store),
        {"provenance": provenance} | store.describe_reading(),
        settings.train.checkpoint_every_batches,
        settings.ablate.num_together,
        store.division,
        store.attributes,
    )


def _describe_folds(stores: Sequence[FeatureStore]) -> CrossValidation:
    """Which fold and which group each clip is of."""
    first = stores[0]
    assert first.fold is not None and first.group_numbers is not None
    folds: dict[str, int] = {}
    for number, store in enumerate(stores):
        folds |= {store.video_ids[row]: number for row in store.rows_of_split("test")}
    groups = dict(zip(first.video_ids, first.group_numbers.tolist(), strict=True))
    return CrossValidation(first.fold.num_folds, first.fold.seed, folds, groups)


# ---- the trainings -----------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """A training, and what of the search it tries."""

    plan: RunPlan
    tries: Mapping[str, Any]


Planned = Mapping[str, list[list[_Candidate]]]
"""By variant, per seed, what is tried."""


class _Trained(NamedTuple):
    """A training that was kept, what it was chosen from, the fold that it is of, its answers."""

    candidate: _Candidate
    tried: list[dict[str, Any]]
    fold: int
    runs: Runs
    answer: HeadResult


def _plan_runs(
    settings: Settings, variant: Variant, seeds: Sequence[int]
) -> list[list[_Candidate]]:
    """Per seed what is tried, all of it through the batches of one seed of the data; of seeds that
    search together each has its own, and so its own held-out clips."""
    candidates = list_candidates(settings, variant) if variant.kind != "baseline" else [variant]
    planned = []
    for seed in seeds:
        of_seed = []
        for one in candidates:
            train = one.settings.train
            if train.data_seed is None:
                together = settings.ablate.search_seeds == "together"
                data_seed = seed if together else settings.seed
                train = train.model_copy(update={"data_seed": data_seed})
            is_dsts = one.kind == one.settings.head.kind == "dsts"
            udl = one.settings.udl if is_dsts else UdlSettings(enabled=False)
            recipe = Recipe(train, udl, one.settings.feed, seed)
            tries = {} if one is variant else one.changes
            name = " ".join([one.name, *(f"{key}={value}" for key, value in tries.items())])
            plan = RunPlan(name, one.kind, one.settings.head, recipe)
            of_seed.append(_Candidate(plan, tries))
        planned.append(of_seed)
    return planned


def _put_back(planned: Planned, fitted: Sequence[RunPlan]) -> Planned:
    """What is planned, with the plans `fitted` in the place of its own, in their order."""
    plans = iter(fitted)
    return {
        name: [[one._replace(plan=next(plans)) for one in of_seed] for of_seed in tried]
        for name, tried in planned.items()
    }


def _plans_of(planned: Planned) -> list[RunPlan]:
    return [one.plan for tried in planned.values() for of_seed in tried for one in of_seed]


def _num_searching(how: AblateSettings) -> int:
    """How many of the first seeds search."""
    if how.search_seeds == "first":
        return 1
    return min(how.num_search_seeds or how.num_seeds, how.num_seeds)


def _narrow(
    runs: Runs, planned: Planned, answers: Mapping[Path, HeadResult], num_searching: int
) -> Planned:
    """What is planned, with what the first seeds chose alone for the others; all where all of
    theirs diverged."""
    narrowed = {}
    for name, tried in planned.items():
        first, others = tried[:num_searching], tried[num_searching:]
        chosen = _choose_together(runs, first, answers)
        if chosen:
            number = [one.tries for one in first[0]].index(chosen[0].tries)
            others = [[of_seed[number]] for of_seed in others]
        narrowed[name] = [*first, *others]
    return narrowed


def _require_held_out(stores: Sequence[FeatureStore], fitted: Sequence[Sequence[RunPlan]]) -> None:
    """Refuse `ablate.search` where a training has no clips to choose by.

    Raises:
        SettingsError: One has none.
    """
    for store, plans in zip(stores, fitted, strict=True):
        rows = store.rows_of_split("train")
        recipes = {repr(stream_of(plan)): plan.recipe for plan in plans if plan.is_trained}
        for recipe in recipes.values():
            require_held_out(store, rows, recipe)


def _tell_adapted(fitted: Sequence[Sequence[RunPlan]]) -> list[str]:
    """Say once how trainings were fitted to few clips; returns all that there is to say of it."""
    adapted = list(dict.fromkeys(plan.adapted for plans in fitted for plan in plans))
    adapted = [told for told in adapted if told]
    if adapted:
        others = f" ({len(adapted) - 1} more like this in results.json)" if adapted[1:] else ""
        console.print(adapted[0] + others, soft_wrap=True, markup=False, highlight=False)
    return adapted


def _choose(
    runs: Runs, planned: Sequence[Sequence[_Candidate]], answers: Mapping[Path, HeadResult]
) -> list[_Candidate]:
    """Per seed the training of best accuracy on held-out clips, of equals the one of the lower
    loss, of those the first; what is unfinished is left out. Where there is nothing to choose,
    held-out clips may be missing.

    Args:
        answers: On the clips that are reported on, to choose by these instead; none: held-out ones.
    """
    chosen = []
    for of_seed in planned:
        finished = [one for one in of_seed if runs.is_finished(one.plan)]
        if finished:
            rated = [_rate(runs, [one], answers) for one in finished]
            chosen.append(finished[rated.index(max(rated))])
    return chosen


def _choose_together(
    runs: Runs, planned: Sequence[Sequence[_Candidate]], answers: Mapping[Path, HeadResult]
) -> list[_Candidate]:
    """As `_choose`, the same for all seeds: what is best on average over them. What one of them
    did not finish is left out, unless that leaves nothing."""
    of_tries = list(zip(*planned, strict=True))  # none where no seed searches together
    finished = [ones for ones in of_tries if all(runs.is_finished(one.plan) for one in ones)]
    if not finished:
        return _choose(runs, planned, answers)
    rated = [_rate(runs, ones, answers) for ones in finished]
    return list(finished[rated.index(max(rated))])


def _tell_tried(
    runs: Runs, of_seed: Sequence[_Candidate], answers: Mapping[Path, HeadResult]
) -> list[dict[str, Any]]:
    """For results.json: what was tried with a seed and finished, with the accuracy that chose;
    empty where there was nothing to choose."""
    if len(of_seed) < 2:
        return []
    finished = [one for one in of_seed if runs.is_finished(one.plan)]
    return [
        {"settings": dict(one.tries), "accuracy": _rate(runs, [one], answers)[0]}
        for one in finished
    ]


def _rate(
    runs: Runs, ones: Sequence[_Candidate], answers: Mapping[Path, HeadResult]
) -> tuple[float, float]:
    """Mean accuracy of finished trainings on the clips to choose by, and minus their mean loss; of
    answers the accuracy alone counts. Without an epoch there is nothing to tell them apart by."""
    if answers:
        hits = [answers[runs.folder(one.plan)].predictions.hits().mean() for one in ones]
        return float(fmean(hits)), 0.0
    found = [runs.heldout(one.plan) or (0.0, 0.0) for one in ones]
    return fmean(accuracy for accuracy, _ in found), -fmean(loss for _, loss in found)


def _check_training(settings: Settings) -> None:
    """Refuse, or tell, what of the settings an ablation does not do.

    Raises:
        SettingsError: Several processes are to train one head.
    """
    if settings.train.devices > 1:
        raise SettingsError(
            f"train.devices is {settings.train.devices}: several processes that train one head; "
            "an ablation shares out its heads instead: set train.devices to 1 and ablate.jobs"
        )
    if set(settings.train.loggers) - {"dvclive"}:
        console.print("train.loggers has no effect here: an ablation keeps histories")


def _train_runs(
    settings: Settings,
    runs: Runs,
    plans: Sequence[RunPlan],
    store: FeatureStore,
    budget: Budget,
) -> dict[Path, str]:
    """Train what is not finished; returns why runs diverged, by their folders."""
    todo = runs.unfinished(plans)
    chosen = settings.ablate
    num_runs = len({runs.folder(plan) for plan in plans})
    fold = "" if store.fold is None else f"fold {store.fold.fold} of {store.fold.num_folds}: "
    console.print(f"{fold}{num_runs} trainings, {num_runs - len(todo)} of them finished before")
    if not todo:
        return {}
    device = torch.device(choose_device(settings.train.device))
    rows = store.rows_of_split("train")
    num_jobs = len(share_out(todo, chosen.jobs))
    several = num_jobs > 1
    feed = FeatureFeed.from_settings(store, rows, settings.feed, device=device, shared=several)
    estimates = _estimate(runs, todo, feed, device, num_jobs)
    with (
        stop_on_sigterm(settings.train.requeue_status, budget) as stop,
        show_ablation(len(todo), estimates, num_jobs) as shown,
    ):
        if estimates:
            console.print(shown.describe_estimates(), soft_wrap=True, markup=False)
        try:
            if several:
                how: dict[str, Any] = {"num_jobs": num_jobs, "tell": shown.tell, "stop": stop}
                return train_in_processes(runs, todo, feed, device, **how)
            return runs.train(todo, feed, device, tell=shown.tell, stop=stop)
        except BudgetOver:
            raise BudgetOver(
                f"{fold}no time for another epoch (ablate.minutes is {chosen.minutes:g}): "
                f"{num_runs - len(runs.unfinished(plans))} of {num_runs} trainings are finished, "
                f"the others saved, {shown.time_left()}; the same command goes on, and writes the "
                "table when all are finished"
            ) from None


def _estimate(
    runs: Runs, todo: Sequence[RunPlan], feed: FeatureFeed, device: torch.device, num_jobs: int
) -> Estimates:
    """Of each training, with the threads that its process will have."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, num_threads // num_jobs))
    try:
        return runs.estimate(todo, feed, device)
    finally:
        torch.set_num_threads(num_threads)


# ---- their answers, computed once for a split, and what is said of each variant ----------------


def _answer_runs(
    runs: Runs, plans: Sequence[RunPlan], feed: FeatureFeed, how: EvaluateSettings
) -> dict[Path, HeadResult]:
    """The answers of every finished run, by its folder.

    Raises:
        CheckpointError: A finished run is damaged.
    """
    folders = list(dict.fromkeys(runs.folder(plan) for plan in plans if runs.is_finished(plan)))
    found = {}
    with track("Evaluating", len(folders), "heads") as progress:
        for folder in folders:
            try:
                found[folder] = _answer_run(folder, feed, how)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}; or delete {folder} and run `python cli.py ablate` again"
                ) from None
            progress.advance(1, folder.name)
    return found


def _answer_run(folder: Path, feed: FeatureFeed, how: EvaluateSettings) -> HeadResult:
    path = _predictions_of(folder, how.split)
    if not path.exists():
        in_order = how.model_copy(update={"temporal_need": "none"})
        result = score_head(folder, feed, in_order)
        result.predictions.save(path)
        return result
    head, extra = load_fitting_head(folder, feed.store)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    num_neurons = getattr(head, "config", {}).get("num_neurons")
    predictions = Predictions.load(path)
    routed = predictions.neurons is not None
    return HeadResult(extra["title"], predictions, num_parameters, num_neurons if routed else None)


def _predictions_of(folder: Path, split: str) -> Path:
    """Where a run's answers on a split are kept."""
    return folder / f"predictions-{split}.npz"


def _describe_variant(
    variant: Variant,
    folders: Sequence[Path],
    trained: Sequence[_Trained],
    num_folds: int,
    failures: Mapping[Path, str],
    split: str,
) -> AblationVariant:
    """What `assemble_ablation` takes; several runs may share a folder of `folders`, all its own.

    Of a cross-validation a seed counts where all of its folds are trained: then every clip has an
    answer of a head that did not learn from it.
    """
    by_seed: dict[int, dict[int, AblationRun]] = {}
    for (plan, tries), tried, fold, runs, answer in trained:
        answers = _predictions_of(runs.folder(plan), split).relative_to(runs.root.parent)
        run = AblationRun(
            plan.seed,
            answer,
            runs.history(plan),
            answers.as_posix(),
            chosen=dict(tries),
            tried=tried,
        )
        by_seed.setdefault(plan.seed, {})[fold] = run
    done = [
        _join(seed, parts) if len(parts) > 1 else parts[0]
        for seed, parts in by_seed.items()
        if len(parts) == num_folds
    ]
    own = [failures[folder] for folder in folders if folder in failures]
    return AblationVariant(variant.title, variant.table, variant.changes, done, own)


def _join(seed: int, folds: Mapping[int, AblationRun]) -> AblationRun:
    """The trainings of a cross-validation as one run, whose answers are of all clips."""
    first = folds[0].result
    answers = join_folds([run.result.predictions for run in folds.values()])
    return AblationRun(seed, HeadResult(first.title, answers, first.num_parameters), folds=folds)
