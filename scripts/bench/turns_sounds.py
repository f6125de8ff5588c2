"""What callers of the turn-taking bench are made of: recordings with pauses put between words, noise, coughs. Pure.

A ``Sound`` lies on a grid of 160 ms (five windows of voice activity, eight ticks of a room), begins with its own
background and ends with it, so that whatever is computed from it does not depend on when it is said.

Quiet places are found in the audio: frames of 10 ms that are far below the voice. A pause is put into a quiet
place that a word ends at; what fills it is the recording's own quiet frames, overlapped and added. A pause lasts
from the last loud frame before it to the first loud one after it. Where a sentence ends inside a recording none is
put; the speaker's own pauses there are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Kind = Literal["turn", "back-channel", "cough"]

RATE = 16_000
GRID = 2_560
LEAD = 6 * GRID
"""Background before a sound: more than voice activity detection remembers."""
TAIL = 32 * GRID
"""Background after it; its last ``LOOP`` samples go on for ever."""
LOOP = 16 * GRID
VOICE_RMS = 0.05
"""Of a recording's loud frames: every caller is as loud as the others."""
_FRAME = RATE // 100
_GAP_FRAMES = 4
NATURAL_PAUSE_S = 0.15
"""A quiet place of the recording itself that is this long counts as a pause of the caller: detection does so, too."""
_BLIP_FRAMES = 3
"""A sound as short as this between two quiet places is no word."""
_EDGE_S = 0.25
_WINDOW_S = 0.032
_NEAR_WORD_S = 0.12
_LONG_PAST_S = 0.45
_FADE = RATE // 200


@dataclass(frozen=True)
class Gap:
    """A quiet place, in samples of the recording; ``cut``: its quietest frame's middle.

    ``inside`` a sentence; ``between`` two words, as far as is known.
    """

    begin: int
    end: int
    cut: int
    inside: bool = True
    between: bool = True


@dataclass(frozen=True)
class Pause:
    """The caller says nothing from ``begin`` to ``end`` (samples of the sound), and goes on then.

    ``inside`` a sentence; ``inserted`` by the bench, and not the speaker's own.
    """

    begin: int
    end: int
    inserted: bool
    inside: bool = True

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / RATE


@dataclass(frozen=True, eq=False)
class Voice:
    """One recording, ``VOICE_RMS`` loud: what is said from ``begin`` to ``end``, and its quiet places in between."""

    name: str
    text: str
    audio: Audio
    begin: int
    end: int
    gaps: tuple[Gap, ...]
    quiet: Audio


@dataclass(frozen=True, eq=False)
class Sound:
    """What a caller brings forth once. ``begin``, ``end``: first and last loud sample; ``snr_db``: None is no noise."""

    kind: Kind
    name: str
    audio: Audio
    begin: int
    end: int
    pauses: tuple[Pause, ...] = ()
    snr_db: float | None = None

    @property
    def tail(self) -> int:
        """Where its background begins to go round."""
        return len(self.audio) - LOOP

    def window(self, start: int, length: int) -> Audio:
        """``length`` samples from ``start``, for however long it is over."""
        places = np.arange(start, start + length)
        beyond = places >= len(self.audio)
        places[beyond] = self.tail + (places[beyond] - self.tail) % LOOP
        return self.audio[places]


# --- recordings -----------------------------------------------------------------------------------------------


def voice_of(
    name: str, text: str, audio: Audio, voiced: tuple[float, float], words: Sequence[tuple[float, str]]
) -> Voice:
    """``voiced``: where the voice begins and ends, in seconds, give or take a window: clicks beyond are not the voice.

    ``words``: (seconds at which it ends, roughly, word with its punctuation); pauses are put near one's end only.
    """
    levels = levels_db(audio)
    loud = levels >= _threshold(levels)
    for first, last in runs(loud):
        loud[first:last] = last - first > _BLIP_FRAMES
    times = np.arange(len(levels)) * _FRAME / RATE
    loud &= (times >= voiced[0] - _EDGE_S) & (times <= voiced[1] + _WINDOW_S)
    places = np.flatnonzero(loud)
    begin, end = int(places[0]) * _FRAME, (int(places[-1]) + 1) * _FRAME
    active = np.concatenate([audio[n * _FRAME : (n + 1) * _FRAME] for n in places])
    scaled = audio * np.float32(VOICE_RMS / _rms(active))
    gaps = []
    for first, last in runs(~loud):
        first_s, last_s = first * _FRAME / RATE, last * _FRAME / RATE
        middle = (first_s + last_s) / 2
        inside = begin / RATE + _EDGE_S <= middle <= end / RATE - _EDGE_S
        near = [at for at, _ in words if first_s - _NEAR_WORD_S <= at <= last_s + _NEAR_WORD_S]
        long = last_s - first_s >= NATURAL_PAUSE_S
        if last - first >= _GAP_FRAMES and inside and (near or long):
            cut = first + int(np.argmin(levels[first:last]))
            # A silence is taken for a part of the word that follows it: the end of a sentence may seem long past.
            ends = [word for at, word in words if first_s - _LONG_PAST_S <= at <= last_s + _NEAR_WORD_S]
            within = not any(word.rstrip("\"'”’)").endswith((".", "?", "!")) for word in ends)
            gaps.append(Gap(first * _FRAME, last * _FRAME, cut * _FRAME + _FRAME // 2, within, bool(near)))
    return Voice(name, text, scaled, begin, end, tuple(gaps), _quietest(scaled, levels))


def levels_db(audio: Audio) -> NDArray[np.float64]:
    """Of each whole frame of 10 ms; digital silence is -120 dB."""
    frames = audio[: len(audio) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float64)
    return 10 * np.log10(np.maximum((frames**2).mean(axis=1), 1e-12))


def runs(of: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where ``of`` is true: [first, last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], of, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _threshold(levels: NDArray[np.float64]) -> float:
    """Between the background and the voice: 6 dB above the one, at most 30 dB below the other."""
    floor, peak = np.percentile(levels, 5), np.percentile(levels, 95)
    return float(max(min(floor + 6, peak - 12), peak - 30))


def _quietest(audio: Audio, levels: NDArray[np.float64]) -> Audio:
    """The quietest twentieth of a second or more, in pieces of 50 ms that lie together in the recording."""
    width = 5
    if len(levels) < width:
        return np.zeros(width * _FRAME, np.float32)
    means = np.convolve(levels, np.ones(width) / width, "valid")
    order = np.argsort(means, kind="stable")[: max(1, len(means) // 50)]
    return np.concatenate([audio[n * _FRAME : (n + width) * _FRAME] for n in sorted(order)])


def floor_noise(voice: Voice, samples: int, draw: np.random.Generator) -> Audio:
    """The recording's background: its quietest pieces of 50 ms, drawn, overlapped by half and added."""
    piece = 5 * _FRAME
    step = piece // 2
    window = np.sqrt(np.hanning(piece + 1)[:piece]).astype(np.float32)
    out = np.zeros(samples + 2 * piece, np.float32)
    count = len(voice.quiet) // piece
    for at in range(0, samples + piece, step):
        chosen = int(draw.integers(count)) * piece
        out[at : at + piece] += voice.quiet[chosen : chosen + piece] * window
    return out[piece : piece + samples]


def utterance(voice: Voice, pauses_s: Sequence[float], draw: np.random.Generator, snr_db: float | None) -> Sound:
    """``voice`` with one pause of each length put into a quiet place that is drawn; fewer when it has fewer places."""
    places = [number for number, gap in enumerate(voice.gaps) if gap.inside and gap.between]
    count = min(len(pauses_s), len(places))
    chosen = sorted(draw.choice(places, count, replace=False).tolist()) if count else []
    wanted = dict(zip(chosen, pauses_s, strict=False))
    pieces: list[Audio] = []
    pauses: list[Pause] = []
    done, added = voice.begin, 0
    for number, gap in enumerate(voice.gaps):
        more = round(wanted.get(number, 0.0) * RATE) - (gap.end - gap.begin)
        if more > 0:
            pieces += [voice.audio[done : gap.cut], floor_noise(voice, more, draw)]
            done = gap.cut
        more = max(more, 0)
        if more or gap.end - gap.begin >= NATURAL_PAUSE_S * RATE:
            shift = LEAD - voice.begin + added
            pauses.append(Pause(gap.begin + shift, gap.end + shift + more, more > 0, gap.inside))
        added += more
    pieces.append(voice.audio[done : voice.end])
    said = faded(pieces)
    before, after = floor_noise(voice, LEAD, draw), floor_noise(voice, TAIL + GRID, draw)
    whole = faded([before, said, after])
    sound = Sound("turn", voice.name, _to_grid(whole), LEAD, LEAD + len(said), tuple(pauses))
    return noisy(sound, snr_db, draw)


def apart(kind: Kind, name: str, audio: Audio, draw: np.random.Generator, snr_db: float | None) -> Sound:
    """A short sound without a background of its own: a cough, a back-channel."""
    levels = levels_db(audio)
    places = np.flatnonzero(levels >= levels.max() - 25)
    begin, end = int(places[0]) * _FRAME, (int(places[-1]) + 1) * _FRAME
    said = audio[begin:end]
    silence = (draw.standard_normal(LEAD + TAIL + GRID) * 1e-4).astype(np.float32)
    sound = Sound(kind, name, _to_grid(faded([silence[:LEAD], said, silence[LEAD:]])), LEAD, LEAD + len(said))
    return noisy(sound, snr_db, draw)


def faded(pieces: Sequence[Audio]) -> Audio:
    """One after the other, without a click: each is faded over 5 ms at the seams, which costs no time."""
    out = []
    for number, piece in enumerate(pieces):
        shaped = piece.astype(np.float32, copy=True)
        ramp = np.linspace(0, 1, min(_FADE, len(shaped)), dtype=np.float32)
        if number:
            shaped[: len(ramp)] *= ramp
        if number + 1 < len(pieces):
            shaped[len(shaped) - len(ramp) :] *= ramp[::-1]
        out.append(shaped)
    return np.concatenate(out)


def _to_grid(audio: Audio) -> Audio:
    return audio[: len(audio) // GRID * GRID]


def _rms(audio: Audio) -> float:
    return float(np.sqrt((audio.astype(np.float64) ** 2).mean()))


# --- noise, coughs --------------------------------------------------------------------------------------------


def noisy(sound: Sound, snr_db: float | None, draw: np.random.Generator) -> Sound:
    """With pink noise, ``snr_db`` below a voice's loud frames."""
    if snr_db is None:
        return sound
    noise = pink(len(sound.audio), draw) * np.float32(VOICE_RMS * 10 ** (-snr_db / 20))
    return replace(sound, audio=np.clip(sound.audio + noise, -1, 1), snr_db=snr_db)


def pink(samples: int, draw: np.random.Generator) -> Audio:
    """Noise of as much power in every octave, 60 Hz to 7 kHz, of RMS 1."""
    spectrum = np.fft.rfft(draw.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / RATE)
    shape = np.where((hertz > 60) & (hertz < 7_000), 1 / np.sqrt(np.maximum(hertz, 60)), 0)
    noise = np.fft.irfft(spectrum * shape, samples)
    return (noise / np.sqrt((noise**2).mean())).astype(np.float32)


def cough(draw: np.random.Generator) -> Audio:
    """A synthetic cough, there being no recording of one: bursts of noise through the resonances of a throat.

    Each: an explosion of some 40 ms, a hiss that dies away over 100 to 200 ms, and, half of the time, a hoarse
    voice at its end.
    """
    bursts = [_burst(draw) for _ in range(int(draw.integers(1, 4)))]
    pieces: list[Audio] = []
    for burst in bursts:
        pieces += [burst, np.zeros(round(RATE * draw.uniform(0.08, 0.25)), np.float32)]
    whole = np.concatenate(pieces[:-1])
    return (whole * (VOICE_RMS * draw.uniform(1.0, 2.0) / _rms(whole))).astype(np.float32)


def _burst(draw: np.random.Generator) -> Audio:
    length = draw.uniform(0.18, 0.32)
    times = np.arange(round(RATE * length)) / RATE
    attack = np.minimum(1, times / 0.008)
    decay = np.exp(-times / draw.uniform(0.05, 0.09)) + 0.25 * np.exp(-times / 0.15)
    source = draw.standard_normal(len(times))
    if draw.random() < 0.5:
        pitch = draw.uniform(120, 220) * (1 - 0.4 * times / length)
        voiced = np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / RATE))
        source += 0.8 * voiced * np.clip((times - 0.12) / 0.03, 0, 1)
    spectrum = np.fft.rfft(source)
    hertz = np.fft.rfftfreq(len(times), 1 / RATE)
    shape = np.full(len(hertz), 0.1)
    for centre, width in (
        (draw.uniform(500, 800), 250),
        (draw.uniform(1_300, 1_900), 400),
        (draw.uniform(2_500, 3_500), 700),
    ):
        shape += np.exp(-(((hertz - centre) / width) ** 2))
    shape[hertz < 150] *= 0.1
    result: Audio = (np.fft.irfft(spectrum * shape, len(times)) * attack * decay).astype(np.float32)
    return result


def rounded_up(samples: float) -> int:
    """To the grid."""
    return math.ceil(samples / GRID) * GRID
