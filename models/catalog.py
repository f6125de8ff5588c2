"""The catalogue: which models there are, and which of them make up a profile.

Pure data read from ``catalog.toml``. Where a file lies on disk follows from it alone::

    <models dir>/<model name>/<file path>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from models.errors import CatalogError, UnknownProfileError

Role = Literal["vad", "stt", "llm", "tts"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PINNED_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is decoded from the catalogue: immutable, and a mistyped key is an error."""


class PypiSource(_Struct, frozen=True, tag_field="type", tag="pypi"):
    """Python packages that carry the weights. ``packages``: pinned requirements, ``name==version``."""

    packages: tuple[str, ...]

    def __str__(self) -> str:
        return "PyPI " + " + ".join(self.packages)


class HubSource(_Struct, frozen=True, tag_field="type", tag="hub"):
    """A repository of the model hub. ``revision``: the full commit, 40 hex digits."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"hub {self.repo}@{self.revision[:8]}"


class BundledSource(_Struct, frozen=True, tag_field="type", tag="bundled"):
    """The weights come inside ``package``, a dependency of ours: nothing to download."""

    package: str

    def __str__(self) -> str:
        return f"bundled with {self.package}"


Source = PypiSource | HubSource | BundledSource


class CatalogFile(_Struct, frozen=True):
    """One file of a model.

    ``path``: relative to the model's folder. ``size_bytes`` and ``sha256`` (64 hex digits): of the
    finished file. ``members``: where its bytes are in the source (members of the packages, joined
    in order, or one path in the hub repository); empty means "at ``path``".
    """

    path: str
    size_bytes: int
    sha256: str
    members: tuple[str, ...] = ()

    def source_paths(self) -> tuple[str, ...]:
        """Paths inside the source whose bytes, joined in order, are this file."""
        return self.members or (self.path,)


class Model(_Struct, frozen=True):
    """One set of weights.

    ``load``: what the engine opens, relative to the model's folder ("." for the folder).
    ``memory_mb``: MiB held once loaded, without per-room KV cache.
    ``sample_rate``: Hz, heard (vad, stt) or spoken (tts); None for a language model.
    ``languages``: ISO 639-1 codes, or "multi".
    """

    name: str
    role: Role
    licence: str
    source: Source
    load: str
    memory_mb: int
    languages: tuple[str, ...]
    files: tuple[CatalogFile, ...]
    sample_rate: int | None = None
    note: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes on disk once installed."""
        return sum(file.size_bytes for file in self.files)

    def folder(self, models_dir: Path) -> Path:
        """The model's own folder below ``models_dir``."""
        return models_dir / self.name

    def load_path(self, models_dir: Path) -> Path:
        """What the engine is given: a folder (stt), a .gguf file (llm) or an .onnx file (tts)."""
        return self.folder(models_dir) / self.load


class Profile(_Struct, frozen=True):
    """Names of the models that run together, one for each role."""

    description: str
    vad: str
    stt: str
    llm: str
    tts: str


class Catalog(_Struct, frozen=True):
    """Every model and every profile. Made by ``load_catalog`` or ``parse_catalog``, which check it."""

    default_profile: str
    profiles: dict[str, Profile]
    models: tuple[Model, ...]

    def model(self, name: str) -> Model:
        """The model called ``name``. Raises ``CatalogError``: names come from the catalogue itself."""
        for model in self.models:
            if model.name == name:
                return model
        raise CatalogError(f"catalog.toml: there is no model {name!r}")

    def profile(self, name: str) -> Profile:
        """The profile called ``name``. Raises ``UnknownProfileError``, which lists the names."""
        try:
            return self.profiles[name]
        except KeyError:
            raise UnknownProfileError(name, tuple(self.profiles)) from None

    def profile_models(self, name: str) -> tuple[Model, ...]:
        """The models of profile ``name``: vad, stt, llm, tts. Raises ``UnknownProfileError``."""
        profile = self.profile(name)
        return tuple(self.model(model) for model in (profile.vad, profile.stt, profile.llm, profile.tts))

    def profiles_with(self, model: Model) -> tuple[str, ...]:
        """Names of the profiles that use ``model``."""
        return tuple(
            name
            for name, profile in self.profiles.items()
            if model.name in (profile.vad, profile.stt, profile.llm, profile.tts)
        )


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model and the ``path`` that its engine's ``load`` is given."""

    model: Model
    path: Path


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """A profile on this machine's disk. Says where files belong, not that they are there.

    ``stt.path`` is a folder, ``llm.path`` a .gguf file, ``tts.path`` an .onnx file with its
    .onnx.json beside it. ``vad`` comes inside its Python package and has no path of ours.
    """

    name: str
    vad: Model
    stt: ResolvedModel
    llm: ResolvedModel
    tts: ResolvedModel

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model of the profile: vad, stt, llm, tts."""
        return (self.vad, self.stt.model, self.llm.model, self.tts.model)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all models."""
        return sum(model.size_bytes for model in self.models)

    @property
    def memory_mb(self) -> int:
        """MiB held by all models once loaded, without per-room KV cache."""
        return sum(model.memory_mb for model in self.models)


def default_models_dir() -> Path:
    """Where weights go unless the caller says otherwise: ``weights`` inside this package (not in git)."""
    return Path(__file__).resolve().parent / "weights"


@cache
def load_catalog() -> Catalog:
    """The catalogue that ships with this package, read once. Raises ``CatalogError``."""
    return parse_catalog(Path(__file__).with_name("catalog.toml").read_bytes())


def parse_catalog(text: bytes | str) -> Catalog:
    """A catalogue from TOML text. Raises ``CatalogError`` that names the key at fault."""
    try:
        catalog = msgspec.toml.decode(text, type=Catalog)
    except msgspec.MsgspecError as exc:
        raise CatalogError(f"catalog.toml: {exc}") from exc
    _check(catalog)
    return catalog


def profile(name: str) -> Profile:
    """The shipped profile called ``name``. Raises ``UnknownProfileError``, which lists the names."""
    return load_catalog().profile(name)


def resolve(profile_name: str, models_dir: Path | None = None, *, catalog: Catalog | None = None) -> ResolvedProfile:
    """Where each role's model of a profile lies below ``models_dir``; touches no file.

    Raises ``UnknownProfileError``. Use ``models.fetch.ensure_verified`` before loading anything.
    """
    catalog = catalog or load_catalog()
    directory = models_dir or default_models_dir()
    vad, stt, llm, tts = catalog.profile_models(profile_name)
    return ResolvedProfile(
        name=profile_name,
        vad=vad,
        stt=ResolvedModel(stt, stt.load_path(directory)),
        llm=ResolvedModel(llm, llm.load_path(directory)),
        tts=ResolvedModel(tts, tts.load_path(directory)),
    )


def _check(catalog: Catalog) -> None:
    names = [model.name for model in catalog.models]
    for name in names:
        if names.count(name) > 1:
            raise CatalogError(f"catalog.toml: models.{name} is there twice")
        _check_relative(f"models.{name}: name", name)
    for model in catalog.models:
        _check_model(model)
    by_name = {model.name: model for model in catalog.models}
    for name, profile in catalog.profiles.items():
        for role in ("vad", "stt", "llm", "tts"):
            wanted = getattr(profile, role)
            if wanted not in by_name:
                raise CatalogError(f"catalog.toml: profiles.{name}.{role} names no model: {wanted!r}")
            if by_name[wanted].role != role:
                raise CatalogError(
                    f"catalog.toml: profiles.{name}.{role} = {wanted!r}, whose role is {by_name[wanted].role}"
                )
    if catalog.default_profile not in catalog.profiles:
        raise CatalogError(f"catalog.toml: default_profile names no profile: {catalog.default_profile!r}")


def _check_model(model: Model) -> None:
    where = f"catalog.toml: models.{model.name}"
    match model.source:
        case PypiSource(packages=packages):
            for package in packages:
                if not _PINNED_PACKAGE.fullmatch(package):
                    raise CatalogError(f"{where}: {package!r} is not NAME==VERSION")
        case HubSource(revision=revision):
            if not _COMMIT.fullmatch(revision):
                raise CatalogError(f"{where}: revision {revision!r} is not a full commit")
        case BundledSource():
            return
    paths = {file.path for file in model.files}
    for file in model.files:
        _check_relative(f"{where}: path", file.path)
        if not _SHA256.fullmatch(file.sha256):
            raise CatalogError(f"{where}: {file.path}: sha256 must be 64 hex digits, not {file.sha256!r}")
        if file.size_bytes <= 0:
            raise CatalogError(f"{where}: {file.path}: size_bytes must be above 0, not {file.size_bytes}")
        if isinstance(model.source, HubSource) and len(file.source_paths()) != 1:
            raise CatalogError(f"{where}: {file.path}: a hub file has one member")
    if not model.files or (model.load != "." and model.load not in paths):
        raise CatalogError(f"{where}: load = {model.load!r} is none of its files")


def _check_relative(what: str, path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or any(part.startswith(".") for part in parts):
        raise CatalogError(f"{what} must stay below its folder and not be hidden: {path!r}")
