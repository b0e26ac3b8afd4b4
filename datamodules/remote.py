"""Remote shards: each is fetched whole, checked, and kept in a local cache of bounded size.

A set lies at a base: `https://HOST/PATH`, `hf://datasets/USER/NAME/PATH`, `pipe:COMMAND` with
`{name}` where a file's name goes, or whatever else fsspec opens. Credentials come from where each
tool keeps its own: `~/.netrc` for http, the login of the Hub, the settings of the command.

Everything here works in a process that was forked. So http goes through requests, with a session
for each file: fsspec's http lives by a thread that a fork leaves behind, and gives up on any file
after five minutes. Other file systems are looked up for each file; fsspec forgets those of before
a fork.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import quote

import fsspec  # type: ignore[import-untyped]
import requests

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 3
BACKOFF_S = 0.5
"""Pause after the first failed attempt; it doubles after each."""
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""Longest wait for the next bytes of an http server or a command."""
CHUNK_BYTES = 1 << 20
FINAL_STATUS = (401, 403, 404, 410)
FINAL_ERRORS = (FileNotFoundError, PermissionError, ValueError, ImportError)
"""Faults, by HTTP status and kind, that another attempt does not cure."""
MAX_AHEAD = 8
"""Shards waiting to be prefetched; more are passed over."""


class RemoteError(OSError):
    """A remote file that could not be fetched; the message names it and the fault."""


class RemoteRefused(RemoteError):
    """It is not there, or not for us, or there is no way to read it: no other attempt was made."""


def fetch_bytes(base: str, name: str) -> bytes:
    """A small file of a set, whole.

    Raises:
        RemoteError: it could not be fetched.
        ValueError: a `pipe:` base without `{name}`.
    """
    address = _address(base, name)
    return _with_retries(address, lambda: b"".join(_chunks(address)))


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
            RemoteError: it could not be fetched, or is not what the index says.
            OSError: the cache folder cannot be written, or its disk is full.
            ValueError: the name is no plain file name; a `pipe:` base without `{name}`.
        """
        target, address = self._target(name), _address(self.base, name)
        with _cache_faults(self.folder):
            if not _holds(target, size, sha256):
                target.parent.mkdir(parents=True, exist_ok=True)
                with _locked(_beside(target, "lock")):
                    if not _holds(target, size, sha256):  # nobody fetched it in the meantime
                        _with_retries(address, lambda: self._fetch(address, target, size, sha256))
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
        with _locked(self.folder / ".lock"):
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
    with part.open("r+b") as file, closing(_chunks(address)) as chunks:
        for chunk in chunks:
            received += len(chunk)
            if received > size:
                raise RemoteError(f"expected {size} bytes, more came")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if received != size:
        raise RemoteError(f"expected {size} bytes, {received} came")
    if digest.hexdigest() != sha256:
        raise RemoteError(f"expected SHA-256 {sha256}, {digest.hexdigest()} came")


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
        with _locked(lock, wait=False) as free:
            if not free:
                return stat.st_size
            part.unlink(missing_ok=True)
    return 0


def _stat(path: Path) -> os.stat_result | None:
    """Of a file that others may remove at any time."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file lock, which the kernel frees if the process dies; False if it is taken."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not, while a forked child has a copy


@contextmanager
def _cache_faults(folder: Path) -> Iterator[None]:
    """Say of a local fault which folder and which setting it is about."""
    try:
        yield
    except RemoteError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep shards in {folder}: {error}. Make room and check that it can be written, "
            "or set `data.cache_dir` to a folder on another disk",
        ) from error


def _with_retries(address: str, attempt: Callable[[], T]) -> T:
    """The attempt's result; a RemoteError is tried again, unless nothing would change."""
    number = 1
    while True:
        try:
            return attempt()
        except RemoteError as error:
            if number == ATTEMPTS or isinstance(error, RemoteRefused):
                raise type(error)(f"{address}: {error} (attempt {number})") from error
            pause = BACKOFF_S * 2 ** (number - 1)
            log.warning("%s: %s; trying again in %.1f s", address, error, pause)
        time.sleep(pause)
        number += 1


def _address(base: str, name: str) -> str:
    """Where a file of a set lies: a URL, or `pipe:` and the command that writes it to stdout."""
    if base.startswith("pipe:"):
        if "{name}" not in base:
            raise ValueError(
                f"{base!r} has no {{name}}; put it where the name of a file goes, as in "
                "'pipe:aws s3 cp s3://bucket/set/{name} -', without quotes around it"
            )
        return base.replace("{name}", shlex.quote(name))
    if base.startswith(("http://", "https://")):
        name = quote(name)
    return f"{base.rstrip('/')}/{name}"


def _chunks(address: str) -> Generator[bytes]:
    """A remote file piece by piece.

    Raises:
        RemoteError: every fault there is; the message leaves the address out.
    """
    scheme = address.partition(":")[0]
    read = {"pipe": _pipe_chunks, "http": _http_chunks, "https": _http_chunks}
    try:
        yield from read.get(scheme, _fsspec_chunks)(address)
    except RemoteError:
        raise
    except Exception as error:  # each library has its own kinds
        status = getattr(getattr(error, "response", None), "status_code", None)
        final = status in FINAL_STATUS or isinstance(error, FINAL_ERRORS)
        kind = RemoteRefused if final else RemoteError
        raise kind(f"{type(error).__name__}: {error}") from error


def _http_chunks(url: str) -> Iterator[bytes]:
    plain = {"Accept-Encoding": "identity"}
    timeouts = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    with requests.get(url, stream=True, timeout=timeouts, headers=plain) as response:
        response.raise_for_status()
        yield from response.iter_content(CHUNK_BYTES)


def _fsspec_chunks(url: str) -> Iterator[bytes]:
    system, path = fsspec.url_to_fs(url)
    # The Hub's file system streams a file in one answer only if told to; others know no 0.
    options = {"block_size": 0} if url.startswith("hf:") else {}
    with system.open(path, "rb", **options) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _pipe_chunks(address: str) -> Iterator[bytes]:
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            address.removeprefix("pipe:"),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield from _pipe_output(process.stdout)
            status = process.wait(READ_TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the shell and what it started
        if status != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise RemoteError(f"exit status {status}; the last it said: {said[-1]}")


def _pipe_output(stream: IO[bytes]) -> Iterator[bytes]:
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    while waiting.poll(READ_TIMEOUT_S * 1000):
        chunk = os.read(stream.fileno(), CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
    raise RemoteError(f"no output for {READ_TIMEOUT_S:g} s")
