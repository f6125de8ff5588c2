"""Frames of type-length-value fields, and the declaration that turns a dataclass into one.

One frame::

    0      2         3       4        6          10
    +------+---------+-------+--------+----------+----------------------+
    | "RF" | version | flags |  type  |  length  | fields ...           |
    | 2 B  |   u8    |  u8   |  u16   |   u32    | `length` bytes       |
    +------+---------+-------+--------+----------+----------------------+

    one field:   | tag u16 | length u32 | value (`length` bytes) |

All integers are little-endian. ``flags`` is 0. A value is ``int`` (i64), ``float`` (f64), ``bool``
(u8, 0 or 1), ``str`` (UTF-8), ``bytes``, or a nested struct (its own fields); ``tuple[X, ...]``
repeats the field, once an element. A field whose tag is not known is skipped, so a newer peer may
say more; a frame whose type is not known is refused, so nobody acts on half an understanding. Sizes
are checked before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import struct
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, TypeVar

from inference.wire.errors import LocalProtocolError, RemoteProtocolError

MAGIC = b"RF"
VERSION = 1
MAX_FRAME_BYTES = 1 << 20
"""Largest body of one frame. A conversation's history is some tens of kilobytes; audio never travels here."""

HEADER = struct.Struct("<2sBBHI")
_FIELD = struct.Struct("<HI")
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")
_I64_MIN, _I64_MAX = -(1 << 63), (1 << 63) - 1


class MalformedError(Exception):
    """A value that breaks its declaration; the connection maps it to whoever made the mistake."""


class Struct:
    """A frozen dataclass whose fields carry tags. Base of nested structs and of messages."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[_Field, ...]] = ()
    BY_TAG: ClassVar[Mapping[int, _Field]] = {}


class Message(Struct):
    """A struct that travels alone, in a frame of its own type number."""

    __slots__ = ()
    TYPE: ClassVar[int] = -1
    DESCRIPTORS: ClassVar[int] = 0
    """How many file descriptors travel with the frame (SCM_RIGHTS)."""
    LAYOUT: ClassVar[_Layout | None] = None


S = TypeVar("S", bound=Struct)
M = TypeVar("M", bound=Message)

_MESSAGES: dict[int, type[Message]] = {}
_LAYOUTS: dict[bytes, _Layout] = {}
"""By the header of their frames, which is always the same. Without those that come with descriptors."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One declared field and how its values become bytes and come back."""

    tag: int
    name: str
    kind: str
    scalar: type | None
    minimum: float | None
    maximum: float | None
    repeated: bool
    optional: bool
    has_default: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[memoryview], Any]


def tag(
    number: int,
    *,
    default: Any = dataclasses.MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a field's tag (1 to 65535, never reused), default and bounds (inclusive; of length for text)."""
    metadata = {"tag": number, "minimum": minimum, "maximum": maximum}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declare(cls: type[S]) -> type[S]:
    """Read a struct's annotations once and build its codec. Used below ``@dataclass``'s result."""
    hints = typing.get_type_hints(cls)
    fields = []
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        if "tag" not in spec.metadata:
            raise TypeError(f"{cls.__name__}.{spec.name} has no tag")
        fields.append(_field(cls.__name__, spec, hints[spec.name]))
    if len({field.tag for field in fields}) != len(fields):
        raise TypeError(f"{cls.__name__}: two fields share one tag")
    cls.FIELDS = tuple(fields)
    cls.BY_TAG = {field.tag: field for field in fields}
    return cls


def message(number: int, *, descriptors: int = 0) -> Callable[[type[M]], type[M]]:
    """Declare a message: its frame type (u16) and how many file descriptors travel with it."""

    def register(cls: type[M]) -> type[M]:
        if number in _MESSAGES:
            raise TypeError(f"frame type {number} is taken by {_MESSAGES[number].__name__}")
        cls.TYPE = number
        cls.DESCRIPTORS = descriptors
        _MESSAGES[number] = declare(cls)
        cls.LAYOUT = _Layout.of(cls)
        if cls.LAYOUT is not None and not descriptors:
            _LAYOUTS[cls.LAYOUT.header] = cls.LAYOUT
        return cls

    return register


# --- encode and decode --------------------------------------------------------------------------


def encode(value: Message) -> bytes:
    """The whole frame of ``value``. Raises ``LocalProtocolError`` naming the field that does not fit."""
    if value.LAYOUT is not None and (frame := value.LAYOUT.encode(value)) is not None:
        return frame
    try:
        body = _encode_fields(value)
    except MalformedError as exc:
        raise LocalProtocolError(str(exc)) from exc
    if len(body) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"{type(value).__name__} needs {len(body)} bytes; a frame holds at most {MAX_FRAME_BYTES}"
        )
    return HEADER.pack(MAGIC, VERSION, 0, value.TYPE, len(body)) + body


def decode_header(header: bytes | bytearray | memoryview) -> tuple[type[Message], int]:
    """Message class and body length of a frame. Raises ``RemoteProtocolError``."""
    magic, version, flags, number, length = HEADER.unpack_from(header)
    if magic != MAGIC:
        raise RemoteProtocolError(f"not a frame: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise RemoteProtocolError(f"frame version {version}; this side speaks {VERSION}")
    if flags:
        raise RemoteProtocolError(f"unknown frame flags {flags:#x}")
    if number not in _MESSAGES:
        raise RemoteProtocolError(f"unknown frame type {number}")
    if length > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _MESSAGES[number], length


def decode_numbers(frames: bytearray) -> tuple[Message, int] | None:
    """The first message and the length of its frame, where it is whole and nothing but numbers in their usual places.

    None says nothing about what it is.
    """
    layout = _LAYOUTS.get(bytes(frames[: HEADER.size]))
    if layout is None or len(frames) < layout.size:
        return None
    message = layout.decode(frames[HEADER.size : layout.size])
    return None if message is None else (message, layout.size)


def decode_body(cls: type[M], body: bytes | bytearray | memoryview) -> M:
    """The message in ``body``. Raises ``RemoteProtocolError`` naming the field."""
    if cls.LAYOUT is not None and (message := cls.LAYOUT.decode(body)) is not None:
        return typing.cast(M, message)
    try:
        return _decode_fields(cls, memoryview(body))
    except MalformedError as exc:
        raise RemoteProtocolError(str(exc)) from exc


def _encode_fields(value: Struct) -> bytes:
    parts: list[bytes] = []
    for field in value.FIELDS:
        content = getattr(value, field.name)
        if content is None and field.optional:
            continue
        try:
            if field.repeated:
                _expect(content, tuple)
            encoded_items = [field.encode(item) for item in (content if field.repeated else (content,))]
        except MalformedError as exc:
            raise MalformedError(f"{type(value).__name__}.{field.name}: {exc}") from exc
        for encoded in encoded_items:
            parts.append(_FIELD.pack(field.tag, len(encoded)))
            parts.append(encoded)
    return b"".join(parts)


def _decode_fields(cls: type[S], body: memoryview) -> S:
    values: dict[str, Any] = {}
    for number, content in _split(cls.__name__, body):
        field = cls.BY_TAG.get(number)
        if field is None:
            continue
        try:
            decoded = field.decode(content)
        except MalformedError as exc:
            raise MalformedError(f"{cls.__name__}.{field.name}: {exc}") from exc
        if field.repeated:
            values.setdefault(field.name, []).append(decoded)
        elif field.name in values:
            raise MalformedError(f"{cls.__name__}.{field.name}: given twice")
        else:
            values[field.name] = decoded
    for field in cls.FIELDS:
        if field.repeated:
            values[field.name] = tuple(values.get(field.name, ()))
        elif field.name not in values and not field.has_default:
            if not field.optional:
                raise MalformedError(f"{cls.__name__}.{field.name}: missing")
            values[field.name] = None
    return cls(**values)


def _split(name: str, body: memoryview) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    while offset < len(body):
        if offset + _FIELD.size > len(body):
            raise MalformedError(f"{name}: {len(body) - offset} stray bytes at the end")
        number, length = _FIELD.unpack_from(body, offset)
        offset += _FIELD.size
        if offset + length > len(body):
            raise MalformedError(f"{name}: field {number} claims {length} bytes, {len(body) - offset} are left")
        yield number, body[offset : offset + length]
        offset += length


class _Layout:
    """The codec of a message that is nothing but numbers: its fields always lie at the same places.

    Such messages are the frequent ones. A process that was idle finds nothing in its caches, so what counts is
    how much code runs: here one function each way, written for the message. What it does not know (a value that does
    not fit, fields in another order, fields of a newer peer) it leaves to the codec for every message, which
    finds out whether that is legal: both write the same bytes and accept the same ones.

    ``encode``: the whole frame of a message. ``decode``: the message in a body. Both return None instead.
    """

    def __init__(self, cls: type[Message]) -> None:
        names = [field.name for field in cls.FIELDS]
        heads = [_FIELD.pack(field.tag, 8) for field in cls.FIELDS]
        kinds = ["q" if field.scalar is int else "d" for field in cls.FIELDS]
        body = struct.Struct("<" + "".join(f"6s{kind}" for kind in kinds))
        self.header = HEADER.pack(MAGIC, VERSION, 0, cls.TYPE, body.size)
        self.size = HEADER.size + body.size
        self.encode: Callable[[Any], bytes | None]
        self.decode: Callable[[bytes | bytearray | memoryview], Any]
        frame = struct.Struct("<" + "".join(f"{len(head)}s{kind}" for head, kind in self._runs(heads, kinds)))
        limits = [_limits(field) for field in cls.FIELDS]
        fits = " and ".join(f"{low!r} <= {name} <= {high!r}" for name, (low, high) in zip(names, limits, strict=True))
        types = " and ".join(
            f"type({field.name}) is {'int' if field.scalar is int else 'float'}" for field in cls.FIELDS
        )
        alike = " and ".join(f"head_{name} == {head!r}" for name, head in zip(names, heads, strict=True))
        packed = ", ".join(f"{head!r}, {name}" for name, (head, _) in zip(names, self._runs(heads, kinds), strict=True))
        source = f"""
def encode(value):
    {"; ".join(f"{name} = value.{name}" for name in names)}
    return pack({packed}) if {types} and {fits} else None

def decode(body):
    if len(body) != {body.size}:
        return None
    {", ".join(f"head_{name}, {name}" for name in names)} = unpack(body)
    return cls({", ".join(names)}) if {alike} and {fits} else None
"""
        made: dict[str, Any] = {"pack": frame.pack, "unpack": body.unpack, "cls": cls, "inf": math.inf}
        exec(compile(source, f"<codec of {cls.__name__}>", "exec"), made)
        self.encode, self.decode = made["encode"], made["decode"]

    def _runs(self, heads: Sequence[bytes], kinds: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """What stands before each value, and the value's format."""
        for index, (head, kind) in enumerate(zip(heads, kinds, strict=True)):
            yield head if index else self.header + head, kind

    @classmethod
    def of(cls, message: type[Message]) -> _Layout | None:
        """None for a message with anything but numbers."""
        numbers = all(
            field.scalar in (int, float) and not field.repeated and not field.optional for field in message.FIELDS
        )
        return cls(message) if numbers and message.FIELDS else None


def _limits(field: _Field) -> tuple[float, float]:
    lowest, highest = (_I64_MIN, _I64_MAX) if field.scalar is int else (-math.inf, math.inf)
    return (
        lowest if field.minimum is None else max(lowest, field.minimum),
        highest if field.maximum is None else min(highest, field.maximum),
    )


# --- building a field's codec -------------------------------------------------------------------


def _field(owner: str, spec: dataclasses.Field[Any], hint: Any) -> _Field:
    repeated = optional = False
    if typing.get_origin(hint) is tuple:
        hint, repeated = typing.get_args(hint)[0], True
    arguments = typing.get_args(hint)
    if NoneType in arguments:
        optional = True
        (hint,) = (item for item in arguments if item is not NoneType)
    if typing.get_origin(hint) is typing.Literal:
        pair = _literal_codec(typing.get_args(hint))
    elif hint in _SCALARS:
        pair = _SCALARS[hint]
    elif isinstance(hint, type) and issubclass(hint, Struct) and not issubclass(hint, Message):
        pair = (functools.partial(_encode_struct, hint), functools.partial(_decode_fields, hint))
    else:
        raise TypeError(f"{owner}.{spec.name}: {hint!r} cannot travel")
    check = _bounds(spec.metadata["minimum"], spec.metadata["maximum"])
    encode_one, decode_one = pair

    def encode_checked(value: Any) -> bytes:
        # The codec looks at the type first: bounds of a wrong type cannot be compared.
        encoded = encode_one(value)
        check(value)
        return encoded

    return _Field(
        tag=spec.metadata["tag"],
        name=spec.name,
        kind=getattr(hint, "__name__", str(hint)),
        scalar=hint if hint in _SCALARS else None,
        minimum=spec.metadata["minimum"],
        maximum=spec.metadata["maximum"],
        repeated=repeated,
        optional=optional,
        has_default=spec.default is not dataclasses.MISSING,
        encode=encode_checked,
        decode=lambda content: check(decode_one(content)),
    )


def _bounds(minimum: float | None, maximum: float | None) -> Callable[[Any], Any]:
    if minimum is None and maximum is None:
        return lambda value: value

    def check(value: Any) -> Any:
        size = len(value) if isinstance(value, str | bytes) else value
        what = "length " if isinstance(value, str | bytes) else ""
        # Written so that NaN, which compares false with everything, is refused.
        if minimum is not None and not size >= minimum:
            raise MalformedError(f"{what}{size} is below {minimum}")
        if maximum is not None and not size <= maximum:
            raise MalformedError(f"{what}{size} is above {maximum}")
        return value

    return check


def _expect(value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise MalformedError(f"expected {kind.__name__}, got {type(value).__name__}")


def _encode_int(value: Any) -> bytes:
    _expect(value, int)
    if not _I64_MIN <= value <= _I64_MAX:
        raise MalformedError(f"an integer of {value.bit_length()} bits does not fit 64 bits")
    return _I64.pack(value)


def _encode_float(value: Any) -> bytes:
    if type(value) is not int:
        _expect(value, float)
    try:
        return _F64.pack(value)
    except struct.error as exc:
        raise MalformedError("an integer too large for 64-bit floating point") from exc


def _encode_bool(value: Any) -> bytes:
    _expect(value, bool)
    return b"\x01" if value else b"\x00"


def _encode_str(value: Any) -> bytes:
    _expect(value, str)
    try:
        return typing.cast(str, value).encode()
    except UnicodeEncodeError as exc:
        raise MalformedError(f"not encodable as UTF-8: {exc.reason}") from exc


def _encode_bytes(value: Any) -> bytes:
    _expect(value, bytes)
    return typing.cast(bytes, value)


def _encode_struct(cls: type[Struct], value: Any) -> bytes:
    _expect(value, cls)
    return _encode_fields(value)


def _sized(content: memoryview, size: int) -> memoryview:
    if len(content) != size:
        raise MalformedError(f"expected {size} bytes, got {len(content)}")
    return content


def _decode_bool(content: memoryview) -> bool:
    value = _sized(content, 1)[0]
    if value > 1:
        raise MalformedError(f"a flag is 0 or 1, not {value}")
    return bool(value)


def _decode_str(content: memoryview) -> str:
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedError(f"not UTF-8: {exc.reason} at byte {exc.start}") from exc


_Codec = tuple[Callable[[Any], bytes], Callable[[memoryview], Any]]

_SCALARS: dict[Any, _Codec] = {
    int: (_encode_int, lambda content: _I64.unpack(_sized(content, 8))[0]),
    float: (_encode_float, lambda content: _F64.unpack(_sized(content, 8))[0]),
    bool: (_encode_bool, _decode_bool),
    str: (_encode_str, _decode_str),
    bytes: (_encode_bytes, bytes),
}


def _literal_codec(choices: tuple[Any, ...]) -> _Codec:
    allowed = ", ".join(map(repr, choices))

    def check(value: Any) -> str:
        if value not in choices:
            raise MalformedError(f"{reprlib.repr(value)} is not one of {allowed}")
        return typing.cast(str, value)

    return lambda value: _encode_str(check(value)), lambda content: check(_decode_str(content))
