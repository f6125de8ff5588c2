"""Everything that can go wrong with model weights.

::

    ModelError
    ├── CatalogError           catalog.toml does not say what it must
    ├── UnknownProfileError    no profile of that name; lists the names there are
    ├── ModelFilesError        files are missing, cut or altered; says how to fetch them again
    └── FetchError             the source could not be reached or does not hold what it should
        └── NoSpaceError       the disk is too full; nothing was fetched
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Problem(Protocol):
    """A file that is not what the catalogue says: where it is, and what is wrong with it in words."""

    @property
    def path(self) -> Path:
        """Where the file is, or should be."""

    def describe(self) -> str:
        """What was expected and what was found."""


class ModelError(Exception):
    """Base of every error of this package. The message is meant for the person at the terminal."""


class CatalogError(ModelError):
    """The catalogue contradicts itself or does not have the expected shape."""


class UnknownProfileError(ModelError):
    """There is no profile ``name``. ``known``: the names that exist."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown model profile {name!r}; the profiles are: {', '.join(known)}")
        self.name = name
        self.known = tuple(known)


class ModelFilesError(ModelError):
    """Files of a profile are not what the catalogue says.

    ``problems``: one result per bad file (path, expected, found). ``command``: what fetches them again.
    """

    def __init__(self, problems: Sequence[Problem], command: str) -> None:
        lines = [f"  {result.path}: {result.describe()}" for result in problems]
        super().__init__("\n".join(["model files cannot be used:", *lines, f"fetch them with: {command}"]))
        self.problems = tuple(problems)
        self.command = command


class FetchError(ModelError):
    """A package, a repository or a folder did not give a file that was asked of it."""


class NoSpaceError(FetchError):
    """The file system holds fewer free bytes than the download needs."""
