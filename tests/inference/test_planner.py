"""Which quantum goes first."""

import pytest

from inference.planner import AHEAD_S, Kind, Quantum, Task, choose

NOW = 100.0


def first(*tasks: Task, max_utterances: int = 8) -> Quantum | None:
    decided = choose(NOW, tasks, max_utterances=max_utterances)
    assert decided == choose(NOW, tuple(reversed(tasks)), max_utterances=max_utterances), "the order must not matter"
    return decided


def test_nothing_to_do() -> None:
    assert choose(NOW, [], max_utterances=8) is None


def test_of_requests_of_one_instant_the_first_audio_goes_first_and_speculation_last() -> None:
    tts, llm, stt = (Task(kind, n, NOW) for n, kind in enumerate((Kind.TTS, Kind.LLM, Kind.STT)))
    guess = Task(Kind.STT, 9, NOW, speculative=True)
    waiting = [guess, stt, llm, tts]
    order = []
    while waiting:
        quantum = first(*waiting)
        assert quantum is not None
        order.append(quantum.requests)
        waiting = [task for task in waiting if task.request not in quantum.requests]
    assert order == [(tts.request,), (llm.request,), (stt.request,), (guess.request,)]


def test_one_kind_runs_as_one_batch_most_urgent_first() -> None:
    assert first(Task(Kind.LLM, 1, NOW - 1), Task(Kind.LLM, 2, NOW - 2), Task(Kind.TTS, 3, NOW)) == Quantum(
        Kind.LLM, (2, 1)
    )


def test_a_batch_of_utterances_has_a_limit_and_guesses_do_not_ride_along() -> None:
    tasks = [Task(Kind.STT, n, NOW + n / 1000) for n in range(5)]
    guess = Task(Kind.STT, 9, NOW, speculative=True)
    assert first(*tasks, guess, max_utterances=3) == Quantum(Kind.STT, (0, 1, 2))


def test_a_room_far_ahead_of_its_listener_waits_for_everything_else() -> None:
    ahead = Task(Kind.TTS, 1, NOW - 60, buffered_s=AHEAD_S + 0.1)
    guess = Task(Kind.STT, 2, NOW, speculative=True)
    assert first(ahead, guess) == Quantum(Kind.STT, (2,))
    assert first(ahead) == Quantum(Kind.TTS, (1,))


@pytest.mark.parametrize("kind", [Kind.LLM, Kind.TTS])
def test_a_silent_room_goes_before_one_with_speech_buffered(kind: Kind) -> None:
    silent = Task(kind, 1, NOW - 0.001)
    buffered = Task(Kind.TTS, 2, NOW - 9, buffered_s=2.0)
    decided = first(silent, buffered)
    assert decided is not None
    assert decided.requests[0] == 1


def test_a_room_about_to_run_dry_goes_before_a_guess() -> None:
    dry = Task(Kind.TTS, 1, NOW, buffered_s=0.4)
    guess = Task(Kind.STT, 2, NOW, speculative=True)
    assert first(dry, guess) == Quantum(Kind.TTS, (1,))


def test_a_turn_that_has_waited_long_goes_before_a_fresh_token() -> None:
    waited = Task(Kind.STT, 1, NOW - 0.2)
    fresh = Task(Kind.LLM, 2, NOW)
    assert first(waited, fresh) == Quantum(Kind.STT, (1,))
