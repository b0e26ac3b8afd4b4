"""Remote shards: each is fetched whole, checked, and kept in a local cache of bounded size."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.shards.transport import RemoteError, address_of, chunks_of, with_retries

log = logging.getLogger(__name__)

MAX_AHEAD = 8
"""Shards waiting to be prefetched; more are passed over."""


class CacheError(OSError):
    """The cache folder cannot be written, or its disk is full; the message names the folder."""


class RemoteChanged(RemoteError):
    """A remote shard is not what the set's index says."""


class ShardCache:
    """The shards of one remote set, in a folder that many sets and processes may share.

    Shards lie at `FOLDER/FIRST 16 HEX DIGITS OF SHA-256(BASE)/NAME`; those of all sets together
    stay within the limit. Whoever asks first fetches, others wait. The object may be made in one
    process and used in others, forked or spawned. A thread that prefetches does not go along
    with a fork: prefetch in the process that reads.
    """

    def __init__(self, base: str, folder: Path, limit_bytes: int) -> None:
        """Keep shards of the set at `base` in `folder`, which is made when first needed.

        The least recently used shards make room for new ones; a shard larger than `limit_bytes`
        is kept alone.
        """
        self.base, self.folder, self.limit_bytes = base, folder, limit_bytes
        self._ahead = _Ahead(self.path)

    def __reduce__(self) -> tuple[type[ShardCache], tuple[str, Path, int]]:
        return ShardCache, (self.base, self.folder, self.limit_bytes)

    def path(self, name: str, size: int, sha256: str) -> Path:
        """The local file of a shard, fetched if need be; now the most recently used one.

        Another process may remove it to make room before the caller opens it: on
        FileNotFoundError, ask again. A file once open stays readable.

        Args:
            name: of the shard, a plain file name.
            size: its bytes by the set's index.
            sha256: its hash by the set's index, in hex.

        Raises:
            RemoteError: it could not be fetched.
            RemoteChanged: it is not what the index says.
            CacheError: the cache folder cannot be written, or its disk is full.
            ValueError: the name is no plain file name; a `pipe:` base without `{name}`.
        """
        target, address = self._target(name), address_of(self.base, name)
        with _cache_faults(self.folder):
            if not _holds(target, size, sha256):
                target.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(_beside(target, "lock")):
                    if not _holds(target, size, sha256):  # nobody fetched it in the meantime
                        with_retries(address, lambda: self._fetch(address, target, size, sha256))
        return target

    def prefetch(self, name: str, size: int, sha256: str) -> None:
        """Fetch a shard in the background, one at a time; a hint that never waits or raises.

        One already asked for is ignored, and so is one too many. What fails is logged, tried again
        by `path` and raised there.
        """
        if self._ahead.pid != os.getpid():
            self._ahead = _Ahead(self.path)
        self._ahead.add(name, size, sha256)

    def _target(self, name: str) -> Path:
        if not name or name.startswith(".") or name != Path(name).name:
            raise ValueError(f"{self.base}: a shard is named {name!r}, which is no plain file name")
        return self.folder / hashlib.sha256(self.base.encode()).hexdigest()[:16] / name

    def _fetch(self, address: str, target: Path, size: int, sha256: str) -> None:
        """Fetch a shard whose lock is held. At no time does a lock file vouch for a wrong file."""
        started = time.monotonic()
        part = _beside(target, "part")
        target.unlink(missing_ok=True)
        self._reserve(part, size)
        try:
            _download(address, part, size, sha256)
            _beside(target, "lock").write_text(sha256)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        mb, seconds = size / 1e6, max(time.monotonic() - started, 1e-3)
        log.info("fetched %s: %.1f MB at %.1f MB/s", address, mb, mb / seconds)

    def _reserve(self, part: Path, size: int) -> None:
        """Make room, and claim it by an empty file of the full size before the first byte comes."""
        with FileLock(self.folder / ".lock"):
            part.unlink(missing_ok=True)  # of a process that died
            locks = list(self.folder.glob("*/.*.lock"))  # only a file with a lock of ours is ours
            used = sum(_claimed(lock) for lock in locks)
            shards = [lock.with_name(lock.name[1 : -len(".lock")]) for lock in locks]
            kept = [(stat, shard) for shard in shards if (stat := _stat(shard))]
            used += sum(stat.st_size for stat, _ in kept)
            for stat, shard in sorted(kept, key=lambda item: item[0].st_mtime_ns):
                if used + size <= self.limit_bytes:
                    break
                shard.unlink(missing_ok=True)
                used -= stat.st_size
            with part.open("wb") as file:
                file.truncate(size)


class _Ahead:
    """Calls `fetch` for what was added, in order, in a thread that lives while there is some."""

    def __init__(self, fetch: Callable[[str, int, str], object]) -> None:
        self.pid = os.getpid()
        self._fetch = fetch
        self._waiting: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, size: int, sha256: str) -> None:
        with self._lock:
            if name in self._waiting or len(self._waiting) >= MAX_AHEAD:
                return
            self._waiting[name] = (size, sha256)
            if len(self._waiting) == 1:
                threading.Thread(None, self._run, "prefetch", (name,), daemon=True).start()

    def _run(self, first: str) -> None:
        name: str | None = first
        while name is not None:
            try:
                self._fetch(name, *self._waiting[name])
            except Exception as error:  # whatever it is, `path` meets it again and raises it
                log.warning("could not prefetch %s: %s", name, error)
            with self._lock:
                del self._waiting[name]
                name = next(iter(self._waiting), None)


def _download(address: str, part: Path, size: int, sha256: str) -> None:
    """Stream a remote file into `part` and check it; it has room for `size` bytes."""
    digest, received = hashlib.sha256(), 0
    with part.open("r+b") as file, closing(chunks_of(address)) as chunks:
        for chunk in chunks:
            received += len(chunk)
            if received > size:
                raise RemoteChanged(f"expected {size} bytes, received more")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if received != size:
        raise RemoteChanged(f"expected {size} bytes, received {received}")
    if digest.hexdigest() != sha256:
        raise RemoteChanged(f"expected SHA-256 {sha256}, received {digest.hexdigest()}")


def _beside(target: Path, kind: str) -> Path:
    """A shard's `lock`, which holds the hash it was verified by, or its unfinished `part`."""
    return target.with_name(f".{target.name}.{kind}")


def _holds(target: Path, size: int, sha256: str) -> bool:
    """Whether a shard is there, verified when fetched; if so, mark it as used."""
    try:
        if target.stat().st_size != size or _beside(target, "lock").read_text() != sha256:
            return False
        os.utime(target)
    except FileNotFoundError:
        return False
    return True


def _claimed(lock: Path) -> int:
    """Bytes that a running fetch has claimed; what a dead process claimed is removed."""
    part = lock.with_suffix(".part")
    if stat := _stat(part):
        try:
            with FileLock(lock, blocking=False):
                part.unlink(missing_ok=True)
        except Timeout:
            return stat.st_size
    return 0


def _stat(path: Path) -> os.stat_result | None:
    """Of a file that others may remove at any time."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _cache_faults(folder: Path) -> Iterator[None]:
    """Name the folder in a local fault."""
    try:
        yield
    except RemoteError:
        raise
    except OSError as error:
        raise CacheError(error.errno, f"cannot keep shards in {folder}: {error}") from error
