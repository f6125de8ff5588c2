"""Echo, noise and gain, as in a browser: WebRTC's audio processing, from the LiveKit SDK; and its resampler.

Loaded when sound is: the SDK takes half a second and some megabytes.
"""

from __future__ import annotations

from livekit import rtc

from host.job.line import CALLER_RATE

_FRAME_MS = 10
_FRAME_BYTES = 2 * CALLER_RATE * _FRAME_MS // 1000
_LOOK_BLOCKS = 50
"""So often, in blocks of 20 ms, it is looked at whether what was played runs ahead of what is recorded."""


class Resampler:
    """A stream of mono int16 PCM at another rate."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._resampler = (
            rtc.AudioResampler(from_rate, to_rate, quality=rtc.AudioResamplerQuality.VERY_HIGH)
            if from_rate != to_rate
            else None
        )

    def push(self, pcm: bytes) -> bytes:
        """The next of it; what comes out is 10 to 30 ms late, in pieces of other lengths."""
        if self._resampler is None or not pcm:
            return pcm
        return b"".join(bytes(frame.data) for frame in self._resampler.push(bytearray(pcm)))


class WebRtcEcho:
    """``EchoCanceller``: what is played at ``rate`` Hz is taken out of what is recorded at 16 kHz.

    Both come in bursts, as their threads and this one are given time. For each frame that is recorded the canceller is
    told one that was played; so an echo is always as late as it was. What has been waiting to be told for a second,
    because a device lost some audio, is told at once: an echo that comes before its sound was told is not taken out.

    ``delay_s``: from a sample's playing being asked for to its echo being handed over; a hint, the delay is found.
    """

    def __init__(self, rate: int, delay_s: float) -> None:
        self._module = rtc.AudioProcessingModule(
            echo_cancellation=True, noise_suppression=True, high_pass_filter=True, auto_gain_control=True
        )
        self._delay_ms = min(500, round(delay_s * 1000))
        self._resampler = Resampler(rate, CALLER_RATE)
        self._frame_samples = rate * _FRAME_MS // 1000
        self._played = bytearray()
        self._blocks = 0
        self._fewest = 0

    def clean(self, block: bytes, played: bytes) -> bytes:
        """See ``EchoCanceller``."""
        if self._blocks == 0:
            # What was played before anything was recorded has no echo here.
            played = played[-4 * self._frame_samples :]
        self._played += self._resampler.push(played)
        cleaned = bytearray()
        for at in range(0, len(block), _FRAME_BYTES):
            self._tell(1)
            frame = _frame(block[at : at + _FRAME_BYTES])
            self._module.set_stream_delay_ms(self._delay_ms)
            self._module.process_stream(frame)
            cleaned += frame.data.cast("b")
        waiting = len(self._played) // _FRAME_BYTES
        self._fewest = min(self._fewest, waiting) if self._blocks % _LOOK_BLOCKS else waiting
        self._blocks += 1
        if self._blocks % _LOOK_BLOCKS == 0:
            self._tell(self._fewest)
        return bytes(cleaned)

    def _tell(self, frames: int) -> None:
        """So many frames of what was played, as far as they are there."""
        for _ in range(min(frames, len(self._played) // _FRAME_BYTES)):
            self._module.process_reverse_stream(_frame(self._played[:_FRAME_BYTES]))
            del self._played[:_FRAME_BYTES]


def _frame(pcm: bytes | bytearray) -> rtc.AudioFrame:
    return rtc.AudioFrame(bytearray(pcm), CALLER_RATE, 1, len(pcm) // 2)
