"""Everything that can go wrong on the wire.

WireError
├── LocalProtocolError    my mistake: nothing was sent
├── RemoteProtocolError   the peer's mistake: cut it off
├── SlowPeerError         the peer does not read what it is sent
├── RingCorruptedError    the peer wrote an impossible cursor: cut it off
└── OverrunError          asked for audio that has been overwritten since
"""


class WireError(Exception):
    """Base of all errors of the wire."""


class LocalProtocolError(WireError):
    """This side tried something that is not legal now or not encodable; nothing was sent."""


class RemoteProtocolError(WireError):
    """The peer sent something malformed or not legal now. The connection is of no use any more."""


class SlowPeerError(WireError):
    """The peer does not read: more bytes wait for it than the limit allows."""


class RingCorruptedError(WireError):
    """A cursor in shared memory is impossible (went back, or claims more than the ring holds)."""


class OverrunError(WireError):
    """The samples asked for are no longer (or not yet) in the ring."""
