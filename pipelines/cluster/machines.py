"""The cluster a run is on: has it what the config asks for, can it grow, and do all machines see one disk."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import yaml
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vopcore.config import ConfigError, RunConfig
from vopcore.config.sections import Resources
from vopcore.storage import StorageError, is_uri, probe

ROOT = Path(__file__).parents[2]

# where Ray unpacks what --working-dir brought, until it needs the room
SHIPPED = "working_dir_files"
AUTOSCALER_CONFIG = "~/ray_bootstrap_config.yaml"  # on the head

# minutes for machines that the cluster's config has, but that do not run yet
WAIT = 30.0
LOOK_EVERY = 2.0  # seconds between looks at the cluster
WRITTEN = "storage"  # the key of the place that every machine writes to
ANSWER = 300.0  # seconds in which any machine that is alive starts a process
SAY_EVERY = 60.0  # seconds between lines while waiting

# the resources of each: {"CPU": 16.0, "GPU": 1.0}
Machines = Sequence[Mapping[str, float]]


def check_places(config: RunConfig) -> None:
    """Refuse results in the copy of a checkout that Ray made for this job, as it deletes that."""
    places = {
        "output": config.output,
        "storage": config.storage,
    }
    for key, place in places.items():
        if place is not None and SHIPPED in Path(place).parts:
            raise ConfigError(
                f"{key}: {place} is in the copy of this checkout that --working-dir made for one job, and"
                f" goes with it; write {key}=/a/folder/that/stays"
            )


def check_machines(config: RunConfig) -> None:
    """Refuse what this cluster cannot run, also if it starts all the machines it may, before any work."""
    resources = config.resources
    if "tune" not in config.stages or resources.wait:
        return

    # A cluster that may grow will; one whose config is not known is what it is.
    live = machines()
    possible = grown()
    largest = possible if num_fit(possible, resources) > num_fit(live, resources) else live
    if num_fit(largest, resources) < resources.workers:
        raise ConfigError(_missing(resources, largest))


def wait_for_machines(resources: Resources) -> None:
    """Have the cluster start the machines that tuning asks for, and wait for them.

    Raises ConfigError where they are not there after `resources.wait` minutes, or WAIT.
    """
    if num_fit(machines(), resources) >= resources.workers:
        return

    minutes = WAIT if resources.wait is None else resources.wait
    deadline = time.monotonic() + 60 * minutes
    request_resources(bundles=[per_worker(resources)] * resources.workers)
    try:
        with say_what_is_missing(resources):
            while num_fit(machines(), resources) < resources.workers:
                if time.monotonic() > deadline:
                    missing = _missing(resources, machines())
                    raise ConfigError(f"{missing} after {minutes:g} minutes (resources.wait)")
                time.sleep(1)
    finally:
        # Ray keeps to a request until another comes: left alone, the machines would never go away.
        request_resources(bundles=[])


@contextmanager
def say_what_is_missing(
    resources: Resources,
    has_workers: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """While the block runs: a line a minute as long as there are fewer machines than it asks for, or other
    work holds them and `has_workers` says that ours has none yet.
    """
    # A thread of its own: the block may be Ray's, which waits in silence.
    stop = threading.Event()

    def watch() -> None:
        pause = LOOK_EVERY
        while not stop.wait(pause):
            pause = LOOK_EVERY
            line = _missing_now(resources, has_workers)
            if line:
                print(f"waiting: {line}", file=sys.stderr, flush=True)
                pause = SAY_EVERY

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LOOK_EVERY)  # it may be waiting for a Ray that is gone


def _missing_now(resources: Resources, has_workers: Callable[[], bool]) -> str | None:
    """What tuning waits for; None: for nothing."""
    num_there = num_fit(machines(), resources)
    if num_there < resources.workers:
        return f"{_ask(resources)}; room for {num_there} now"
    if has_workers() or not _is_queued():
        return None

    free = available_resources_per_node().values()
    num_free = num_fit(list(free), resources)
    if num_free < resources.workers:
        return f"{_ask(resources)}; other work holds them, room for {num_free} now"
    return None


def _is_queued() -> bool:
    """Whether workers of this job have no place yet."""
    own_job = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        # the last bytes of a group's id are its job's
        is_own = group_id.endswith(own_job)
        if is_own and group["state"] == "PENDING":
            return True
    return False


def live_machines() -> set[str]:
    """The ids of the machines that are alive now, as far as the head knows."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def has_lost_machine(before: Collection[str]) -> bool:
    """Whether one of these machines is gone.

    Each that counts as alive is asked for an answer: what ran on a machine fails at once when its power goes,
    and the head learns of it only half a minute later.
    """
    live = live_machines()
    if not live.issuperset(before):
        return True

    waiting = []
    for node in before:
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        waiting.append(_answer.options(scheduling_strategy=on_node).remote())

    # Until each has answered or is found dead by the head: a busy machine answers late.
    deadline = time.monotonic() + ANSWER
    while waiting and time.monotonic() < deadline:
        answers, waiting = ray.wait(
            waiting,
            num_returns=len(waiting),
            timeout=LOOK_EVERY,
        )
        try:
            ray.get(answers)
        except ray.exceptions.RayError:
            return True
        if not live_machines().issuperset(before):
            return True
    return bool(waiting)


@ray.remote(num_cpus=0, max_retries=0)
def _answer() -> None:
    """Being here is the answer."""


def machines() -> list[dict[str, float]]:
    """What each live machine has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grown() -> list[dict[str, float]]:
    """What each machine would have if the autoscaler started all that it may; none where that is not known.

    `ray up` leaves its config on the head, where the driver runs; Ray has no other way to ask for it.
    """
    file = Path(os.path.expanduser(AUTOSCALER_CONFIG))  # noqa: PTH111 - without a home it stays as it is
    if "RAY_ADDRESS" not in os.environ or not file.is_file():
        return []

    config = yaml.safe_load(file.read_text())
    most = config.get("max_workers", 0)  # of all kinds together

    possible = []
    for kind in config["available_node_types"].values():
        num_machines = min(kind.get("max_workers", 0), most)
        possible += [kind["resources"]] * num_machines
    return possible


def num_cpus() -> int:
    """How many CPUs this cluster has, or may grow to."""
    live = _total(machines(), "CPU")
    possible = _total(grown(), "CPU")
    return max(1, live, possible)


def per_worker(resources: Resources) -> dict[str, float]:
    """What one tuning worker holds."""
    need: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpu:
        need["GPU"] = 1
    return need


def num_fit(cluster: Machines, resources: Resources) -> int:
    """How many workers fit, each whole on one machine."""
    need = per_worker(resources)

    total = 0
    for machine in cluster:
        # The scarcest resource decides.
        counts = []
        for name, amount in need.items():
            available = machine.get(name, 0)
            counts.append(int(available // amount))
        total += min(counts)
    return total


def _total(cluster: Machines, resource: str) -> int:
    return int(sum(machine.get(resource, 0) for machine in cluster))


def _ask(resources: Resources) -> str:
    amounts = [f"{amount} {name}" for name, amount in per_worker(resources).items()]
    each = " and ".join(amounts)
    return f"tuning asks for {resources.workers} workers with {each} each"


def _missing(resources: Resources, cluster: Machines) -> str:
    totals = {name: _total(cluster, name) for name in per_worker(resources)}
    has = ", ".join(f"{amount} {name}" for name, amount in totals.items())

    room = num_fit(cluster, resources)
    message = f"resources.workers: {_ask(resources)}, this cluster has {has}, room for {room}"
    if resources.gpu and not totals["GPU"]:
        message += "; resources.gpu=false tunes on CPUs"
    return message


def check_shared(config: RunConfig) -> None:
    """Refuse what some machine of the cluster cannot use: code, videos, model, shards.

    Each machine is asked, the driver's own too: a path is looked for, a folder in a store is asked for, and
    where shards go a file is written, read and deleted. Raises ConfigError.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    paths = _local_paths(config)
    stores = _stores(config)
    if len(nodes) < 2 and not stores:  # one machine has what its driver has
        return

    # All machines are asked before the first answer is waited for.
    answers = [_ask_for(paths, stores, node["NodeID"]) for node in nodes]
    for node, answer in zip(nodes, answers, strict=True):
        host = node["NodeManagerHostname"]
        for key, problem in _problems_of(host, answer).items():
            raise ConfigError(f"{key}: {problem}")


def _local_paths(config: RunConfig) -> dict[str, str]:
    """What the config names on this machine's disks, by its key."""
    places = _places(config) | {
        "clip.model": config.clip.model,
        "clip.pretrained": config.clip.pretrained or "",
    }

    # A model may also be a name, and a place a URI: neither begins with a slash.
    paths = {}
    for key, place in places.items():
        if place.startswith("/") and Path(place).exists():
            paths[key] = place
    return paths


def _stores(config: RunConfig) -> dict[str, str]:
    """The folders in object stores that the config names, by its key."""
    return {key: place for key, place in _places(config).items() if is_uri(place)}


def _places(config: RunConfig) -> dict[str, str]:
    return {
        WRITTEN: config.storage or config.output,
        "data.videos": config.data.videos_place,
    }


def _problems_of(host: str, answer: ray.ObjectRef) -> dict[str, str]:
    """By the key, what the machine cannot use and why. Raises ConfigError where it has no code."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError:
        raise ConfigError(
            f"{host} does not have this code at {ROOT}: put the checkout on every machine at the same"
            " place, or submit with --working-dir ."
        ) from None
    except ray.exceptions.RayError:
        # It went away, and what it saw does not matter any more.
        return {}


def _ask_for(
    paths: dict[str, str],
    stores: dict[str, str],
    node: str,
) -> ray.ObjectRef:
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    return _problems.options(scheduling_strategy=on_node).remote(paths, stores)


@ray.remote(num_cpus=0)
def _problems(paths: dict[str, str], stores: dict[str, str]) -> dict[str, str]:
    """By its key, what this machine cannot use and why, in one line."""
    found = {}
    for key, path in paths.items():
        if not Path(path).exists():
            host = socket.gethostname()
            found[key] = f"{path} is not on {host}; give a disk that all machines share, or s3://, gs://"

    for key, place in stores.items():
        try:
            probe(place, write=key == WRITTEN)
        except StorageError as error:
            found[key] = str(error)
    return found
