"""Runs shown in other programs: TensorBoard, Weights & Biases, MLflow. None is needed, none can fail a run: the record
alone is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_bench.errors import first_line
from retrieval_bench.progress import logger

Log = Callable[[Mapping[str, float], int], object]
Close = Callable[[], object]


def _tensorboard(run_id: str, config: Mapping[str, Any], results: Path) -> tuple[Log, Close]:
    """Event files in a folder (``tensorboard --logdir <results>/tensorboard``)."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(results / "tensorboard" / run_id))
    writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))
    return lambda values, step: [writer.add_scalar(name, value, step) for name, value in values.items()], writer.close


def _wandb(run_id: str, config: Mapping[str, Any], results: Path) -> tuple[Log, Close]:
    """A run of the project ``retrieval_bench`` at Weights & Biases, with the user's own login and settings."""
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(project="retrieval_bench", name=run_id, config=dict(config), dir=str(results))
    for names, axis in {"*": "epoch", "step/*": "step/number"}.items():  # its own step would be one axis for both
        run.define_metric(names, step_metric=axis)
    return lambda values, step: run.log(
        {**values, "step/number" if "step/loss" in values else "epoch": step}
    ), run.finish


def _mlflow(run_id: str, config: Mapping[str, Any], results: Path) -> tuple[Log, Close]:
    """A run of the experiment ``retrieval_bench`` where MLflow's own settings say."""
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_experiment("retrieval_bench")
    mlflow.start_run(run_name=run_id)
    mlflow.log_params(dict(config))
    return lambda values, step: mlflow.log_metrics(dict(values), step=step), mlflow.end_run


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


class Trackers:
    """Several trackers, keys of :data:`TRACKERS`, as one; one that fails says so once and is left out from then on."""

    def __init__(self, names: Iterable[str], run_id: str, config: Mapping[str, Any], results: Path):
        self.running: dict[str, tuple[Log, Close]] = {}
        for name in names:
            with self._tolerated(name, "not tracked"):
                self.running[name] = TRACKERS[name](run_id, config, results)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after `step` epochs; ``step/loss`` after so many steps."""
        for name, (log, _) in list(self.running.items()):
            with self._tolerated(name, "no longer tracked"):
                log(values, step)

    def close(self) -> None:
        """The run has ended, in whatever way."""
        for name, (_, close) in list(self.running.items()):
            with self._tolerated(name, "no longer tracked"):
                close()

    @contextmanager
    def _tolerated(self, name: str, problem: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever another program does must not cost the run
            logger.info(f"{problem} with {name}: {first_line(error)}")
            self.running.pop(name, None)
