"""The cluster a run is on: has it what the config asks for, can it grow, and do all machines see one disk."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vopcore.config import ConfigError, RunConfig
from vopcore.config.sections import Resources

ROOT = Path(__file__).parents[2]
SHIPPED = "working_dir_files"  # where Ray unpacks what --working-dir brought, until it needs the room
WAIT = 30.0  # minutes for machines that the cluster's config has, but that do not run yet
SAY_EVERY = 60.0  # seconds between lines while waiting

Machines = Sequence[Mapping[str, float]]  # the resources of each: {"CPU": 16.0, "GPU": 1.0}


def check_places(config: RunConfig) -> None:
    """Refuse results in the copy of a checkout that Ray made for this job, as it deletes that."""
    for key, place in (("output", config.output), ("storage", config.storage)):
        if place is not None and SHIPPED in Path(place).parts:
            raise ConfigError(
                f"{key}: {place} is in the copy of this checkout that --working-dir made for one job, and"
                f" goes with it; write {key}=/a/folder/that/stays"
            )


def check_machines(config: RunConfig) -> None:
    """Refuse what this cluster cannot run, also if it starts all the machines it may, before any work."""
    asked = config.resources
    if "tune" not in config.stages or asked.wait:
        return
    there = max(machines(), grown(), key=lambda there: num_fit(there, asked))
    if num_fit(there, asked) < asked.workers:
        raise ConfigError(_missing(asked, there))


def wait_for_machines(asked: Resources) -> None:
    """Have the cluster start the machines that tuning asks for, and wait for them.

    Raises ConfigError where they are not there after `resources.wait` minutes, or WAIT.
    """
    wait = WAIT if asked.wait is None else asked.wait
    if num_fit(machines(), asked) >= asked.workers:
        return
    request_resources(bundles=[per_worker(asked)] * asked.workers)
    try:
        with say_what_is_missing(asked):
            deadline = time.monotonic() + 60 * wait
            while num_fit(machines(), asked) < asked.workers:
                if time.monotonic() > deadline:
                    late = f" after {wait:g} minutes (resources.wait)"
                    raise ConfigError(_missing(asked, machines()) + late)
                time.sleep(1)
    finally:
        request_resources(bundles=[])


@contextmanager
def say_what_is_missing(asked: Resources) -> Iterator[None]:
    """While the block runs: a line a minute as long as there are fewer machines than it asks for."""
    stop = threading.Event()

    def watch() -> None:
        pause = 2.0
        while not stop.wait(pause):
            there = num_fit(machines(), asked)
            if there < asked.workers:
                print(f"waiting: {_ask(asked)}; room for {there} now", file=sys.stderr, flush=True)
            pause = SAY_EVERY if there < asked.workers else 2.0

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def machines() -> list[dict[str, float]]:
    """What each live machine has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grown() -> list[dict[str, float]]:
    """What each machine would have if the autoscaler started all that it may; none where that is not known.

    `ray up` leaves its config on the head, where the driver runs; Ray has no other way to ask for it.
    """
    config = Path("~/ray_bootstrap_config.yaml").expanduser()
    if "RAY_ADDRESS" not in os.environ or not config.is_file():
        return []
    said = yaml.safe_load(config.read_text())
    kinds, most = said["available_node_types"], said.get("max_workers", 0)
    return [
        kind["resources"] for kind in kinds.values() for _ in range(min(kind.get("max_workers", 0), most))
    ]


def num_cpus() -> int:
    """How many CPUs this cluster has, or may grow to."""
    return max(1, *(int(sum(have.get("CPU", 0) for have in there)) for there in (machines(), grown())))


def per_worker(asked: Resources) -> dict[str, float]:
    """What one tuning worker holds."""
    return {"CPU": asked.cpus_per_worker} | ({"GPU": 1} if asked.gpu else {})


def num_fit(there: Machines, asked: Resources) -> int:
    """How many workers fit, each whole on one machine."""
    need = per_worker(asked)
    return sum(min(int(have.get(name, 0) // amount) for name, amount in need.items()) for have in there)


def _ask(asked: Resources) -> str:
    each = " and ".join(f"{amount} {name}" for name, amount in per_worker(asked).items())
    return f"tuning asks for {asked.workers} workers with {each} each"


def _missing(asked: Resources, there: Machines) -> str:
    total = {name: int(sum(have.get(name, 0) for have in there)) for name in per_worker(asked)}
    has = ", ".join(f"{amount} {name}" for name, amount in total.items())
    hint = "; resources.gpu=false tunes on CPUs" if asked.gpu and not total["GPU"] else ""
    return f"resources.workers: {_ask(asked)}, this cluster has {has}, room for {num_fit(there, asked)}{hint}"


def check_shared(config: RunConfig) -> None:
    """Refuse paths that some machine of the cluster does not have: code, videos, model, shards."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    keys = {
        "storage": config.storage or config.output,
        "data.videos": config.data.videos or config.data.root,
        "clip.model": config.clip.model,
        "clip.pretrained": config.clip.pretrained or "",
    }
    paths = {key: path for key, path in keys.items() if path.startswith("/") and Path(path).exists()}
    for host, answer in {
        node["NodeManagerHostname"]: _ask_for(paths, node["NodeID"]) for node in nodes
    }.items():
        try:
            unseen = ray.get(answer)
        except ray.exceptions.RayTaskError:
            raise ConfigError(
                f"{host} does not have this code at {ROOT}: put the checkout on every machine at the same"
                " place, or submit with --working-dir ."
            ) from None
        except ray.exceptions.RayError:  # it went away, and what it saw does not matter any more
            continue
        for key in unseen:
            raise ConfigError(
                f"{key}: {paths[key]} is not on {host}; give a disk that all machines share, or s3://, gs://"
            )


def _ask_for(paths: dict[str, str], node: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _unseen.options(scheduling_strategy=there).remote(paths)


@ray.remote(num_cpus=0)
def _unseen(paths: dict[str, str]) -> list[str]:
    return [key for key, path in paths.items() if not Path(path).exists()]
