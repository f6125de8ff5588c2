"""Echo, noise and gain, as in a browser: WebRTC's audio processing, from the LiveKit SDK; and its resampler.

Loaded when sound is: the SDK takes half a second and some megabytes.
"""

from __future__ import annotations

from livekit import rtc

from host.job.line import CALLER_RATE

_FRAME_MS = 10
_FRAME_BYTES = 2 * CALLER_RATE * _FRAME_MS // 1000
_MOST_WAITING = 10
"""So many frames of what was played may wait for the microphone; two clocks that drift apart must not add up."""


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

    ``delay_s``: from a sample's playing being asked for to its echo being handed over; a hint, the delay is found. An
    echo that comes before the resampler has told what is played, 30 ms, is not: no device that buffers is so quick.
    """

    def __init__(self, rate: int, delay_s: float) -> None:
        self._module = rtc.AudioProcessingModule(
            echo_cancellation=True, noise_suppression=True, high_pass_filter=True, auto_gain_control=True
        )
        self._delay_ms = min(500, round(delay_s * 1000))
        self._resampler = Resampler(rate, CALLER_RATE)
        self._played = bytearray()

    def clean(self, block: bytes, played: bytes) -> bytes:
        """See ``EchoCanceller``."""
        self._played += self._resampler.push(played)
        cleaned = bytearray()
        for at in range(0, len(block), _FRAME_BYTES):
            self._tell()
            if len(self._played) > _MOST_WAITING * _FRAME_BYTES:
                self._tell()
            frame = _frame(block[at : at + _FRAME_BYTES])
            self._module.set_stream_delay_ms(self._delay_ms)
            self._module.process_stream(frame)
            cleaned += frame.data.cast("b")
        return bytes(cleaned)

    def _tell(self) -> None:
        """One frame of what was played, where there is one."""
        if len(self._played) >= _FRAME_BYTES:
            self._module.process_reverse_stream(_frame(self._played[:_FRAME_BYTES]))
            del self._played[:_FRAME_BYTES]


def _frame(pcm: bytes | bytearray) -> rtc.AudioFrame:
    return rtc.AudioFrame(bytearray(pcm), CALLER_RATE, 1, len(pcm) // 2)
