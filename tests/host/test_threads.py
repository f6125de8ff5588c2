"""How many threads of how many cores."""

from __future__ import annotations

import pytest

from host.config import inference_environment
from host.threads import SPIN_COUNT, ThreadTeams, thread_teams


@pytest.mark.parametrize(
    ("cores", "speech", "language"),
    [(1, 1, 1), (2, 2, 1), (3, 3, 2), (4, 3, 3), (6, 5, 5), (8, 6, 6), (16, 12, 12), (22, 16, 16), (128, 16, 16)],
)
def test_teams(cores: int, speech: int, language: int) -> None:
    assert thread_teams(cores) == ThreadTeams(speech, language)


@pytest.mark.parametrize("cores", range(1, 200))
def test_there_is_room_for_the_jobs(cores: int) -> None:
    teams, larger = thread_teams(cores), thread_teams(cores + 1)
    assert 1 <= teams.language <= teams.speech <= cores
    if cores > 1:
        assert teams.language < cores
    if cores >= 4:
        assert cores - teams.speech >= cores // 4
    # One core more may be given to the jobs, and never takes a second one from a team.
    assert larger.speech >= teams.speech
    assert larger.language >= teams.language


def test_the_spin_is_bounded_before_the_libraries_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    environment = inference_environment()
    assert environment["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    # numpy's own team spins without bound.
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


def test_who_sets_the_spin_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert inference_environment()["GOMP_SPINCOUNT"] == "7"
