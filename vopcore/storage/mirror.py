"""A local folder whose content is kept in an object store, so that it outlives its machine.

Work goes on in the folder as in any other; `push` brings up what has changed since, `fetch` has what was
pushed last, by whichever machine. SQLite's files are copied by SQLite, so that a copy is whole at any time.
"""

import json
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vopcore.storage.address import is_uri
from vopcore.storage.store import Store
from vopcore.storage.whole import scratch_folder, write_whole

PUSHED = "pushed.json"  # in the store: what was pushed last
STATE = ".pushed.json"  # in the folder: the same, and how its files were then

# what only the machine itself can use
PASSING = (".lock", ".part", "-wal", "-shm", "-journal")
THREADS = 8

FileState = tuple[int, int]  # bytes, and time of change in nanoseconds


@dataclass(frozen=True)
class Pushed:
    """What a push has left: a name of its own, the folder it came from, and the files in it."""

    token: str
    folder: str
    files: list[str]


class Mirror:
    """The folder on this machine for an address such as s3://bucket/outputs/name; the same one each time.

    Raises StorageError where the store cannot be used.
    """

    def __init__(self, place: str) -> None:
        self.store = Store(place)
        self.folder = Path(tempfile.gettempdir()) / "vopcore-outputs" / self.store.root

    def fetch(self) -> Path | None:
        """Have what was pushed last; what this folder holds from before, where another machine went on, is
        put aside as NAME.before.

        Returns the folder that it was pushed from; None: there is nothing newer than what is here.
        """
        pushed = self._pushed()
        token_here, _ = self._state()
        if pushed is None or pushed.token == token_here:
            return None

        if self.folder.is_dir():
            aside = self.folder.with_name(f"{self.folder.name}.before")
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
        self._in_parallel(self._download, pushed.files)
        self._remember(pushed.token)
        return Path(pushed.folder)

    def push(self) -> None:
        """Bring up what has changed since the last time, and delete there what is gone here."""
        _, before = self._state()
        now = self._files()
        changed = [name for name, state in now.items() if before.get(name) != state]
        gone = before.keys() - now.keys()
        if not changed and not gone:
            return

        self._in_parallel(self._upload, changed)
        for name in gone:
            self.store.delete(name)

        # Last: until it is there, everybody has what was pushed before.
        token = uuid.uuid4().hex
        pushed = Pushed(token, str(self.folder), sorted(now))
        content = json.dumps(asdict(pushed), indent=1)
        self.store.write(PUSHED, content.encode())
        self._remember(token, now)

    def _pushed(self) -> Pushed | None:
        try:
            return Pushed(**json.loads(self.store.read(PUSHED)))
        except FileNotFoundError:
            return None

    def _state(self) -> tuple[str | None, dict[str, FileState]]:
        """The token of the last push or fetch, and how the files were then."""
        try:
            state = json.loads((self.folder / STATE).read_text())
        except (FileNotFoundError, ValueError):
            return None, {}

        # JSON has made lists of the pairs
        files = {name: (size, changed) for name, (size, changed) in state["files"].items()}
        return state["token"], files

    def _remember(
        self,
        token: str,
        files: dict[str, FileState] | None = None,
    ) -> None:
        if files is None:
            files = self._files()
        state = {"token": token, "files": files}
        write_whole(self.folder / STATE, json.dumps(state))

    def _files(self) -> dict[str, FileState]:
        """All that is worth keeping, by its path in the folder."""
        files = {}
        for path in sorted(self.folder.rglob("*")):
            is_hidden = path.name.startswith(".")
            is_passing = path.name.endswith(PASSING) or path.name == "lock"
            if is_hidden or is_passing or not path.is_file():
                continue
            name = str(path.relative_to(self.folder))
            files[name] = _state_of(path)
        return files

    @staticmethod
    def _in_parallel(copy: Callable[[str], None], names: Sequence[str]) -> None:
        """Call `copy` for each name, several at once; the first error is raised here."""
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(copy, names):
                pass

    def _upload(self, name: str) -> None:
        try:
            with _readable(self.folder / name) as path:
                self.store.upload(path, name)
        except FileNotFoundError:  # gone since it was listed; the next push sees that
            pass

    def _download(self, name: str) -> None:
        self.store.download(name, self.folder / name)


def working_folder(place: str) -> Path:
    """Where the files of a folder or a bucket are on this machine while they are worked on."""
    if not is_uri(place):
        return Path(place)
    return Mirror(place).folder


def _state_of(path: Path) -> FileState:
    status = path.stat()
    wal = path.with_name(f"{path.name}-wal")  # where SQLite may put what is new
    if not wal.is_file():
        return status.st_size, status.st_mtime_ns
    added = wal.stat()
    size = status.st_size + added.st_size
    changed = max(status.st_mtime_ns, added.st_mtime_ns)
    return size, changed


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """The file as it can be copied: one of SQLite may be written to at this moment."""
    if path.suffix != ".db":
        yield path
        return
    with scratch_folder() as folder:
        copy = folder / path.name
        with (
            closing(sqlite3.connect(path)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield copy
