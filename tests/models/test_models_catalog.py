from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from fake_weights import CATALOG_TOML
from rich.console import Console

import models
from models import catalog as catalog_module
from models import table
from models.catalog import BundledSource, Catalog, default_models_dir, load_catalog, parse_catalog, profile, resolve
from models.errors import CatalogError, ModelError, UnknownProfileError

SHIPPED = load_catalog()


def test_default_profile_is_cpu_small():
    assert SHIPPED.default_profile == "cpu-small"
    assert SHIPPED.profile("cpu-small").llm == "smollm2-135m-instruct"


@pytest.mark.parametrize("name", SHIPPED.profiles)
def test_every_profile_resolves(name: str, tmp_path: Path):
    resolved = resolve(name, tmp_path)
    assert resolved.stt.path.parent == tmp_path
    assert "model.bin" in {file.path for file in resolved.stt.model.files}
    assert resolved.llm.path.suffix == ".gguf"
    assert resolved.tts.path.suffix == ".onnx"
    voice = {file.path for file in resolved.tts.model.files}
    assert {resolved.tts.path.name, resolved.tts.path.name + ".json"} == voice
    assert isinstance(resolved.vad.source, BundledSource)
    assert resolved.size_bytes == sum(file.size_bytes for model in resolved.models for file in model.files)
    assert resolved.memory_mb == sum(model.memory_mb for model in resolved.models) > 0
    for role in ("stt", "vad"):
        assert getattr(SHIPPED.profile(name), role) in {m.name for m in resolved.models if m.sample_rate == 16_000}


def test_cpu_profiles_need_nothing_but_pypi():
    for name in ("cpu-small", "cpu-tiny"):
        assert {type(m.source).__name__ for m in SHIPPED.profile_models(name)} == {"PypiSource", "BundledSource"}


def test_checksums_measured_independently():
    """The table of measured weights, written down before this catalogue was."""
    measured = {
        ("whisper-base", "model.bin"): (
            145_217_532,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        ("whisper-tiny.en", "model.bin"): (
            75_537_502,
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        ("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"): (
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        ("en_US-joe-medium", "en_US-joe-medium.onnx"): (
            63_201_294,
            "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        ),
    }
    files = {(m.name, f.path): (f.size_bytes, f.sha256) for m in SHIPPED.models for f in m.files}
    assert measured.items() <= files.items()


def test_default_models_dir_is_ignored_by_git():
    directory = default_models_dir()
    assert directory == Path(models.__file__).resolve().parent / "weights"
    ignored = (directory.parents[1] / ".gitignore").read_text().splitlines()
    assert "models/weights/" in ignored
    assert resolve("cpu-small").stt.path == directory / "whisper-base"


def test_unknown_profile_lists_the_names():
    with pytest.raises(UnknownProfileError) as caught:
        profile("cpu-smal")
    assert isinstance(caught.value, ModelError)
    assert "'cpu-smal'" in str(caught.value)
    assert caught.value.known == tuple(SHIPPED.profiles)
    for name in SHIPPED.profiles:
        assert name in str(caught.value)
    with pytest.raises(UnknownProfileError):
        resolve("cpu-smal")


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('stt = "whisper"', 'stt = "whispr"', "profiles.small.stt"),
        ('stt = "whisper"', 'stt = "llm"', "whose role is llm"),
        ('name = "voice"', 'name = "llm"', "models.llm is there twice"),
        ('default_profile = "small"', 'default_profile = "smal"', "default_profile"),
        ('path = "m.gguf"', 'path = "../m.gguf"', "stay below"),
        ('path = "m.gguf"', 'path = "/m.gguf"', "stay below"),
        ('load = "m.gguf"', 'load = "x.gguf"', "none of its files"),
        ("fake-llm==0.1", "fake-llm>=0.1", "NAME==VERSION"),
        ('revision = "abab', 'revision = "main', "not a full commit"),
        ('role = "tts"', 'role = "speech"', "role|enum|speech"),
        ("memory_mb = 10", "memory_gb = 10", "memory_gb|memory_mb"),
        ("size_bytes = 9004", "size_bytes = 0", "above 0"),
        ('sha256 = "', 'sha256 = "XX', "64 hex digits"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused(old: str, new: str, names: str):
    assert old in CATALOG_TOML
    with pytest.raises(CatalogError, match=names):
        parse_catalog(CATALOG_TOML.replace(old, new, 1))


def test_not_toml_is_a_catalog_error():
    with pytest.raises(CatalogError, match=r"catalog\.toml"):
        parse_catalog("profiles = [")


def test_the_package_reads_no_environment_and_imports_only_what_a_leaf_may():
    allowed = {"models", "msgspec", "rich", "huggingface_hub"}
    for path in Path(catalog_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"environ", "getenv"}, path
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in __import__("sys").stdlib_module_names, (path, name)


def _show(shown: object) -> str:
    console = Console(file=io.StringIO(), width=240)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_list_table_shows_state(catalog: Catalog, tmp_path: Path):
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"short")
    rows = {
        cells[1]: line
        for line in _show(table.list_table(tmp_path, catalog=catalog)).splitlines()
        if len(cells := line.split()) > 2
    }
    assert "wrong" in rows["llm"]
    assert "PyPI" in rows["llm"]
    assert "missing" in rows["voice"]
    assert "bundled" in rows["vad"]
    only = _show(table.list_table(tmp_path, profile="big", catalog=catalog))
    assert "big-llm" in only
    assert "fake-llm" not in only
    with pytest.raises(UnknownProfileError):
        table.list_table(tmp_path, profile="huge", catalog=catalog)


def test_profiles_table_names_the_default():
    shown = _show(table.profiles_table())
    assert "cpu-small (default)" in shown
    assert "gpu-8b" in shown
