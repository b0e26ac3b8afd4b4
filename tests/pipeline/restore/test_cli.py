"""The `restore` command: what it says and writes, how it goes on, and what bad files come to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import Config
from pipeline.models.hub import RESTORER
from pipeline.restore import runner as work
from pipeline.restore.api import Restorer
from pipeline.restore.cli import RECORD, main
from tests.conftest import photograph
from tests.evaluating import save_model_folder

MakeConfig = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """The command handles SIGTERM; afterwards it is handled as before."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def model(tmp_path: Path, tiny_config: MakeConfig) -> Path:
    return save_model_folder(tiny_config(), tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(photograph(37, 51)).save(folder / "a.png")
    Image.fromarray(photograph(50, 40, 1)).save(folder / "sub" / "b ü.jpg", quality=95)
    return folder


@pytest.fixture
def restore(model: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        defaults = ["-o", tmp_path / "out", "-m", model, "--device", "cpu"]
        return main([str(argument) for argument in [*arguments, *defaults]])

    return run


def standard_input(*names: object) -> io.TextIOWrapper:
    data = b"".join(os.fsencode(f"{name}\n") for name in names)
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


def test_name_too_long_for_its_figure_is_that_photograph_s_fault(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = photos / f"{'x' * 245}.png"
    (photos / "a.png").rename(long)
    (tmp_path / "out").mkdir()
    assert restore(photos, "--compare") == 1
    assert "File name too long" in capsys.readouterr().out
    assert "sub/b ü.jpg" in written(tmp_path / "out")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {RECORD}


def test_folder_is_restored_as_the_restorer_does(
    restore: Callable[..., int],
    photos: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert restore(photos) == 0
    out = tmp_path / "out"
    assert written(out) == {"a.png", "sub/b ü.jpg"}
    expected = Restorer.from_pretrained(model, device="cpu")(photograph(37, 51))
    assert np.array_equal(pixels(out / "a.png"), np.asarray(expected.image))
    word, share = next(iter(expected.degradation.items()))
    said = capsys.readouterr().out
    assert "2 photographs" in said and f"a.png: {word} {share:.0%}" in said


def test_what_is_done_is_not_done_again(
    restore: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    restore(photos)
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert restore(photos) == 0
    assert "2 photographs, 2 already done" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    Image.fromarray(photograph(37, 51, 7)).save(photos / "a.png")
    assert restore(photos) == 0
    assert "1 already done" in capsys.readouterr().out
    assert restore(photos, "--seed", 1) == 0
    assert "already done" not in capsys.readouterr().out
    assert restore(photos, "--seed", 1, "--overwrite") == 0
    assert "already done" not in capsys.readouterr().out


def test_files_of_others_are_not_written_over(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert restore(photos) == 1
    assert "a.png already exists and was not made by this command" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert restore(photos, "--overwrite") == 0
    assert pixels(tmp_path / "out" / "a.png").shape == (37, 51, 3)


def test_dry_run_writes_nothing(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(photos, "--dry-run") == 0
    assert f"{photos / 'a.png'} -> {tmp_path / 'out' / 'a.png'}" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_figures_candidates_and_strength(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    extra = ["--compare", "--save-steps", "--candidates", 3, "--steps", 3]
    assert restore(photos / "a.png", *extra) == 0
    out = tmp_path / "out"
    names = {"a.png", "a-2.png", "a-3.png"}
    figures = {f"a.png.{kind}.png" for kind in ("compare", "steps", "uncertainty")}
    assert written(out) == names | figures
    assert not np.array_equal(pixels(out / "a.png"), pixels(out / "a-2.png"))
    assert pixels(out / "a.png.uncertainty.png").shape == (37, 51, 3)
    steps = pixels(out / "a.png.steps.png")
    assert steps.shape[1] == 4 * 51 + 3 * 8
    assert np.array_equal(steps[-37:, :51], photograph(37, 51))
    assert np.abs(steps[-37:, -51:].astype(float) - pixels(out / "a.png")).mean() < 1
    assert restore(photos / "a.png", "--strength", 0, "--seed", 1) == 0
    assert np.array_equal(pixels(out / "a.png"), photograph(37, 51))


def test_tiled_steps_are_of_the_whole_image(restore: Callable[..., int], tmp_path: Path) -> None:
    Image.fromarray(photograph(150, 100)).save(tmp_path / "large.png")
    assert restore(tmp_path / "large.png", "--save-steps", "--tile", 64) == 0
    out = tmp_path / "out"
    last = pixels(out / "large.png.steps.png")[-150:, -100:].astype(float)
    assert np.abs(last - pixels(out / "large.png")).mean() < 2


def test_degradations_are_chosen(restore: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    found = []
    for choice in ("auto", "hazy", "noisy:0.5, rainy"):
        assert restore(photos / "a.png", "-d", choice) == 0
        found.append(pixels(tmp_path / "out" / "a.png"))
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be in 1..100"),
        (["--steps", "101"], "steps must be in 1..100"),
        (["--tile", "10"], "tile must be"),
        (["--strength", "1.5"], "strength must be"),
        (["--candidates", "0"], "candidates must be"),
        (["--seed", "-1"], "the seed must be"),
        (["-d", "nosy"], "'noisy'"),
        (["-d", "noisy:x"], "is no weight"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["-m", "nothing"], "there is no model 'nothing'"),
    ],
)
def test_wrong_settings_end_in_a_message_before_any_photograph(
    arguments: list[str],
    message: str,
    photos: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(photos), "-o", str(tmp_path / "out"), "-m", str(model), *arguments]
    assert main(given) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_photographs_are_named_and_the_rest_go_on(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "0 empty.png").touch()
    (photos / "1 text.jpg").write_text("no image")
    (photos / "2 cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "3 gif.png").write_bytes(b"")
    Image.fromarray(photograph(8, 8)).save(photos / "3 gif.png", "GIF")
    Image.fromarray(photograph(1, 1)).save(photos / "4 one.png")
    Image.fromarray(photograph(2, 3000)).save(photos / "5 thin.png")
    assert restore(photos, "--steps", 1) == 1
    said, out = capsys.readouterr(), tmp_path / "out"
    assert written(out) == {"4 one.png", "5 thin.png", "a.png", "sub/b ü.jpg"}
    assert pixels(out / "5 thin.png").shape == (2, 3000, 3)
    for name in ("0 empty.png", "1 text.jpg", "2 cut.png", "3 gif.png"):
        assert re.search(f"error: .*{name}: ", said.out)
    assert "4 of 8 photographs were not restored" in said.err
    assert restore(photos, "--steps", 1) == 1  # the bad ones only
    assert "8 photographs, 4 already done" in capsys.readouterr().out


def test_broken_record_counts_for_nothing(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore(photos)
    record = tmp_path / "out" / RECORD
    *_claims, first, second = filter(None, record.read_text().splitlines())
    assert [json.loads(line)["target"] for line in (first, second)] == ["a.png", "sub/b ü.jpg"]
    record.write_text(first + '\n[]\nnull\n{"target":')
    assert restore(photos, "--overwrite") == 0
    capsys.readouterr()
    assert restore(photos) == 0
    assert "2 already done" in capsys.readouterr().out


def test_photographs_are_shared_out_to_devices(
    model: Path, photos: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    assert restore(photos) == 0
    shared = [str(photos), "-o", str(tmp_path / "two"), "-m", str(model), "--device", "cpu,cpu"]
    assert main(shared) == 0
    for name in ("a.png", "sub/b ü.jpg"):
        assert np.array_equal(pixels(tmp_path / "two" / name), pixels(tmp_path / "out" / name))


def test_too_little_memory_is_the_photographs_fault(
    restore: Callable[..., int],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(work, "read_photograph", fail)
    assert restore(photos) == 1
    said = capsys.readouterr()
    assert "2 of 2 photographs were not restored" in said.err
    assert "a.png: out of memory; try --tile 256" in said.out


def fault(*arguments: object, **options: object) -> None:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_for_the_model_is_said(
    restore: Callable[..., int],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Restorer, "from_pretrained", fail)
    assert restore(photos) == 1
    assert "error: the model takes more memory than there is" in capsys.readouterr().err
    monkeypatch.setattr(Restorer, "from_pretrained", fault)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        restore(photos)


def process(*arguments: object, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, where the tests' shell says so
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.restore", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,
    )


def test_full_disk_leaves_nothing_half_written(photos: Path, model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk on which the first photograph has no room."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(
        photos / "0 large.png"
    )
    work = process(photos, "-o", tmp_path / "out", "-m", model, limit=16000)
    said, error = work.communicate()
    assert work.returncode == 1 and "Traceback" not in error
    assert "0 large.png" in said and "File too large" in said
    assert written(tmp_path / "out") == {"a.png", "sub/b ü.jpg"}


def test_interrupt_leaves_what_is_done_and_goes_on(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    large = photos / "z large.png"
    Image.fromarray(photograph(300, 300)).save(large)
    arguments = (photos, "-o", tmp_path / "out", "-m", model, "--steps", "100")
    work, deadline = process(*arguments), time.monotonic() + 120
    while not (tmp_path / "out" / "a.png").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    work.send_signal(signal.SIGINT)
    _, error = work.communicate(timeout=60)
    assert work.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert not [name for name in written(tmp_path / "out") if name.endswith(".part")]
    assert "z large.png" not in written(tmp_path / "out")
    done = process(photos / "a.png", *arguments[1:])
    assert "1 photograph, 1 already done" in done.communicate()[0]


def living() -> dict[int, int]:
    """The processes that there are, each with the one that started it."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(file.parent.name)] = int(parent)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(
    photos: Path, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    for name in ("x.png", "y.png", "z.png"):
        Image.fromarray(photograph(300, 300)).save(photos / name)
    given = (photos, "-o", tmp_path / "out", "-m", model, "--steps", "100", "--device", "cpu,cpu")
    work, deadline = process(*given), time.monotonic() + 180
    while not (tmp_path / "out" / "a.png").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = {process for process, parent in living().items() if parent == work.pid}
    work.send_signal(number)
    try:
        _, error = work.communicate(timeout=20)
        deadline = time.monotonic() + 20
        while started & living().keys() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(started) >= 2 and not started & living().keys()
    finally:
        for left in started & living().keys():
            os.kill(left, signal.SIGKILL)
    assert "Traceback" not in error
    assert work.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert written(tmp_path / "out") <= {"a.png", "sub/b ü.jpg"}


WRITER = """
import signal, sys, time
from pathlib import Path
from datamodules.files import atomic_write
from pipeline.restore.runner import exit_on_signal

class Slow(type(Path())):
    def with_name(self, name):
        return Slow(super().with_name(name))
    def unlink(self, missing_ok=False):
        print("removing", flush=True)
        time.sleep(1)
        super().unlink(missing_ok)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, exit_on_signal)
try:
    with atomic_write(Slow(sys.argv[1])) as file:
        print("writing", flush=True)
        time.sleep(60)
except SystemExit:
    if sys.argv[2] == "goes on":
        time.sleep(60)
    raise
"""


@pytest.mark.parametrize("then", ["ends", "goes on"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_strike_amid_the_removal(
    tmp_path: Path, then: str, second: signal.Signals
) -> None:
    """Where the end is caught on its way, the process ends all the same."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out" / "a.png"), then]
    work = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert work.stdout is not None
    try:
        assert work.stdout.readline() == "writing\n"
        assert len(list((tmp_path / "out").iterdir())) == 1
        work.send_signal(signal.SIGTERM)
        assert work.stdout.readline() == "removing\n"
        work.send_signal(second)
        assert work.wait(timeout=30) == 1
    finally:
        work.kill()
        work.stdout.close()
    assert not list((tmp_path / "out").iterdir())


def test_code_in_a_model_is_not_run(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{tmp_path / 'it ran'}'",)

    (model / RESTORER).write_bytes(pickle.dumps(Payload()))
    assert main([str(photos), "-o", str(tmp_path / "out"), "-m", str(model)]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everywhere")
def test_no_permission_is_said(
    restore: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").chmod(0)
    assert restore(photos) == 1
    assert "a.png: cannot be read (Permission denied)" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from pipeline.restore.cli import main; main(['--help'])"
    check = f"try:\n {code}\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + check], capture_output=True, check=False
    )
    assert done.returncode == 0 and b"--degradation" in done.stdout


def test_pattern_and_names_from_stdin_pass_over_what_was_made(
    restore: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert restore("**/*.png") == 0
        monkeypatch.setattr(sys, "stdin", standard_input(*sorted(Path().rglob("*.png"))))
        assert restore("-") == 0
    assert written(tmp_path / "out") == {"a.png"}
    assert capsys.readouterr().out.count("1 already done") == 3


def test_candidates_and_figures_overwrite_no_other_photograph(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photograph(37, 51, 2)).save(photos / "a-2.png")
    assert restore(photos, "--candidates", "2") == 1
    assert "would both be restored to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png.compare.png").write_text("mine")
    assert restore(photos / "a.png", "--compare") == 1
    assert "a.png.compare.png already exists and was not made by this" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png.compare.png").read_text() == "mine"


def test_run_that_ended_between_a_photograph_and_its_figure_goes_on(
    restore: Callable[..., int], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(work, "comparison", fail)
        assert restore(photos, "--compare") == 1
    assert written(tmp_path / "out") == {"a.png", "sub/b ü.jpg"}
    assert restore(photos, "--compare") == 0
    assert "a.png.compare.png" in written(tmp_path / "out")


def test_line_of_the_record_that_was_cut_off_spoils_no_other(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(photos / "a.png") == 0
    with (tmp_path / "out" / RECORD).open("a") as file:
        file.write('\n{"target": "cut')
    assert restore(photos / "sub") == 0
    capsys.readouterr()
    assert restore(photos / "a.png", photos / "sub") == 0
    assert "2 already done" in capsys.readouterr().out


def test_memory_that_torch_lacks_is_the_photographs_fault(
    restore: Callable[..., int], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Restorer, "restore_pixels", fail)
    assert restore(photos) == 1


def test_what_is_wrong_is_told_with_several_devices_too(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(photos), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu,cpu"]
    assert main([*given, "-d", "nois"]) == 1
    assert "if 'noisy' is meant" in capsys.readouterr().err


def test_restored_beside_the_originals_in_another_format(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    given = [str(photos / "*.png"), "-o", str(photos), "-m", str(tmp_path / "model")]
    assert main([*given, "--format", "webp", "--device", "cpu"]) == 0
    assert (photos / "a.webp").is_file()


def test_link_to_nothing_is_one_photographs_fault(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    (photos / "l.png").symlink_to(tmp_path / "gone.png")
    Image.fromarray(photograph(37, 51)).save(tmp_path / "gone.png")
    assert restore(photos) == 0
    (tmp_path / "gone.png").unlink()
    assert restore(photos) == 1
    assert "l.png" in written(tmp_path / "out")


def test_another_model_in_the_same_folder_restores_again(
    restore: Callable[..., int], photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(photos) == 0
    os.utime(model / RESTORER, (1, 1))
    capsys.readouterr()
    assert restore(photos) == 0
    assert "already done" not in capsys.readouterr().out


def test_names_that_are_not_there_are_told_and_the_rest_go_on(
    restore: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = os.fsdecode(os.fsencode(photos) + b"/\xe9.png")
    (photos / "a.png").rename(odd)
    names = ("\ufeff" + odd, photos / "gone.png", photos / "sub" / "b ü.jpg")
    for done in (0, 2):
        monkeypatch.setattr(sys, "stdin", standard_input(*names))
        assert restore("-", "--steps", 1) == 1
        said = capsys.readouterr()
        assert f"error: there is no file or folder {photos / 'gone.png'}\n" in said.out
        assert f"1 of {3 - done} photographs were not restored" in said.err
    assert len(written(tmp_path / "out")) == 2
    monkeypatch.setattr(sys, "stdin", standard_input(*names))
    assert restore("-", "--steps", 1, "--dry-run") == 1


def test_list_of_all_files_passes_over_what_was_made_wherever_it_lies(
    restore: Callable[..., int],
    photos: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `find . | restore - -o ../in/restored` from inside the folder `in`."""
    (photos / "sub" / "b ü.jpg").rename(photos / "b ü.jpg")
    (photos / "sub").rmdir()
    monkeypatch.chdir(photos)
    for _ in range(2):
        names = sorted(f"./{path}" for path in Path().rglob("*"))
        monkeypatch.setattr(sys, "stdin", standard_input(".", *names))
        given = ["-", "-o", "../in/restored", "-m", str(model), "--steps", "1", "--device", "cpu"]
        assert main(given) == 0
    assert "2 photographs, 2 already done" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_full_disk_under_the_record_is_named(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).symlink_to("/dev/full")
    assert restore(photos) == 1
    expected = f"cannot write {tmp_path / 'out' / RECORD}: No space left on device. Make room"
    assert expected in capsys.readouterr().err


def test_name_that_the_terminal_does_not_have_is_shown_all_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    said, error = process(photos, "-o", tmp_path / "out", "--dry-run").communicate()
    assert f"{photos}/sub/b \\xfc.jpg -> " in said and not error
