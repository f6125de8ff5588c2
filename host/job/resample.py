"""Sample-rate conversion of whole recordings. Beside ``room_livekit`` the only user of ``livekit.rtc``."""

from __future__ import annotations


def resample(pcm: bytes, from_rate: int, to_rate: int) -> bytes:
    """Convert mono int16 PCM from one sample rate (Hz) to another, with the SoX resampler of the LiveKit SDK."""
    if from_rate == to_rate or not pcm:
        return pcm
    # Imported here: the command line reads waves too, and needs no WebRTC for that.
    from livekit import rtc

    resampler = rtc.AudioResampler(from_rate, to_rate, quality=rtc.AudioResamplerQuality.HIGH)
    second = 2 * from_rate
    frames = [
        frame
        for start in range(0, len(pcm), second)
        for frame in resampler.push(bytearray(pcm[start : start + second]))
    ]
    frames += resampler.flush()
    return b"".join(bytes(frame.data) for frame in frames)
