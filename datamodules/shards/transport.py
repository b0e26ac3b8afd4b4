"""Files of remote sets, in pieces: by http, from the Hugging Face hub, from a command's output.

A set lies at a base: `https://HOST/PATH`, `hf://datasets/USER/NAME/PATH`, `pipe:COMMAND` with
`{name}` where a file's name goes, or whatever else fsspec opens. Credentials come from where each
tool keeps its own: `~/.netrc` for http, the login of the Hub, the settings of the command.

Everything here works in a process that was forked. So http goes through requests, with a session
for each file: fsspec's http lives by a thread that a fork leaves behind, and gives up on any file
after five minutes. Other file systems are looked up for each file; fsspec forgets those of before
a fork.
"""

from __future__ import annotations

import logging
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from typing import IO, TypeVar
from urllib.parse import quote

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 8
BACKOFF_S = 0.5
"""Pause after the first failed attempt; it doubles after each, so that a minute is bridged."""
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""Longest wait for the next bytes of an http server or a command."""
CHUNK_BYTES = 1 << 20
FINAL_STATUS = (401, 403, 404, 410)
FINAL_ERRORS = (FileNotFoundError, PermissionError, ValueError, ImportError)
"""Faults, by HTTP status and kind, that another attempt does not cure."""


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
    address = address_of(base, name)
    return with_retries(address, lambda: b"".join(chunks_of(address)))


def with_retries(address: str, attempt: Callable[[], T]) -> T:
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


def address_of(base: str, name: str) -> str:
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


def chunks_of(address: str) -> Generator[bytes]:
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
    import requests

    plain = {"Accept-Encoding": "identity"}
    timeouts = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    with requests.get(url, stream=True, timeout=timeouts, headers=plain) as response:
        response.raise_for_status()
        yield from response.iter_content(CHUNK_BYTES)


def _fsspec_chunks(url: str) -> Iterator[bytes]:
    import fsspec

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
            raise RemoteError(f"exit status {status}; its last output: {said[-1]}")


def _pipe_output(stream: IO[bytes]) -> Iterator[bytes]:
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    while waiting.poll(READ_TIMEOUT_S * 1000):
        chunk = os.read(stream.fileno(), CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
    raise RemoteError(f"no output for {READ_TIMEOUT_S:g} s")
