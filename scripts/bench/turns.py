#!/usr/bin/env python3
"""Whether callers would stay in the conversation: pauses, noise, back-channels, coughs, interruptions.

    python scripts/bench/turns.py [--speech DIR] [--calls 24] [--turns 6] [--seed 1] [--profile cpu-small]
    python scripts/bench/turns.py --parts virtual|real      one of the two parts

* On a virtual audio clock (``turns_clock.py``): callers scripted from recordings (``turns_callers.py``) talk to the
  table of ``host/job/turn.py`` as it is. Silero, Whisper, the language model and the voice are the real ones, and the
  time they took when they did it is the latency. The same callers are heard with plain endpointing, silence of 0.5 s
  after voice activity (``turn_detection="vad"``), and with the host's defaults. What the models said is kept in
  ``--cache``: a second run takes seconds, and its latencies are those of the first.
* In real time (``turns_room.py``): a real inference process and rooms without a server; callers interrupt at
  random points. From the moment the interruption could be known to silence, and whether the history is what was
  played, word for word.

What is counted, and how, is in ``turns_score.py``. The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from report import ROOT, Bar, console, finish, hardware, percentile, table, warn_if_busy
from sides import give_back, in_process
from speech import DEFAULT_FOLDER, read_recordings
from turns_callers import Call, calls
from turns_clock import VirtualCall
from turns_models import Models
from turns_room import real
from turns_score import LATE_S, SHORT_PAUSE_S, Score, score
from turns_sounds import RATE, Voice, voice_of

from host.job.settings import SessionSettings
from host.job.turn import TurnTaking
from host.job.turn_rules import Rules
from inference.wire import messages as m

PLAIN_S = 0.5
CUT_SHARE = 0.5
SHORT_CUT_PERCENT = 5.0
SILENCE_MS = 100.0
WORDS_APART = 1
"""By so many words may Whisper and the history differ at a cut: one is heard in part."""


def voices_of(folder: Path, models: Models, fold: str) -> list[Voice]:
    """The recordings of ``folder``; of ``fold`` "fit" every second one, of "check" the others."""
    recordings = read_recordings(folder)
    chosen = {"all": recordings, "fit": recordings[0::2], "check": recordings[1::2]}[fold]
    return [
        voice_of(one.name, one.transcript, one.audio, models.voiced(one.audio), models.words(one.audio))
        for one in chosen
    ]


def rules_of(mode: str) -> Rules:
    """The host's defaults; or plain ones: silence ends a turn, and half a second of any voice interrupts."""
    rules = Rules.of(SessionSettings())
    if mode == "vad":
        plain = round(PLAIN_S * RATE)
        return dataclasses.replace(
            rules, detection="vad", vad_delay=plain, min_interruption=plain, backchannels=False, preemptive=False
        )
    return rules


def listen_of(settings: SessionSettings) -> m.Listen:
    """Voice activity detection as a session asks for it."""
    return m.Listen(
        enabled=True,
        activation=settings.activation,
        min_speech_ms=settings.min_speech_ms,
        pause_ms=settings.pause_ms,
    )


def hold(script: Sequence[Call], models: Models, mode: str) -> Score:
    """All calls, one after the other."""
    listen = listen_of(SessionSettings())
    return score(VirtualCall(call, models, TurnTaking(rules_of(mode)), listen).run() for call in script)


def virtual(arguments: argparse.Namespace) -> dict[str, object]:
    """The part on the virtual clock, in the host's environment for the engines."""
    models = Models(arguments.cache, arguments.profile)
    voices = voices_of(arguments.speech, models, arguments.fold)
    script = calls(voices, models.backchannels(), arguments.calls, arguments.turns, arguments.seed)
    scores = {mode: numbers(hold(script, models, mode)) for mode in arguments.modes}
    gaps = {voice.name: len(voice.gaps) for voice in voices}
    return {"modes": scores, "gaps": gaps, "computed": models.kept.computed}


def numbers(of: Score) -> dict[str, object]:
    """What is printed of a mode."""
    cut, pauses = of.cut()
    short, shorts = of.cut(SHORT_PAUSE_S)
    return {
        "pauses": pauses,
        "cut": cut,
        "cut elsewhere": of.cut_elsewhere,
        "between sentences": [sum(p.cut for p in of.pauses if not p.inside), sum(not p.inside for p in of.pauses)],
        "cut audibly": sum(pause.audible for pause in of.pauses),
        "short pauses": shorts,
        "short cut": short,
        "cut by noise": {
            str(snr): [sum(p.cut for p in of.pauses if p.snr_db == snr), sum(p.snr_db == snr for p in of.pauses)]
            for snr in sorted({p.snr_db for p in of.pauses}, key=lambda snr: -(snr or 99))
        },
        "turns": len(of.turns),
        "late": of.late,
        "missed": of.missed,
        "false turns": of.false_turns,
        "overlaps": dict(of.overlaps),
        "false barge-ins": dict(of.false_barge_ins),
        "resumed": of.resumed,
        "missed barge-ins": of.missed_barge_ins,
        "wrong resumes": of.wrong_resumes,
        "barge-in s": spread(of.barge_ins_s),
        "endpointing s": spread(of.delays_s),
        "decided s": spread([turn.decided_s for turn in of.turns if turn.decided_s is not None]),
        "response s": spread(of.responses_s),
        "hidden s": spread(of.hidden_s),
        "worked s": of.worked_s,
        "wasted s": of.wasted_s,
    }


def real_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """The part in real time."""
    models = Models(arguments.cache, arguments.profile)
    voices = voices_of(arguments.speech, models, arguments.fold)
    return real(voices, models, arguments.interruptions, arguments.seed)


def spread(values: Sequence[float]) -> list[float]:
    """p50 and p95."""
    return [percentile(values, 0.5), percentile(values, 0.95)] if values else [float("nan")] * 2


# --- what is printed ------------------------------------------------------------------------------------------


def show(found: dict[str, dict[str, object]], gaps: dict[str, int], computed: int) -> None:
    used = ", ".join(f"{name.removesuffix('.wav')} {count}" for name, count in gaps.items())
    console.print(f"quiet places between words, by recording: {used}")
    console.print(f"{computed} results of the models were computed, the others kept from before")
    names = {"vad": f"plain, {PLAIN_S} s", "model": "the host's defaults"}
    rows = [[what, *(cell(numbers) for numbers in found.values())] for what, cell in _ROWS]
    table("On the virtual clock", ("", *(names[mode] for mode in found)), rows, _CAPTION)


def _times(name: str) -> Callable[[Any], str]:
    return lambda of: " / ".join(f"{1000 * value:.0f}" for value in of[name])


def _false_barge_ins(of: Any) -> str:
    false, over = of["false barge-ins"], of["overlaps"]
    parts = [f"{kind} {false.get(kind, 0)} of {over.get(kind, 0)}" for kind in ("back-channel", "cough")]
    return f"{', '.join(parts)}; {of['resumed']} resumed"


_ROWS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("false cut-offs", lambda of: f"{of['cut']} of {of['pauses']} pauses"),
    (f"  of pauses up to {SHORT_PAUSE_S} s", lambda of: f"{of['short cut']} of {of['short pauses']}"),
    ("  outside of any pause, also counted", lambda of: str(of["cut elsewhere"])),
    ("  that the caller heard", lambda of: str(of["cut audibly"])),
    (
        "  by noise (dB)",
        lambda of: ", ".join(f"{snr}: {cut}/{all_}" for snr, (cut, all_) in of["cut by noise"].items()),
    ),
    ("cut-offs between two sentences", lambda of: "{} of {} pauses".format(*of["between sentences"])),
    (f"late answers (over {LATE_S} s)", lambda of: f"{of['late']} of {of['turns']} turns"),
    ("missed turns", lambda of: str(of["missed"])),
    ("false turns (noise answered)", lambda of: str(of["false turns"])),
    ("false barge-ins", _false_barge_ins),
    ("missed barge-ins", lambda of: f"{of['missed barge-ins']} of {of['overlaps'].get('interruption', 0)}"),
    ("real barge-ins resumed as false ones", lambda of: str(of["wrong resumes"])),
    ("speech to the barge-in, ms p50 / p95", _times("barge-in s")),
    ("endpointing, ms p50 / p95", _times("endpointing s")),
    ("  without waiting for the transcript", _times("decided s")),
    ("response, ms p50 / p95", _times("response s")),
    ("hidden by speculation, ms p50 / p95", _times("hidden s")),
    ("device time wasted", lambda of: f"{of['wasted s']:.1f} of {of['worked s']:.1f} s"),
)
_CAPTION = (
    "Back-channels are said by the agent's own voice, raised; coughs are synthetic. "
    "Hidden: device time for transcript, prefill, first phrase and its first audio that nobody waited for."
)


def bars_of(plain: Any, ours: Any) -> list[Bar]:
    short = 100 * ours["short cut"] / max(1, ours["short pauses"])
    return [
        Bar("false cut-offs, of plain endpointing's", ours["cut"] / max(1, plain["cut"]), "×", CUT_SHARE),
        Bar(f"pauses up to {SHORT_PAUSE_S} s cut off", short, "%", SHORT_CUT_PERCENT),
        Bar("endpointing p50", 1000 * ours["endpointing s"][0], "ms", round(1000 * plain["endpointing s"][0], 1)),
    ]


_DECISIONS = {
    "length": "decided by the length of the speech",
    "words": "decided by its words",
    "at once": "at once, the agent having just begun",
}


def show_real(found: Any) -> list[Bar]:
    for opinion in found["opinions"]:
        if abs(len(opinion["heard"].split()) - opinion["words"]) > WORDS_APART:
            ends = (" ".join(opinion[side].split()[-6:]) for side in ("said", "heard"))
            console.print("the history ends with {!r}, Whisper heard {!r}".format(*ends))
    for played, kept in found["different"]:
        console.print(f"[red]played {played!r}, but the history has {kept!r}")
    opinions = found["opinions"]
    wrong = sum(opinion["errors"] for opinion in opinions)
    of = max(1, sum(opinion["words"] for opinion in opinions))
    ends = Counter(len(opinion["heard"].split()) - opinion["words"] for opinion in opinions)
    apart = ", ".join(f"{more:+d}: {count}" for more, count in sorted(ends.items()))
    barge_ins, reported = found["barge-ins"], found["reported ms"]
    decision = [decision_ms for _, decision_ms, _ in barge_ins]

    def row(name: str, values: list[float]) -> tuple[str | int | float, ...]:
        return (name, len(values), *(percentile(values, share) for share in (0.5, 0.95, 0.99)))

    kinds = {by: [decision_ms for kind, decision_ms, _ in barge_ins if kind == by] for by in _DECISIONS}
    rows = [row("from the last sample that the decision needs", decision)]
    rows += [row(f"  {_DECISIONS[by]}", values) for by, values in kinds.items() if values]
    rows.append(row("from the caller's first loud sample", [voice_ms for _, _, voice_ms in barge_ins]))
    rows += [row("as the session reports it", reported)] if reported else []
    caption = "to the end of the last 20 ms in which the room hears the agent"
    table("In real time: barge-in to silence, ms", ("", "times", "p50", "p95", "p99"), rows, caption)
    console.print(f"{found['missed']} interruptions did not silence the agent")
    console.print(
        f"{found['answers']} answers were heard in whole or in part; {len(found['different'])} differ from the history"
    )
    console.print(
        f"Whisper on the recordings: {wrong / of:.1%} word errors; words that it has more than the history: {apart}"
    )
    return [
        Bar("barge-in to silence, p99", percentile(decision, 0.99), "ms", SILENCE_MS),
        Bar("answers of which the history has other words than were played", len(found["different"]), "answers", 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--calls", type=int, default=24)
    parser.add_argument("--turns", type=int, default=6, help="of each call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fold", choices=("all", "fit", "check"), default="all", help="which recordings")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "bench-turns", help="what the models said")
    parser.add_argument("--modes", nargs="+", default=["vad", "model"], choices=("vad", "model"))
    parser.add_argument("--parts", nargs="+", default=["virtual", "real"], choices=("virtual", "real"))
    parser.add_argument("--interruptions", type=int, default=30, help="in real time")
    parser.add_argument("--child", choices=("virtual", "real"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        give_back({"virtual": virtual, "real": real_time}[arguments.child](arguments))
        return 0
    console.print(hardware())
    warn_if_busy()
    bars: list[Bar] = []
    if "virtual" in arguments.parts:
        result = in_process(__file__, *sys.argv[1:], "--child", "virtual", ours=True)
        show(result["modes"], result["gaps"], result["computed"])
        if len(result["modes"]) == 2:
            bars += bars_of(result["modes"]["vad"], result["modes"]["model"])
    if "real" in arguments.parts:
        bars += show_real(in_process(__file__, *sys.argv[1:], "--child", "real", ours=True))
    return finish("turns", bars)


if __name__ == "__main__":
    sys.exit(main())
