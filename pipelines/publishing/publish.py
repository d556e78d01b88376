"""What a run is published as, and where to."""

from pathlib import Path

from pipelines import track
from pipelines.publishing.folder import WEIGHTS, PublishError, write_folder

HUB = "hub:"


def publish(
    run: str,
    to: str,
    uri: str | None = None,
) -> str:
    """Publish what `run` names to `to`; returns what to tell the user.

    Raises ValueError (PublishError, track.StoreError), one line.
    """
    experiment, _, word = run.rpartition("/")
    if not experiment:
        raise PublishError(f"{run}: write EXPERIMENT/METHOD, as in quickstart/vop_p")

    store = track.find_store(uri, experiment)
    chosen = track.pick(track.runs(store), word)

    if not to.startswith(HUB):
        folder = Path(to)
        write_folder(store, chosen, folder.name, folder)
        weights = str(folder / WEIGHTS)
        return f"{chosen.name} is in {folder}; load_tuned(clip, {weights!r}) loads it"

    name = to.removeprefix(HUB)
    if name.count("/") != 1:
        raise PublishError(f"{to}: a place on a hub is hub:ORG/NAME")

    # The folder stays: a hub that is away is tried again from there.
    folder = Path("outputs/published") / name
    write_folder(store, chosen, name, folder)

    # Only here: it takes a second to import.
    from pipelines.publishing.hub import upload

    address = upload(folder, name)
    return f"{chosen.name} is at {address}; load_tuned(clip, {to!r}) loads it"
