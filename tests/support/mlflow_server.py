"""An MLflow server on this machine that can be killed and started again, and what it has been told."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from support.cluster import free_port, until


class MLflowServer:
    """`mlflow server` with a database and an artifact store of its own, on one port whenever it is there."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", f"{self._folder}/artifacts"]
        self._process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, "the MLflow server")

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it and all its processes a signal, and wait until they are gone."""
        os.killpg(self._process.pid, number)
        self._process.wait()

    def runs(self, experiment: str) -> list[Run]:
        """The runs of an experiment; none while nobody has made it."""
        client = MlflowClient(self.uri)
        known = client.get_experiment_by_name(experiment)
        return list(client.search_runs([known.experiment_id])) if known else []

    def steps(self, run: Run, metric: str) -> list[int]:
        """The steps of a metric that have arrived, each as often as it stands there."""
        return [point.step for point in MlflowClient(self.uri).get_metric_history(run.info.run_id, metric)]

    def artifacts(self, run: Run) -> set[str]:
        """What lies at the top of a run's artifacts."""
        return {artifact.path for artifact in MlflowClient(self.uri).list_artifacts(run.info.run_id)}
