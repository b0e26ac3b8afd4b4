"""Shards over http, pipes and file systems into a shared cache: every fault met and named."""

from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import huggingface_hub.constants
import pytest
from fsspec.implementations.http import HTTPFileSystem
from torch.utils.data import DataLoader, Dataset

from datamodules.shards import cache as remote
from datamodules.shards import transport
from datamodules.shards.cache import CacheError, ShardCache
from datamodules.shards.transport import RemoteError, RemoteRefused, fetch_bytes
from pipeline.errors import message

Entry = tuple[str, int, str]
"""Name, size and hash of a shard, as an index has them."""

FORK = multiprocessing.get_context("fork")
SIZE = 5000


class Server(ThreadingHTTPServer):
    """Serves `files` by their paths; the next answers to a path may have `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.gate = threading.Event()
        """Until it is set, answers with the faults `silent` and `stalled` hang."""

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def base(self) -> str:
        return f"{self.root}/set"

    def put(self, name: str, size: int = SIZE, seed: int = 0, folder: str = "set") -> Entry:
        data = self.files[f"{folder}/{name}"] = random.Random(f"{name}{seed}").randbytes(size)
        return name, size, hashlib.sha256(data).hexdigest()


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.head(len(self.server.files[self.name()]))

    def do_GET(self) -> None:
        name = self.name()
        self.server.asked.append(name)
        faults = self.server.faults.get(name)
        self.answer(self.server.files.get(name), faults.pop(0) if faults else "")

    def name(self) -> str:
        return unquote(self.path.partition("?")[0]).removeprefix("/")

    def head(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def answer(self, data: bytes | None, fault: str) -> None:
        if data is None or fault.isdigit():
            return self.send_error(int(fault or 404))
        if fault == "silent":
            self.server.gate.wait(60)
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault in ("short", "long"):
            data = data[:-1] if fault == "short" else data + b"more"
        self.head(len(data))
        if fault == "closed":
            data = data[:1000]
        if fault == "stalled":
            self.wfile.write(data[:1000])
            self.server.gate.wait(60)
            data = data[1000:]
        self.wfile.write(data)
        return None

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transport, "BACKOFF_S", 0.001)
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", 20.0)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.gate.set()
        running.shutdown()


@pytest.fixture
def cache(server: Server, tmp_path: Path) -> ShardCache:
    return ShardCache(server.base, tmp_path / "cache", 10 * SIZE)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def start(target: Callable[..., Any], *args: Any) -> BaseProcess:
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def finish(*processes: BaseProcess) -> None:
    for process in processes:
        process.join(10)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def parts(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.glob("*/.*.part"))


def kept(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.glob("*/[!.]*")}


def test_a_shard_is_fetched_once(
    server: Server, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shard = server.put("a.tar")
    path = cache.path(*shard)
    digits = hashlib.sha256(server.base.encode()).hexdigest()[:16]
    assert path == cache.folder / digits / "a.tar"
    assert path.read_bytes() == server.files["set/a.tar"]
    assert cache.path(*shard) == path
    assert server.asked == ["set/a.tar"]
    (line,) = [line for line in caplog.messages if "fetched" in line]
    assert f"{server.base}/a.tar" in line and "MB/s" in line


@pytest.mark.parametrize("kind", ["http", "pipe", "file"])
def test_any_name_from_any_source(server: Server, tmp_path: Path, kind: str) -> None:
    name = 'it\'s "a" $(touch pwned) #1; 100%20.json'
    (tmp_path / name).write_bytes(b"content")
    server.files[f"set/{name}"] = b"content"
    base = {
        "http": server.base,
        "pipe": f"pipe:cat {tmp_path}/{{name}}",
        "file": f"file://{tmp_path}",
    }
    assert fetch_bytes(base[kind], name) == b"content"
    assert (
        fetch_bytes(base[kind].replace("file://", "") + "/" * (kind != "pipe"), name) == b"content"
    )
    assert not Path("pwned").exists()


@pytest.mark.parametrize("kind", ["http", "pipe", "file"])
def test_a_shard_is_never_whole_in_memory(server: Server, tmp_path: Path, kind: str) -> None:
    shard = server.put("a.tar", size=16 << 20)
    (tmp_path / "a.tar").write_bytes(server.files["set/a.tar"])
    base = {
        "http": server.base,
        "pipe": f"pipe:cat {tmp_path}/{{name}}",
        "file": f"file://{tmp_path}",
    }
    tracemalloc.start()
    path = ShardCache(base[kind], tmp_path / "cache", 10 * SIZE).path(*shard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == 16 << 20
    assert peak < 8 << 20


FAULTS = {
    "500": "500",
    "closed": "1000 bytes read",
    "short": f"expected {SIZE} bytes, received {SIZE - 1}",
    "long": f"expected {SIZE} bytes, received more",
    "corrupt": "expected SHA-256 {sha256}, received [0-9a-f]{{64}}",
    "silent": "timed out",
    "stalled": "timed out",
}
"""What a message says of each."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again(
    server: Server,
    cache: ShardCache,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", 0.3)
    shard = server.put("a.tar")
    server.faults["set/a.tar"] = [fault] * 2
    assert cache.path(*shard).read_bytes() == server.files["set/a.tar"]
    assert len(server.asked) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("trying again" in line and server.base in line for line in caplog.messages)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_named(
    server: Server, cache: ShardCache, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", 0.3)
    shard = server.put("a.tar")
    server.faults["set/a.tar"] = [fault] * transport.ATTEMPTS
    said = FAULTS[fault].format(sha256=shard[2])
    with pytest.raises(RemoteError, match=rf"^{server.base}/a\.tar: (?s:.)*{said}"):
        cache.path(*shard)
    assert len(server.asked) == transport.ATTEMPTS
    assert not kept(cache) and not parts(cache)


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refusal_is_not_tried_again(server: Server, cache: ShardCache, status: str) -> None:
    shard = server.put("a.tar")
    server.faults["set/a.tar"] = [status]
    with pytest.raises(RemoteRefused, match=rf"{server.base}/a\.tar: .*{status}"):
        cache.path(*shard)
    assert len(server.asked) == 1


def test_what_cannot_be_reached(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"^http://127\.0\.0\.1:1/set/index\.json: .*refused"):
        fetch_bytes("http://127.0.0.1:1/set", "index.json")
    with pytest.raises(RemoteRefused, match=r"nowhere/index\.json: FileNotFoundError"):
        fetch_bytes(f"{tmp_path}/nowhere", "index.json")
    with pytest.raises(RemoteRefused, match="gopher"):
        fetch_bytes("gopher://set", "index.json")


def test_pipe_needs_a_place_for_the_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'pipe:cat set' has no \{name\}"):
        fetch_bytes("pipe:cat set", "index.json")
    with pytest.raises(ValueError, match=r"has no \{name\}"):
        ShardCache("pipe:cat set", tmp_path, SIZE).path("a.tar", 1, "")


def test_a_failing_pipe_is_an_error_even_after_output(server: Server, tmp_path: Path) -> None:
    _, size, sha256 = server.put("a.tar")
    (tmp_path / "a.tar").write_bytes(server.files["set/a.tar"])
    (tmp_path / "said").write_text("some progress\nthe disk is on fire\n")
    script = "cat {name}; echo >> tries; cat said >&2; exit 3"
    cache = ShardCache(f"pipe:cd {tmp_path}; {script}", tmp_path / "cache", SIZE)
    with pytest.raises(RemoteError) as caught:
        cache.path("a.tar", size, sha256)
    assert f"pipe:cd {tmp_path}; {script.format(name='a.tar')}" in str(caught.value)
    assert "exit status 3; its last output: the disk is on fire" in str(caught.value)
    assert "progress" not in str(caught.value)
    assert (tmp_path / "tries").read_text() == "\n" * transport.ATTEMPTS


def test_a_stalled_pipe_is_killed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", 0.3)
    with pytest.raises(RemoteError, match=r"no output for 0\.3 s"):
        fetch_bytes(f"pipe:sleep 300 & echo $! >> {tmp_path}/{{name}}; wait", "pids")
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == transport.ATTEMPTS
    for stat in (Path(f"/proc/{pid}/stat") for pid in pids):
        wait_for(lambda stat=stat: not stat.exists() or ") Z" in stat.read_text())


def test_an_endless_pipe_is_cut_off(server: Server, tmp_path: Path) -> None:
    cache = ShardCache("pipe:yes {name}", tmp_path, SIZE)
    with pytest.raises(RemoteError, match="expected 10 bytes, received more"):
        cache.path("a.tar", 10, "")


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server as a Hub with one dataset, `user/name`."""
    tree = b'[{"type": "file", "path": "set/a.tar", "size": 5000, "oid": "0"}]'
    server.files["api/datasets/user/name"] = b'{"id": "user/name", "sha": "0"}'
    server.files["api/datasets/user/name/tree/main/set"] = tree
    resolve = server.root + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.root)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", resolve)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield server
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_a_dataset_of_the_hub(hub: Server, tmp_path: Path) -> None:
    folder = "datasets/user/name/resolve/main/set"
    shard = hub.put("a.tar", folder=folder)
    cache = ShardCache("hf://datasets/user/name/set", tmp_path / "cache", SIZE)
    assert cache.path(*shard).read_bytes() == hub.files[f"{folder}/a.tar"]
    assert hub.asked.count(f"{folder}/a.tar") == 1
    with pytest.raises(RemoteRefused, match=r"hf://datasets/user/name/set/b\.tar: .*404"):
        cache.path("b.tar", 1, "")
    assert hub.asked.count(f"{folder}/b.tar") == 1


def test_the_hub_without_network(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match=r"hf://datasets/user/name/set/index\.json: .*offline"):
        fetch_bytes("hf://datasets/user/name/set", "index.json")


def test_sets_with_equal_names_do_not_collide(server: Server, cache: ShardCache) -> None:
    mine, theirs = server.put("a.tar"), server.put("a.tar", seed=1, folder="other")
    other = ShardCache(f"{server.root}/other", cache.folder, 10 * SIZE)
    for _ in range(2):
        assert cache.path(*mine).read_bytes() == server.files["set/a.tar"]
        assert other.path(*theirs).read_bytes() == server.files["other/a.tar"]
    assert server.asked == ["set/a.tar", "other/a.tar"]


def test_a_cached_file_that_is_not_what_was_verified_is_fetched_again(
    server: Server, cache: ShardCache
) -> None:
    shard = server.put("a.tar")
    cache.path(*shard).write_bytes(b"cut")
    assert cache.path(*shard).read_bytes() == server.files["set/a.tar"]
    remade = server.put("a.tar", seed=1)  # of the same size
    assert cache.path(*remade).read_bytes() == server.files["set/a.tar"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", ["", "..", "../a.tar", "x/a.tar", "/a.tar", ".a.tar.lock"])
def test_a_shard_cannot_lie_elsewhere(server: Server, cache: ShardCache, name: str) -> None:
    with pytest.raises(ValueError, match="no plain file name"):
        cache.path(name, 1, "")
    assert not server.asked and not cache.folder.exists()


def test_the_least_recently_used_make_room(server: Server, tmp_path: Path) -> None:
    cache = ShardCache(server.base, tmp_path, 3 * SIZE + SIZE // 2)
    names = ["a.tar", "b.tar", "c.tar", "d.tar"]
    shards = {name: server.put(name) for name in names}
    for age, name in enumerate(names[:3]):
        os.utime(cache.path(*shards[name]), (age, age))
    others = [tmp_path / "mine.tar", cache.path(*shards["a.tar"]).with_name("mine.tar")]
    for other in others:
        other.write_bytes(bytes(10 * SIZE))
        os.utime(other, (0, 0))
    cache.path(*shards["d.tar"])
    assert kept(cache) == {"a.tar", "c.tar", "d.tar", "mine.tar"}
    small = ShardCache(f"{server.base}/", tmp_path, SIZE // 2)  # another set, the same folder
    assert small.path(*shards["b.tar"]).read_bytes() == server.files["set/b.tar"]
    assert kept(cache) == {"b.tar", "mine.tar"}
    assert all(other.exists() for other in others)


def test_running_fetches_count_and_stay(server: Server, tmp_path: Path) -> None:
    cache = ShardCache(server.base, tmp_path, 2 * SIZE + SIZE // 2)
    a, b, c = (server.put(name) for name in ("a.tar", "b.tar", "c.tar"))
    cache.path(*b)
    server.faults["set/a.tar"] = ["stalled"]
    process = start(cache.path, *a)
    wait_for(lambda: "set/a.tar" in server.asked)
    cache.path(*c)
    assert kept(cache) == {"c.tar"} and parts(cache) == [".a.tar.part"]
    server.gate.set()
    finish(process)
    assert kept(cache) == {"a.tar", "c.tar"} and not parts(cache)


def test_processes_that_ask_at_once_fetch_once(server: Server, cache: ShardCache) -> None:
    shard = server.put("a.tar")
    server.faults["set/a.tar"] = ["stalled"]
    processes = [start(cache.path, *shard) for _ in range(4)]
    wait_for(lambda: bool(server.asked))
    time.sleep(0.2)  # for the others to get there
    server.gate.set()
    finish(*processes)
    assert server.asked == ["set/a.tar"]


def test_a_killed_process_blocks_nobody(server: Server, cache: ShardCache) -> None:
    a, b, c = (server.put(name) for name in ("a.tar", "b.tar", "c.tar"))
    server.faults = {"set/a.tar": ["stalled"], "set/b.tar": ["stalled"]}
    for shard in (a, b):
        process = start(cache.path, *shard)
        wait_for(lambda shard=shard: f"set/{shard[0]}" in server.asked)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert ".b.tar.part" in parts(cache)
    finish(start(cache.path, *b))
    assert not parts(cache)  # what the other one left is gone, too
    finish(start(cache.path, *a), start(cache.path, *c))
    assert kept(cache) == {"a.tar", "b.tar", "c.tar"}


def test_a_death_before_the_last_step_leaves_no_wrong_shard(
    server: Server, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.path(*server.put("a.tar"))
    remade = server.put("a.tar", seed=1)  # of the same size
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: os._exit(9))
        process = start(cache.path, *remade)
        process.join()
    assert process.exitcode == 9
    assert cache.path(*remade).read_bytes() == server.files["set/a.tar"]


def prefetch_and_wait(cache: ShardCache, shard: Entry) -> None:
    cache.prefetch(*shard)
    wait_for(lambda: shard[0] in kept(cache))


def test_a_fork_during_a_fetch(server: Server, cache: ShardCache) -> None:
    a, b = server.put("a.tar"), server.put("b.tar")
    server.faults["set/a.tar"] = ["stalled"]
    cache.prefetch(*a)
    wait_for(lambda: bool(server.asked))
    child = start(time.sleep, 60)  # it gets a copy of the open lock
    finish(start(prefetch_and_wait, cache, b))
    server.gate.set()
    wait_for(lambda: "a.tar" in kept(cache))
    next(cache.folder.glob("*/a.tar")).unlink()
    try:
        finish(start(cache.path, *a))
        assert kept(cache) == {"a.tar", "b.tar"}
    finally:
        child.kill()
        child.join()


def starved(cache: ShardCache, shard: Entry) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE - 1, SIZE - 1))
    cache.path(*shard)


def test_a_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = server.put("a.tar")
    (tmp_path / "file").touch()
    said = "cannot keep shards in {}: "
    folder = tmp_path / "file" / "cache"
    with pytest.raises(CacheError, match=said.format(folder)) as unwritable:
        ShardCache(server.base, folder, SIZE).path(*shard)
    assert "`shards.source.cache_dir`" in message(unwritable.value)
    cache = ShardCache(server.base, tmp_path / "cache", SIZE)
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        failed = pool.submit(starved, cache, shard).exception()
    assert isinstance(failed, OSError) and failed.errno == errno.EFBIG
    assert not server.asked

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=said.format(cache.folder)) as caught:
        cache.path(*shard)
    assert caught.value.errno == errno.ENOSPC
    assert len(server.asked) == 1
    assert not kept(cache) and not parts(cache)


def idle() -> bool:
    return all(thread.name != "prefetch" for thread in threading.enumerate())


def test_prefetch_does_not_wait(server: Server, cache: ShardCache) -> None:
    shard = server.put("a.tar")
    server.faults["set/a.tar"] = ["stalled"]
    cache.prefetch(*shard)
    cache.prefetch(*shard)
    assert [thread.name for thread in threading.enumerate()].count("prefetch") == 1
    server.gate.set()
    wait_for(idle)
    assert kept(cache) == {"a.tar"}
    cache.path(*shard)
    assert server.asked == ["set/a.tar"]
    later = server.put("b.tar")
    cache.prefetch(*later)  # by another thread, as the first has ended
    wait_for(lambda: "b.tar" in kept(cache))


def test_prefetch_passes_over_too_many(server: Server, cache: ShardCache) -> None:
    shards = [server.put(f"{i}.tar") for i in range(3 * remote.MAX_AHEAD)]
    server.faults["set/0.tar"] = ["stalled"]
    for shard in shards:
        cache.prefetch(*shard)
    server.gate.set()
    wait_for(idle)
    assert server.asked == [f"set/{i}.tar" for i in range(remote.MAX_AHEAD)]


def test_prefetch_leaves_errors_to_path(
    server: Server, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    there = server.put("a.tar")
    cache.prefetch("missing.tar", 1, "")
    cache.prefetch("../evil.tar", 1, "")
    cache.prefetch(*there)
    wait_for(idle)
    assert sum("could not prefetch" in line for line in caplog.messages) == 2
    assert kept(cache) == {"a.tar"}
    with pytest.raises(RemoteRefused, match="404"):
        cache.path("missing.tar", 1, "")


class ViaHttp(HTTPFileSystem):
    """A file system of fsspec that needs its event loop, as those of the clouds do."""

    protocol = "viahttp"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.replace("viahttp:", "http:")


class Sizes(Dataset[tuple[int, int]]):
    """Sizes of shards, and by which process each was read."""

    def __init__(self, cache: ShardCache, shards: list[Entry]) -> None:
        self.cache, self.shards = cache, shards

    def __getitem__(self, i: int) -> tuple[int, int]:
        if i + 1 < len(self.shards):
            self.cache.prefetch(*self.shards[i + 1])
        return len(self.cache.path(*self.shards[i]).read_bytes()), os.getpid()

    def __len__(self) -> int:
        return len(self.shards)


def loader(data: Sizes, method: str) -> DataLoader[tuple[int, int]]:
    return DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method)


@pytest.mark.parametrize(
    ("scheme", "method"), [("http", "fork"), ("http", "spawn"), ("viahttp", "fork")]
)
def test_workers_of_a_data_loader(server: Server, tmp_path: Path, scheme: str, method: str) -> None:
    fsspec.register_implementation("viahttp", ViaHttp, clobber=True)
    server.files["set/index.json"] = b"{}"
    shards = [server.put(f"{i}.tar", size=SIZE + i) for i in range(8)]
    base = server.base.replace("http:", f"{scheme}:")
    cache = ShardCache(base, tmp_path / "cache", 20 * SIZE)
    assert fetch_bytes(base, "index.json") == b"{}"  # threads and loops start before the fork
    cache.path(*shards[0])
    cache.prefetch(*shards[1])
    wait_for(idle)
    found = list(loader(Sizes(cache, shards), method))
    assert [size for size, _ in found] == [SIZE + i for i in range(8)]
    assert len({pid for _, pid in found} - {os.getpid()}) == 2
    gets = [path for path in server.asked if path.endswith(".tar")]
    assert sorted(gets) == sorted(f"set/{i}.tar" for i in range(8))


def test_an_error_in_a_worker_reaches_the_parent(server: Server, cache: ShardCache) -> None:
    with pytest.raises(RemoteRefused, match=r"missing\.tar: .*404"):
        list(loader(Sizes(cache, [("missing.tar", 1, "")]), "fork"))
