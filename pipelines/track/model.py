"""The tuned method as an MLflow model: a folder that `vopcore.tuned_model` reads, its code, what to install.

Made of MlflowClient's pieces: `mlflow.pyfunc.log_model` wants a global URI and the run of this thread.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

import vopcore
from vopcore.metrics import names

REQUIREMENTS = (  # as in pyproject.toml: what `vopcore.tuned_model` imports
    "mlflow>=3.17",
    "torch>=2.15",
    "open_clip_torch>=3.3,<4",
    "av>=18.1,<19",
    "safetensors>=0.6",
    "pyarrow>=25",
    "psutil>=6",
    "simplejpeg>=1.9",
    "numpy",
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(
                "string",
                name,
                required=False,
            )
            for name in ("caption", "video")
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("top_k", "long", 0),  # videos to rank for a caption; 0: vectors
            ParamSpec(
                "index",
                "string",
                "",
            ),  # an index of pipelines/index.py, whose moments are ranked
        ]
    ),
)
BEST = "best"  # the alias in MLflow's registry
SHOWN_METRICS = (*names.HEADLINES, names.TRAINABLE)  # beside the model


def write_model(
    folder: Path,
    data: Path,
    example: Mapping[str, str],
) -> None:
    """Write the model that loads `data`, a folder of `save_model`; `example`: one row of input."""
    mlflow.pyfunc.save_model(
        folder,
        loader_module="vopcore.tuned_model",
        data_path=str(data),
        code_paths=[str(Path(vopcore.__file__).parent)],
        pip_requirements=list(REQUIREMENTS),
        signature=SIGNATURE,
        input_example=[dict(example)],
        model_config={"device": "auto", "pretrained": "auto"},
    )


def upload_model(
    client: MlflowClient,
    run_id: str,
    value: Mapping[str, Any],
) -> None:
    """Make the model of `write_model` at `path` the one of this run, called `name`; once, however often."""
    model = _entry(client, run_id, value)
    if model.status == LoggedModelStatus.READY:
        # A process that was killed in between left it out of the registry.
        register_best(client, run_id, model)
        return

    # The folder was written before the run had an entry for it: its description names both from now on.
    folder = Path(value["path"])
    description = Model.load(folder / "MLmodel")
    description.run_id = run_id
    description.model_uuid = model.model_id
    description.model_id = model.model_id
    description.artifact_path = model.artifact_location
    description.save(folder / "MLmodel")

    client.log_model_artifacts(model.model_id, str(folder))
    output = LoggedModelOutput(model.model_id, step=0)
    client.log_outputs(run_id, [output])
    metrics = _model_metrics(client, run_id, model.model_id)
    client.log_batch(run_id, metrics=metrics)

    # Last: a model that is ready is whole.
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    register_best(client, run_id, model)


def register_best(
    client: MlflowClient,
    run_id: str,
    model: LoggedModel,
) -> None:
    """Make the model a version of the registered model of its experiment, and `best` if it is.

    The best is told by R@1 on the val split; without one by that on the test split, and the tag `chosen_by`
    says so. `models:/NAME@best` loads it.
    """
    run = client.get_run(run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    name = registered_name(experiment.name)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise

    if client.search_model_versions(f"run_id = '{run_id}'"):
        return

    chosen_by = names.T2V_R1
    if names.VAL_T2V_R1 in run.data.metrics:
        chosen_by = names.VAL_T2V_R1
    recall = run.data.metrics.get(chosen_by, 0.0)
    tags = {
        "method": run.data.tags.get("method", ""),
        "chosen_by": chosen_by,
        "recall": str(recall),
    }
    version = client.create_model_version(
        name,
        model.artifact_location,
        run_id,
        tags=tags,
        model_id=model.model_id,
    )

    # The registry has no order by recall: the best so far keeps its own in a tag.
    best = _best_version(client, name)
    if best is None or recall > float(best.tags.get("recall", "-1")):
        client.set_registered_model_alias(name, BEST, version.version)


def registered_name(experiment: str) -> str:
    """MLflow's registry takes no `/` and no `:` in a name."""
    return re.sub(r"[/:]", "_", experiment)


def _best_version(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, BEST)
    except MlflowException:  # no version has the alias yet
        return None


def _entry(
    client: MlflowClient,
    run_id: str,
    value: Mapping[str, Any],
) -> Any:  # noqa: ANN401 - a LoggedModel
    """MLflow's entry for the model: begun before, or new."""
    experiment_id = client.get_run(run_id).info.experiment_id
    entries = client.search_logged_models(
        [experiment_id],
        f"source_run_id = '{run_id}'",
    )
    if entries:
        return entries[0]
    return client.create_logged_model(
        experiment_id,
        value["name"],
        run_id,
        params=value["params"],
        model_type="text-video retrieval",
    )


def _model_metrics(
    client: MlflowClient,
    run_id: str,
    model_id: str,
) -> list[Metric]:
    """The run's own values once more, with the model's name on them."""
    metrics = []
    for name in SHOWN_METRICS:
        history = client.get_metric_history(run_id, name)
        if not history:
            continue

        last = history[-1]
        metric = Metric(
            last.key,
            last.value,
            last.timestamp,
            last.step,
            model_id=model_id,
        )
        metrics.append(metric)
    return metrics
