"""Trackio as a logger of Lightning's: metrics and sample rollouts in a local dashboard, or in one on the hub."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to Trackio, whose dashboard ``trackio show`` opens; it needs no account and no network.

    The files are in ``$TRACKIO_DIR``, by default in the cache of the Hugging Face hub.

    Args:
        project: Name of the project, under which the dashboard shows its runs.
        name: Name of the run; a run of this name that exists is continued. Trackio invents one if there is none.
        space_id: A Space of the hub, such as ``me/runs``, to log to instead of this machine.

    Raises:
        ImportError: Trackio is not installed.
    """

    def __init__(self, project: str = "pact-lightning", name: str | None = None, space_id: str | None = None) -> None:
        super().__init__()
        try:
            import trackio
        except ImportError as error:
            raise ImportError("TrackioLogger needs Trackio: pip install 'pact-lightning[trackio]'") from error
        self._trackio = trackio
        self._project = project
        self._name = name
        self._space_id = space_id
        self._run: Any = None

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Name of the run; ``None`` until it has one."""
        return self._name

    @property
    def experiment(self) -> Any:
        """The run of Trackio, begun when it is first asked for."""
        if self._run is None:
            self._run = self._trackio.init(
                project=self._project,
                name=self._name,
                space_id=self._space_id,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            self._name = self._run.name
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep hyperparameters as the run's config; Trackio takes them before the first metrics."""
        del args, kwargs
        self.experiment.config.update(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics of a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_traces(self, key: str, records: Sequence[dict[str, Any]], step: int | None = None) -> None:
        """Log rollouts as conversations.

        Args:
            key: Name under which they are shown.
            records: Rollouts as :func:`~pact_lightning.rollout.openai_format.trajectory_record` gives them; all but
                the messages is metadata.
            step: The optimiser step.
        """
        traces = [
            self._trackio.Trace(record["messages"], {name: of for name, of in record.items() if name != "messages"})
            for record in records
        ]
        self.experiment.log({key: traces}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; logging later, as a second fit does, continues the same run."""
        del status
        if self._run is not None:
            self._run.finish()
            self._run = None
