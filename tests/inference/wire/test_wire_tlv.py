"""Frames: golden bytes both ways, and every way in which bytes can be wrong."""

from __future__ import annotations

import dataclasses
import math
import struct
import tracemalloc
import typing
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import MESSAGES, any_message, bounds_of, element_of, hint_of, structs

from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.errors import LocalProtocolError, RemoteProtocolError
from inference.wire.tlv import (
    HEADER,
    MAX_FRAME_BYTES,
    Message,
    Struct,
    declare,
    decode_body,
    decode_header,
    encode,
    message,
    tag,
)


def fields(*items: tuple[int, bytes]) -> bytes:
    """A body, written out by hand: independent of the code under test."""
    return b"".join(struct.pack("<HI", number, len(value)) + value for number, value in items)


def frame(number: int, body: bytes) -> bytes:
    return b"RF\x01\x00" + struct.pack("<HI", number, len(body)) + body


def decode(data: bytes) -> Message:
    cls, length = decode_header(data)
    assert length == len(data) - HEADER.size
    return decode_body(cls, memoryview(data)[HEADER.size :])


def i64(value: int) -> bytes:
    return struct.pack("<q", value)


def f64(value: float) -> bytes:
    return struct.pack("<d", value)


def short(value: object) -> str:
    """A test's name."""
    return hex(value)[:20] if isinstance(value, int) else str(value)[:30]


# --- golden bytes -------------------------------------------------------------------------------
# Between two versions of this program these bytes are the contract; a change here breaks a rolling update.

GOLDEN: list[tuple[Message, str]] = [
    # no field left out: str, str, int
    (
        m.Hello("secret", "job"),
        "5246 01 00 0100 230000000100 06000000 7365637265740200 03000000 6a6f620300 08000000 0100000000000000",
    ),
    # a literal, and text beyond ASCII
    (m.Goodbye("token", "né"), "5246 01 00 0300 14000000 0100 05000000 746f6b656e 0200 03000000 6ec3a9"),
    (m.OpenRoom("r"), "5246 01 00 0a00 07000000 0100 01000000 72"),
    # bool, float, three ints
    (
        m.Listen(True),
        "5246 01 00 1400 4d000000"
        "0100 01000000 01"
        "0200 08000000 000000000000e03f"
        "0300 08000000 4000000000000000"
        "0400 08000000 6000000000000000"
        "0500 08000000 0001000000000000"
        "0600 08000000 ffffffffffffffff",
    ),
    (m.SpeechStarted(16000), "5246 01 00 1500 0e000000 0100 08000000 803e000000000000"),
    # nested structs, repeated; repeated text; an empty text; a negative int
    (
        m.Generate(1, (m.ChatMessage("user", "hi"), m.ChatMessage("assistant", "")), stop=("a", "")),
        "5246 01 00 2800 ae000000"
        "0100 08000000 0100000000000000"
        "0200 12000000 0100 04000000 75736572 0200 02000000 6869"
        "0200 15000000 0100 09000000 617373697374616e74 0200 00000000"
        "0300 08000000 0001000000000000"
        "0400 08000000 666666666666e63f"
        "0500 08000000 666666666666ee3f"
        "0600 08000000 000000000000f03f"
        "0700 08000000 ffffffffffffffff"
        "0800 01000000 61"
        "0800 00000000"
        "0900 01000000 00 0a00 00000000 0b00 00000000 0c00 01000000 00",
    ),
    (
        m.RequestFailed(9, "cancelled", ""),
        "5246 01 00 3d00 23000000 0100 08000000 0900000000000000 0200 09000000 63616e63656c6c6564 0300 00000000",
    ),
    # bytes, and repeated text that is empty: no field at all
    (
        s.StartJob("j", "r", "livekit", job=b"\x00\xff", settings=""),
        "5246 01 00 e600 61000000"
        "0100 01000000 6a"
        "0200 01000000 72"
        "0300 07000000 6c6976656b6974"
        "0400 02000000 00ff"
        "0500 00000000 0600 00000000 0700 00000000 0900 00000000 0a00 00000000 0b00 00000000"
        "0c00 00000000 0d00 00000000 0e00 00000000 0f00 02000000 7b7d",
    ),
    (s.Ping(-1), "5246 01 00 dc00 0e000000 0100 08000000 ffffffffffffffff"),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: getattr(type(value), "__name__", ""))
def test_golden_bytes(message: Message, golden: str) -> None:
    data = bytes.fromhex(golden)
    assert encode(message).hex(" ") == data.hex(" ")
    assert decode(data) == message


TYPE_NUMBERS = {
    "Hello": 1, "Welcome": 2, "Goodbye": 3, "OpenRoom": 10, "RoomOpened": 11, "RoomRefused": 12, "Listen": 20,
    "SpeechStarted": 21, "SpeechPaused": 22, "SpeechResumed": 23, "SpeechEnded": 24, "AudioLost": 25,
    "Transcribe": 30, "Transcript": 31, "Generate": 40, "TextDelta": 41, "GenerateDone": 42,
    "EndOfTurn": 43, "Speak": 50,
    "SpeakStarted": 51, "SpeakDone": 52, "Cancel": 60, "RequestFailed": 61, "Promote": 62, "GetStats": 70, "Stats": 71,
    "Spawn": 200, "Spawned": 201, "Reaped": 202, "SpawnFailed": 203, "InitializeInference": 210,
    "InitializeJob": 211, "Progress": 212, "Calibrated": 216, "Ready": 213, "InitializeFailed": 214,
    "InferenceReport": 215, "Ping": 220, "Pong": 221,
    "LogLine": 222, "StartJob": 230, "JobUpdate": 231, "JobUpdateAck": 232, "TurnReport": 233, "Shutdown": 240,
    "Exiting": 241,
    "Ending": 242,
}  # fmt: skip


def test_type_numbers_are_the_contract() -> None:
    assert {kind.__name__: kind.TYPE for kind in MESSAGES} == TYPE_NUMBERS


# --- messages of nothing but numbers --------------------------------------------------------------
# They have a short way, which must say what the codec for every message says.

NUMBERS = [kind for kind in MESSAGES if kind.LAYOUT is not None]


def outcome(kind: type[Message], body: bytes) -> str:
    try:
        return repr(decode_body(kind, body))
    except RemoteProtocolError as exc:
        return f"refused: {exc}"


def test_the_frequent_messages_are_among_them() -> None:
    assert {m.GetStats, m.Stats, m.SpeechStarted, m.SpeechEnded, m.SpeakStarted, m.SpeakDone, s.Ping} <= set(NUMBERS)
    assert m.Listen not in NUMBERS
    assert m.TextDelta not in NUMBERS


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_both_ways_of_decoding_agree(kind: type[Message], data: st.DataObject) -> None:
    values = [data.draw(st.binary(min_size=8, max_size=8)) for _ in kind.FIELDS]
    items = [(field.tag, value) for field, value in zip(kind.FIELDS, values, strict=True)]
    # A field that nobody knows makes no difference, but it is not laid out as usual.
    assert outcome(kind, fields(*items)) == outcome(kind, fields(*items, (60_000, b"")))


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_the_frame_of_numbers_is_the_one_written_by_hand(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(structs(kind))
    values = [getattr(message, field.name) for field in kind.FIELDS]
    packed = [
        i64(value) if field.kind == "int" else f64(value) for field, value in zip(kind.FIELDS, values, strict=True)
    ]
    items = [(field.tag, value) for field, value in zip(kind.FIELDS, packed, strict=True)]
    assert encode(message) == frame(kind.TYPE, fields(*items))


def test_a_whole_number_is_a_float_too() -> None:
    whole = dataclasses.replace(m.Stats(1, 2, 3, 4, 5, 6, 0.0), busy=1)
    assert encode(whole) == encode(dataclasses.replace(whole, busy=1.0))


# --- every message ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_round_trip(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(structs(kind))
    assert decode(encode(message)) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=10)
def test_unknown_fields_are_skipped_wherever_they_stand(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(structs(kind))
    body = encode(message)[HEADER.size :]
    known = {field.tag for field in kind.FIELDS}
    number = data.draw(st.integers(0, 65535).filter(lambda number: number not in known))
    unknown = fields((number, data.draw(st.binary(max_size=20))))
    assert decode(frame(kind.TYPE, unknown + body)) == message
    assert decode(frame(kind.TYPE, body + unknown)) == message


@message(65_000)
@dataclass(frozen=True, slots=True)
class Sample(Message):
    """Every kind of field there is, also the kinds that no message uses yet."""

    whole: int = tag(1, minimum=-5, maximum=5)
    real: float = tag(2, minimum=0.0, maximum=1.0)
    flag: bool = tag(3)
    text: str = tag(4, minimum=1, maximum=3)
    blob: bytes = tag(5, maximum=4)
    choice: Literal["a", "b"] = tag(6)
    maybe: int | None = tag(7, maximum=9)
    many: tuple[int, ...] = tag(8, minimum=0)
    nested: m.ChatMessage = tag(9)  # noqa: RUF009 (tag() declares a field)
    plain: float = tag(10, default=0.5)


CHAT = m.ChatMessage("user", "hi")
GOOD = Sample(-5, 0.25, True, "abc", b"\x00", "b", None, (1, 2), CHAT)


def test_golden_bytes_of_every_kind_of_field() -> None:
    body = fields(
        (1, i64(-5)),
        (2, f64(0.25)),
        (3, b"\x01"),
        (4, b"abc"),
        (5, b"\x00"),
        (6, b"b"),
        (8, i64(1)),
        (8, i64(2)),
        (9, fields((1, b"user"), (2, b"hi"))),
        (10, f64(0.5)),
    )
    assert encode(GOOD) == frame(65_000, body)
    assert decode(frame(65_000, body)) == GOOD
    # An optional field that is there, and a default that is not.
    assert decode(frame(65_000, body[: -len(fields((10, f64(0.5))))] + fields((7, i64(9))))) == dataclasses.replace(
        GOOD, maybe=9
    )


# Order on the wire says nothing, except between the elements of one repeated field.
def test_fields_in_any_order() -> None:
    items = parts(GOOD)
    assert decode(frame(65_000, fields(*items[::-1]))) == dataclasses.replace(GOOD, many=(2, 1))


# --- values that break their declaration ----------------------------------------------------------

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("whole", "5", "expected int, got str"),
    ("whole", None, "expected int, got NoneType"),
    ("whole", 1.0, "expected int, got float"),
    ("whole", True, "expected int, got bool"),
    ("whole", 6, "6 is above 5"),
    ("whole", -6, "-6 is below -5"),
    ("whole", 1 << 63, "does not fit 64 bits"),
    ("whole", -(1 << 63) - 1, "does not fit 64 bits"),
    # Python refuses to print an integer this long.
    ("whole", 1 << 20_000, "an integer of 20001 bits does not fit 64 bits"),
    ("real", "x", "expected float, got str"),
    ("real", None, "expected float, got NoneType"),
    ("real", True, "expected float, got bool"),
    ("real", math.nan, "nan is below 0.0"),
    ("real", math.inf, "inf is above 1.0"),
    ("real", -0.1, "-0.1 is below 0.0"),
    ("real", 1 << 2000, "too large"),
    ("plain", 1 << 2000, "too large"),
    ("flag", 1, "expected bool, got int"),
    ("flag", None, "expected bool, got NoneType"),
    ("text", b"a", "expected str, got bytes"),
    ("text", None, "expected str, got NoneType"),
    ("text", "", "length 0 is below 1"),
    ("text", "abcd", "length 4 is above 3"),
    ("text", "\ud800", "not encodable as UTF-8"),
    ("blob", "a", "expected bytes, got str"),
    ("blob", bytearray(b"a"), "expected bytes, got bytearray"),
    ("blob", bytes(5), "length 5 is above 4"),
    ("choice", "c", "'c' is not one of 'a', 'b'"),
    ("choice", 1, "1 is not one of 'a', 'b'"),
    ("choice", [], "not one of"),
    ("maybe", 10, "10 is above 9"),
    ("many", 5, "expected tuple, got int"),
    ("many", "12", "expected tuple, got str"),
    ("many", [1], "expected tuple, got list"),
    ("many", (1, "2"), "expected int, got str"),
    ("many", (1, -1), "-1 is below 0"),
    ("nested", "hi", "expected ChatMessage, got str"),
    ("nested", s.Ping(1), "expected ChatMessage, got Ping"),
    ("nested", m.ChatMessage("nobody", "hi"), "ChatMessage.role: 'nobody' is not one of"),  # type: ignore[arg-type]
    ("nested", m.ChatMessage("user", 5), "ChatMessage.content: expected str, got int"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("name", "value", "says"), BAD_VALUES, ids=short)
def test_my_bad_value_is_my_mistake(name: str, value: Any, says: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode(dataclasses.replace(GOOD, **{name: value}))
    assert str(caught.value).startswith(f"Sample.{name}: ")
    assert says in str(caught.value)


TAGS = {spec.name: spec.tag for spec in Sample.FIELDS}

BAD_BYTES: list[tuple[str, bytes, str]] = [
    ("whole", b"", "expected 8 bytes, got 0"),
    ("whole", bytes(7), "expected 8 bytes, got 7"),
    ("whole", bytes(9), "expected 8 bytes, got 9"),
    ("whole", i64(6), "6 is above 5"),
    ("whole", i64(-6), "-6 is below -5"),
    ("real", bytes(4), "expected 8 bytes, got 4"),
    ("real", f64(math.nan), "nan is below 0.0"),
    ("real", f64(-math.inf), "-inf is below 0.0"),
    ("real", f64(1.5), "1.5 is above 1.0"),
    ("flag", b"", "expected 1 bytes, got 0"),
    ("flag", b"\x01\x01", "expected 1 bytes, got 2"),
    ("flag", b"\x02", "a flag is 0 or 1, not 2"),
    ("text", b"\xff", "not UTF-8: invalid start byte at byte 0"),
    ("text", b"a\xc3", "not UTF-8: unexpected end of data at byte 1"),
    ("text", b"\xed\xa0\x80", "not UTF-8"),
    ("text", b"", "length 0 is below 1"),
    ("text", b"abcd", "length 4 is above 3"),
    ("blob", bytes(5), "length 5 is above 4"),
    ("choice", b"c", "'c' is not one of 'a', 'b'"),
    ("choice", b"", "'' is not one of 'a', 'b'"),
    ("choice", b"\xff", "not UTF-8"),
    ("many", bytes(3), "expected 8 bytes, got 3"),
    ("many", i64(-1), "-1 is below 0"),
    ("nested", b"\x01", "ChatMessage: 1 stray bytes at the end"),
    ("nested", fields((1, b"user")), "ChatMessage.content: missing"),
    ("nested", fields((1, b"king"), (2, b"")), "ChatMessage.role: 'king' is not one of"),
    ("nested", fields((1, b"user"), (2, b""), (2, b"")), "ChatMessage.content: given twice"),
    ("nested", struct.pack("<HI", 1, 99) + b"user", "ChatMessage: field 1 claims 99 bytes, 4 are left"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD_BYTES, ids=short)
def test_bad_bytes_are_the_peers_mistake(name: str, value: bytes, says: str) -> None:
    items = [(number, value if number == TAGS[name] else content) for number, content in parts(GOOD)]
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frame(65_000, fields(*items)))
    assert str(caught.value).startswith(f"Sample.{name}: ")
    assert says in str(caught.value)


def test_a_long_wrong_word_is_not_repeated_in_full() -> None:
    body = fields((1, b"x" * 500_000), (2, b""))
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frame(m.Goodbye.TYPE, body))
    assert len(str(caught.value)) < 300


# --- each field of each message, by its declaration -----------------------------------------------

EVERY_FIELD = [(kind, spec.name, spec.tag) for kind in (*MESSAGES, m.ChatMessage) for spec in kind.FIELDS]
every_field = pytest.mark.parametrize(
    ("kind", "name", "number"), EVERY_FIELD, ids=[f"{kind.__name__}.{name}" for kind, name, _ in EVERY_FIELD]
)


def least(cls: type[Struct]) -> Any:
    """A small legal value."""
    values: dict[str, Any] = {}
    for spec in cls.FIELDS:
        hint, repeated, optional = element_of(hint_of(cls, spec.name))
        minimum, maximum = bounds_of(cls, spec.name)
        if repeated or optional:
            values[spec.name] = () if repeated else None
        elif hint in (int, float):
            values[spec.name] = hint(minimum if minimum is not None else min(0, maximum or 0))
        elif typing.get_origin(hint) is Literal:
            values[spec.name] = typing.get_args(hint)[0]
        else:
            values[spec.name] = hint()
    return cls(**values)


def parts(value: Struct) -> list[tuple[int, bytes]]:
    """The fields of an encoded value, to be changed one by one. A nested struct is taken out of a message."""
    if isinstance(value, Message):
        return split(encode(value)[HEADER.size :])
    assert isinstance(value, m.ChatMessage)
    (nested,) = (content for number, content in parts(m.Generate(1, (value,))) if number == 2)
    return split(nested)


def split(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        number, length = struct.unpack_from("<HI", body)
        found.append((number, body[6 : 6 + length]))
        body = body[6 + length :]
    return found


def decode_parts(cls: type[Struct], items: list[tuple[int, bytes]]) -> Any:
    if issubclass(cls, Message):
        return decode(frame(cls.TYPE, fields(*items)))
    generate = decode(frame(m.Generate.TYPE, fields((1, i64(1)), (2, fields(*items)))))
    assert isinstance(generate, m.Generate)
    return generate.messages[0]


@every_field
def test_missing_field(kind: type[Struct], name: str, number: int) -> None:
    """Its default, the empty tuple, or an error that names it."""
    rest = [item for item in parts(least(kind)) if item[0] != number]
    (spec,) = (spec for spec in dataclasses.fields(kind) if spec.name == name)  # type: ignore[arg-type]
    _, repeated, optional = element_of(hint_of(kind, name))
    if spec.default is not dataclasses.MISSING:
        assert getattr(decode_parts(kind, rest), name) == spec.default
    elif repeated or optional:
        assert getattr(decode_parts(kind, rest), name) == (() if repeated else None)
    else:
        with pytest.raises(RemoteProtocolError, match=rf"{kind.__name__}\.{name}: missing"):
            decode_parts(kind, rest)


@every_field
def test_field_given_twice(kind: type[Struct], name: str, number: int) -> None:
    items = parts(least(kind))
    twice = items + [item for item in items if item[0] == number]
    if element_of(hint_of(kind, name))[1]:
        assert len(twice) == len(items)
        return
    with pytest.raises(RemoteProtocolError, match=rf"{kind.__name__}\.{name}: given twice"):
        decode_parts(kind, twice)


@every_field
def test_field_outside_its_bounds(kind: type[Struct], name: str, number: int) -> None:
    """Just outside is refused on both sides with the field's name; just inside passes on both."""
    hint, repeated, _ = element_of(hint_of(kind, name))
    lowest, highest = bounds_of(kind, name)
    for bound, step in ((lowest, -1), (highest, 1)):
        if bound is None:
            continue
        inside: Any = bound
        outside: Any = bound + step
        if hint is float:
            outside = math.nextafter(bound, step * math.inf)
        if hint in (str, bytes):
            letter = "x" if hint is str else b"x"
            inside, outside = letter * int(bound), letter * int(bound + step)
        pack = {int: i64, float: f64, str: str.encode, bytes: bytes}[hint]
        rest = [item for item in parts(least(kind)) if item[0] != number]
        decode_parts(kind, [*rest, (number, pack(inside))])
        with pytest.raises(RemoteProtocolError, match=rf"{kind.__name__}\.{name}: .*(above|below)"):
            decode_parts(kind, [*rest, (number, pack(outside))])
        wrong = dataclasses.replace(least(kind), **{name: (outside,) if repeated else outside})
        with pytest.raises(LocalProtocolError, match=rf"{kind.__name__}\.{name}: .*(above|below)"):
            encode(wrong if isinstance(wrong, Message) else m.Generate(1, (wrong,)))


# --- frames ---------------------------------------------------------------------------------------

PING = bytes.fromhex("5246 01 00 dc00 0e000000")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"GET / HTTP", "it begins with b'GE', not b'RF'"),
        (b"\0\0" + PING[2:], r"it begins with b'\x00\x00', not b'RF'"),
        (b"RF\x02" + PING[3:], "frame version 2; this side speaks 1"),
        (b"RF\x00" + PING[3:], "frame version 0; this side speaks 1"),
        (b"RF\x01\x80" + PING[4:], "unknown frame flags 0x80"),
        (b"RF\x01\x00" + struct.pack("<HI", 0, 0), "unknown frame type 0"),
        (b"RF\x01\x00" + struct.pack("<HI", 65_535, 0), "unknown frame type 65535"),
        (b"RF\x01\x00" + struct.pack("<HI", 220, MAX_FRAME_BYTES + 1), "a frame of 1048577 bytes; at most 1048576"),
        (b"RF\x01\x00" + struct.pack("<HI", 220, 0xFFFFFFFF), "a frame of 4294967295 bytes"),
    ],
)
def test_bad_header(header: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_header(header)
    assert says in str(caught.value)


def test_the_largest_frame_is_legal_on_both_sides_and_one_byte_more_on_neither() -> None:
    room = MAX_FRAME_BYTES - 6
    largest = encode(s.Progress("x" * room))
    assert len(largest) == HEADER.size + MAX_FRAME_BYTES
    assert decode(largest) == s.Progress("x" * room)
    with pytest.raises(LocalProtocolError, match="Progress needs 1048577 bytes; a frame holds at most 1048576"):
        encode(s.Progress("x" * (room + 1)))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\x01", "Ping: 1 stray bytes at the end"),
        (fields((1, i64(1))) + bytes(5), "Ping: 5 stray bytes at the end"),
        (struct.pack("<HI", 1, 8), "Ping: field 1 claims 8 bytes, 0 are left"),
        (struct.pack("<HI", 1, 0xFFFFFFFF) + i64(1), "Ping: field 1 claims 4294967295 bytes, 8 are left"),
        (struct.pack("<HI", 999, 9) + i64(1), "Ping: field 999 claims 9 bytes, 8 are left"),
        (b"", "Ping.sent_ns: missing"),
    ],
)
def test_bad_body(body: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frame(220, body))
    assert str(caught.value) == says


# --- fuzz -----------------------------------------------------------------------------------------


def only_errors_of_the_peer(data: bytes) -> None:
    """Anything may come in. What comes out is a legal message, which can be said again, or one kind of error."""
    try:
        cls, length = decode_header(data)
        message = decode_body(cls, memoryview(data)[HEADER.size : HEADER.size + length])
    except RemoteProtocolError:
        return
    assert type(message) is cls
    again = decode(encode(message))
    assert repr(again) == repr(message)


@given(st.binary(min_size=HEADER.size, max_size=200))
@settings(max_examples=200)
def test_random_bytes(data: bytes) -> None:
    only_errors_of_the_peer(data)


@given(st.sampled_from([kind.TYPE for kind in MESSAGES]), st.binary(max_size=120))
@settings(max_examples=300)
def test_random_bodies(number: int, body: bytes) -> None:
    only_errors_of_the_peer(frame(number, body))


@given(
    any_message(),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=500)
def test_mutated_frames(message: Message, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(encode(message))
    for at, value in changes:
        data[at % len(data)] = value
    only_errors_of_the_peer(bytes(data))
    body = bytes(data[HEADER.size : len(data) - cut])
    only_errors_of_the_peer(frame(message.TYPE, body))


def test_a_claimed_length_is_never_allocated() -> None:
    body = struct.pack("<HI", 1, 0xFFFF_FF00) + b"x"
    data = frame(m.Hello.TYPE, body)
    huge = b"RF\x01\x00" + struct.pack("<HI", m.Hello.TYPE, 0xFFFF_FF00)
    tracemalloc.start()
    try:
        for attempt in (data, huge):
            with pytest.raises(RemoteProtocolError):
                decode(attempt)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# --- declarations that make no sense --------------------------------------------------------------


def test_a_type_number_is_given_once() -> None:
    with pytest.raises(TypeError, match="frame type 1 is taken by Hello"):

        @message(1)
        @dataclass(frozen=True, slots=True)
        class Second(Message):
            """Never declared."""


def test_a_tag_is_given_once() -> None:
    with pytest.raises(TypeError, match="Twice: two fields share one tag"):

        @declare
        @dataclass(frozen=True, slots=True)
        class Twice(Struct):
            a: int = tag(1)
            b: int = tag(1)


def test_every_field_has_a_tag() -> None:
    with pytest.raises(TypeError, match=r"Bare\.a has no tag"):

        @declare
        @dataclass(frozen=True, slots=True)
        class Bare(Struct):
            a: int


def test_a_type_that_cannot_travel() -> None:
    with pytest.raises(TypeError, match=r"Odd\.a: .*complex.* cannot travel"):

        @declare
        @dataclass(frozen=True, slots=True)
        class Odd(Struct):
            a: complex = tag(1)
