"""Harness: lm-eval, run on the model in memory, with the tasks of one local directory and with nothing else."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.ability.scorer import Scorer
from errata.ability.tasks import write_tasks
from errata.errors import MissingExtra, UsageError
from errata.model import EditedModel

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
LONGEST = 64
"""Tokens that are generated at most, where a task does not say."""


def evaluate(model: EditedModel, tasks: Path | None = None, *, limit: int | None = None) -> dict[str, dict[str, float]]:
    """The metrics of every task that a YAML file in `tasks` defines (by default: those of the atlas), by task.

    Of each task, the first `limit` documents are read. Raises `MissingExtra` without lm-eval, `UsageError` for a directory
    without tasks and for one whose tasks cannot be run.
    """
    if tasks is not None and not tasks.is_dir():
        raise UsageError(f"{tasks}: no such directory; --tasks wants one that holds lm-eval tasks as .yaml files")
    with _offline(), tempfile.TemporaryDirectory(prefix="errata-tasks-") as made:
        harness, manager_of, adapter = _lm_eval(model)
        directory = write_tasks(Path(made)) if tasks is None else tasks
        try:
            manager = manager_of(include_path=str(directory.resolve()), include_defaults=False)
            names = list(manager.all_tasks)
            if not names:
                raise UsageError(f"no tasks in {directory}: lm-eval tasks are .yaml files with a `task` and a dataset")
            found = harness(
                model=adapter, tasks=names, task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"the tasks in {directory} cannot be run: {first}") from error
    return {name: dict(_numbers(metrics)) for name, metrics in found["results"].items()}


def _lm_eval(model: EditedModel) -> tuple[Any, Any, Any]:
    """lm-eval's evaluator and task manager, and the model in the form that it wants. Raises `MissingExtra`."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-eval", "eval", "measuring general ability") from error

    class InMemory(LM):
        """The scorer, as lm-eval calls it."""

        def __init__(self) -> None:
            super().__init__()
            self.scorer = Scorer(model)

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return self.scorer.log_likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [self.scorer.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [self._generated(*request.args) for request in requests]

        def _generated(self, context: str, settings: dict[str, Any]) -> str:
            until = settings.get("until") or []
            longest = int(settings.get("max_gen_toks") or LONGEST)
            return self.scorer.generate(context, [until] if isinstance(until, str) else until, longest)

    return simple_evaluate, TaskManager, InMemory()


def _numbers(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`{"acc,none": .5, "alias": "..."}` as `acc`, .5."""
    for name, value in metrics.items():
        metric, comma, filtered = name.partition(",")
        if comma and isinstance(value, int | float):
            yield metric if filtered == "none" else name, float(value)


@contextmanager
def _offline() -> Iterator[None]:
    """Scope: nothing is looked for on the Hub, whatever a task asks for."""
    from huggingface_hub import constants

    before = {name: os.environ.get(name) for name in OFFLINE}
    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # read from the environment only once, at its import
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
