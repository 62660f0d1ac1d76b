"""Runs shown in other programs: TensorBoard, Weights & Biases, MLflow. None is needed, none can fail a run: the record
alone is complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrieval_bench.errors import first_line
from retrieval_bench.progress import logger


class TensorBoard:
    """Event files in a folder (``tensorboard --logdir <results>/tensorboard``)."""

    def __init__(self, run_id: str, config: Mapping[str, Any], results: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(results / "tensorboard" / run_id))
        self.writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of the project ``retrieval_bench`` at Weights & Biases, with the user's own login and settings."""

    def __init__(self, run_id: str, config: Mapping[str, Any], results: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project="retrieval_bench", name=run_id, config=dict(config), dir=str(results))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment ``retrieval_bench`` where MLflow's own settings say."""

    def __init__(self, run_id: str, config: Mapping[str, Any], results: Path):
        import mlflow  # pyright: ignore[reportMissingImports]

        self.mlflow = mlflow
        mlflow.set_experiment("retrieval_bench")
        mlflow.start_run(run_name=run_id)
        mlflow.log_params(dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """Several trackers as one; a tracker that fails says so once and is left out from then on.

    Args:
        names: keys of :data:`TRACKERS`.
        run_id: names the run there too.
        config: the flat configuration.
        results: folder for what trackers keep on this machine.
    """

    def __init__(self, names: Iterable[str], run_id: str, config: Mapping[str, Any], results: Path):
        self.running: dict[str, TensorBoard | WandB | MLflow] = {}
        for name in names:
            try:
                self.running[name] = TRACKERS[name](run_id, config, results)
            except Exception as error:  # whatever another program does must not cost the run
                logger.info(f"not tracked with {name}: {first_line(error)}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after `step` epochs."""
        self._call("log", values, step)

    def close(self) -> None:
        """The run has ended, in whatever way."""
        self._call("close")

    def _call(self, method: str, *args: Any) -> None:
        for name, tracker in list(self.running.items()):
            try:
                getattr(tracker, method)(*args)
            except Exception as error:
                logger.info(f"no longer tracked with {name}: {first_line(error)}")
                del self.running[name]
