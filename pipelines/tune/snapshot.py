"""Ray Train's list of a run's checkpoints, so kept that neither a kill nor a full disk loses them.

Ray writes its list in place, and copies a checkpoint into its folder file by file before the list names it.
Cut short, the list cannot be read, and a run with such a list never starts again; the folder is in no list,
and nobody ever deletes it.
"""

import json
import shutil
import sys
from pathlib import Path

from vopcore.storage import Store

LIST = "checkpoint_manager_snapshot.json"  # Ray's own name for it
KEPT = "checkpoints.json"  # the list as it was when it was last whole
FOLDERS = "checkpoint_"  # the names of Ray's checkpoints begin so


def keep(run: Store) -> None:
    """Keep the list as it is now, if it is whole. An object store takes whole files only, and needs none."""
    if not run.is_local or not run.exists(LIST):
        return

    content = run.read(LIST)
    if _named_in(content) is not None:
        run.write(KEPT, content)


def mend(run: Store) -> None:
    """Before a run starts or goes on, while nobody writes there: make its list readable again, and delete
    what is in no list.
    """
    if not run.is_local:
        return

    # Killed with its first checkpoint, a run has no list yet.
    named: set[str] | None = set()
    if run.exists(LIST):
        named = _named_in(run.read(LIST))
    if named is None:
        named = _put_back(run)

    folders = [name for name in run.names() if name.startswith(FOLDERS) and Path(run.path(name)).is_dir()]
    for name in folders:
        if name not in named:
            shutil.rmtree(run.path(name), ignore_errors=True)


def _put_back(run: Store) -> set[str]:
    """The kept list in the place of a broken one; returns the checkpoints that it names."""
    content = run.read(KEPT) if run.exists(KEPT) else b""
    named = _named_in(content)
    if named is not None and named <= set(run.names()):
        run.write(LIST, content)
        return named

    print(
        f"{run}: its list of checkpoints was cut short, and none is kept: it starts anew",
        file=sys.stderr,
    )
    run.delete(LIST)
    return set()


def _named_in(content: bytes) -> set[str] | None:
    """The folders of the checkpoints in a list; None where it was cut short."""
    try:
        results = json.loads(content)["checkpoint_results"]
        return {result["checkpoint_dir_name"] for result in results}
    except (ValueError, KeyError, TypeError):
        return None
