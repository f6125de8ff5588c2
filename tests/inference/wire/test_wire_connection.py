"""What may be said when: the tables written out a second time, and every other pair refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import BY_NAME, MESSAGES, any_message, structs

from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.connection import (
    FORKSERVER,
    ROOM,
    SUPERVISION,
    Connection,
    Protocol,
    Received,
    Role,
    Signal,
    State,
)
from inference.wire.errors import LocalProtocolError, RemoteProtocolError
from inference.wire.tlv import HEADER, Message, encode

# --- the contract ---------------------------------------------------------------------------------

REPLIES = "Transcript TextDelta GenerateDone EndOfTurn SpeakStarted SpeakDone Stats RequestFailed"
EVENTS = "SpeechStarted SpeechPaused SpeechResumed SpeechEnded AudioLost"

LEGAL = {
    ROOM.name: f"""
        client new      Hello           greeted
        server new      Goodbye         closed
        server greeted  Welcome         idle
        server greeted  Goodbye         closed
        client idle     OpenRoom        opening
        client idle     GetStats        idle
        server idle     Stats RequestFailed idle
        server idle     Goodbye         closed
        client opening  GetStats        opening
        server opening  RoomOpened      open
        server opening  RoomRefused     idle
        server opening  Stats RequestFailed opening
        server opening  Goodbye         closed
        client open     Listen Transcribe Generate Speak Cancel Promote GetStats open
        server open     {EVENTS} {REPLIES} open
        server open     Goodbye         closed
    """,
    SUPERVISION.name: """
        client new      InitializeInference InitializeJob opening
        client new      Ping Shutdown   new
        server new      Pong LogLine Exiting new
        client opening  Ping Shutdown   opening
        server opening  Ready           idle
        server opening  InitializeFailed closed
        server opening  Progress Calibrated Pong LogLine Exiting opening
        client idle     StartJob        open
        client idle     Ping Shutdown   idle
        server idle     InferenceReport Pong LogLine Exiting idle
        client open     JobUpdateAck Ping Shutdown open
        server open     InferenceReport JobUpdate TurnReport Ending Pong LogLine Exiting open
    """,
    FORKSERVER.name: """
        client new      Spawn           new
        server new      Spawned SpawnFailed Reaped new
    """,
}

PROTOCOLS = {protocol.name: protocol for protocol in (ROOM, SUPERVISION, FORKSERVER)}

OPEN_REQUESTS = {"Transcript": 1, "TextDelta": 2, "GenerateDone": 2, "SpeakStarted": 3, "SpeakDone": 3, "Stats": 4}
"""Which of the requests that ``primed`` opens a reply answers; RequestFailed answers any."""

EXAMPLES: dict[str, Message] = {
    "Hello": m.Hello("t", "n"),
    "Welcome": m.Welcome(1, "cpu", 22_050, 2048, 4, "a", "b", "c"),
    "Goodbye": m.Goodbye("draining", "bye"),
    "OpenRoom": m.OpenRoom("r"),
    "RoomOpened": m.RoomOpened(0),
    "RoomRefused": m.RoomRefused("full"),
    "Listen": m.Listen(True),
    "SpeechStarted": m.SpeechStarted(1),
    "SpeechPaused": m.SpeechPaused(1, 2),
    "SpeechResumed": m.SpeechResumed(3),
    "SpeechEnded": m.SpeechEnded(1, 4),
    "AudioLost": m.AudioLost(5, 6),
    "Transcribe": m.Transcribe(5, 0, 1),
    "Transcript": m.Transcript(1, "x", "en", -0.1, 0.0, 1.0),
    "Generate": m.Generate(5, ()),
    "TextDelta": m.TextDelta(2, "x"),
    "GenerateDone": m.GenerateDone(2, "stop", 1, 0, 1),
    "EndOfTurn": m.EndOfTurn(2, 0.5),
    "Speak": m.Speak(5, "x"),
    "SpeakStarted": m.SpeakStarted(3, 0),
    "SpeakDone": m.SpeakDone(3, 0, 1),
    "Cancel": m.Cancel(1),
    "Promote": m.Promote(1),
    "RequestFailed": m.RequestFailed(1, "engine", "x"),
    "GetStats": m.GetStats(5),
    "Stats": m.Stats(4, 1, 4, 0, 0, 0, 0.0),
    "Spawn": s.Spawn("job"),
    "Spawned": s.Spawned(7),
    "SpawnFailed": s.SpawnFailed("x"),
    "Reaped": s.Reaped(7, 0),
    "InitializeInference": s.InitializeInference("/s", "t", "cpu", 1, 4, 2048, "", "", "", "", "", ""),
    "InitializeJob": s.InitializeJob("", "/s", "t"),
    "Progress": s.Progress("x"),
    "Calibrated": s.Calibrated('{"stages": {}}'),
    "Ready": s.Ready(),
    "InitializeFailed": s.InitializeFailed("x"),
    "InferenceReport": s.InferenceReport("cpu", 1, 4, 0.5, 0.0, (s.StageReport("stt", 0, 1, 0, 1, 0.1),)),
    "Ping": s.Ping(1),
    "Pong": s.Pong(1),
    "LogLine": s.LogLine(20, "x", "y", 0.0),
    "StartJob": s.StartJob("j", "r", "local"),
    "JobUpdate": s.JobUpdate("j", "running"),
    "JobUpdateAck": s.JobUpdateAck("j"),
    "TurnReport": s.TurnReport("j", 1, "a", "b", False, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "Shutdown": s.Shutdown("x"),
    "Exiting": s.Exiting("x"),
    "Ending": s.Ending("x"),
}


def rows(name: str) -> Iterator[tuple[Role, State, str, State]]:
    for line in LEGAL[name].strip().splitlines():
        role, state, *kinds, follows = line.split()
        for kind in kinds:
            yield Role(role), State(state), kind, State(follows)


LEGAL_ROWS = [(name, *row) for name in LEGAL for row in rows(name)]
ILLEGAL_ROWS = [
    (name, role, state, kind)
    for name in LEGAL
    for role in Role
    for state in State
    for kind in EXAMPLES
    if (role, state, kind) not in {row[:3] for row in rows(name)}
]


def primed(name: str, role: Role, state: State) -> Connection:
    """One end in ``state``, with requests 1 to 4 (one of each kind) open if the protocol has requests."""
    connection = Connection(role, PROTOCOLS[name])
    if PROTOCOLS[name] is ROOM:
        connection.state = State.OPEN
        for ask in (m.Transcribe(1, 0, 1), m.Generate(2, ()), m.Speak(3, "x"), m.GetStats(4)):
            if role is Role.CLIENT:
                connection.send(ask)
            else:
                connection.receive_data(encode(ask))
                assert connection.next_event() == Received(ask)
        assert connection.open_requests() == (1, 2, 3, 4)
    connection.state = state
    return connection


def snapshot(connection: Connection) -> tuple[Any, ...]:
    return connection.state, connection.open_requests()


def descriptors_for(message: Message) -> tuple[int, ...]:
    """Numbers only: a sans-IO connection never uses them."""
    return tuple(range(1000, 1000 + message.DESCRIPTORS))


# --- legal and illegal ----------------------------------------------------------------------------


def test_there_is_an_example_of_every_message() -> None:
    assert EXAMPLES.keys() == BY_NAME.keys()


@pytest.mark.parametrize(("name", "role", "state", "kind", "follows"), LEGAL_ROWS)
def test_legal(name: str, role: Role, state: State, kind: str, follows: State) -> None:
    message = EXAMPLES[kind]
    sender, receiver = primed(name, role, state), primed(name, role.peer, state)
    data = sender.send(message)
    assert data == encode(message)
    receiver.receive_data(data, descriptors_for(message))
    assert receiver.next_event() == Received(message, descriptors_for(message))
    assert sender.state is receiver.state is follows
    assert sender.open_requests() == receiver.open_requests()
    assert receiver.next_event() is Signal.NEED_DATA


@pytest.mark.parametrize("name", LEGAL)
def test_everything_else_is_refused_on_both_sides_and_changes_nothing(name: str) -> None:
    refused = 0
    for protocol_name, role, state, kind in ILLEGAL_ROWS:
        if protocol_name != name:
            continue
        message = EXAMPLES[kind]
        sender, receiver = primed(name, role, state), primed(name, role.peer, state)
        before = snapshot(sender)
        with pytest.raises(LocalProtocolError) as mine:
            sender.send(message)
        receiver.receive_data(encode(message), descriptors_for(message))
        with pytest.raises(RemoteProtocolError) as theirs:
            receiver.next_event()
        # The same rule broken, told in the same words, to whoever must know.
        assert str(mine.value) == str(theirs.value)
        assert kind in str(mine.value)
        assert role.value in str(mine.value)
        assert state.value in str(mine.value)
        assert snapshot(sender) == snapshot(receiver) == before
        assert receiver.stray_descriptors() == descriptors_for(message)
        refused += 1
    legal = sum(1 for _ in rows(name))
    assert refused + legal == len(Role) * len(State) * len(EXAMPLES)


def test_a_refused_send_leaves_the_connection_usable() -> None:
    client = Connection(Role.CLIENT, ROOM)
    for wrong in (m.Listen(True), m.Transcribe(1, 0, 1), m.OpenRoom("x")):
        with pytest.raises(LocalProtocolError):
            client.send(wrong)
    with pytest.raises(LocalProtocolError, match=r"Hello\.token"):
        client.send(m.Hello("x" * 129, "n"))
    assert client.state is State.NEW
    client.send(m.Hello("t", "n"))
    assert client.state is State.GREETED


# --- requests -------------------------------------------------------------------------------------


def opened() -> tuple[Connection, Connection]:
    """Both ends of a conversation with an open room, got there by talking."""
    client, server = Connection(Role.CLIENT, ROOM), Connection(Role.SERVER, ROOM)
    for kind in ("Hello", "Welcome", "OpenRoom", "RoomOpened"):
        sender, receiver = (client, server) if kind in ("Hello", "OpenRoom") else (server, client)
        tell(sender, receiver, EXAMPLES[kind])
    assert client.state is server.state is State.OPEN
    return client, server


def tell(sender: Connection, receiver: Connection, message: Message) -> None:
    receiver.receive_data(sender.send(message), descriptors_for(message))
    assert receiver.next_event() == Received(message, descriptors_for(message))


def refused_both_ways(sender: Connection, receiver: Connection, message: Message, says: str) -> None:
    """What the sender may not say, the receiver would not have taken."""
    before = snapshot(sender), snapshot(receiver)
    with pytest.raises(LocalProtocolError, match=says):
        sender.send(message)
    receiver.receive_data(encode(message))
    with pytest.raises(RemoteProtocolError, match=says):
        receiver.next_event()
    assert (snapshot(sender), snapshot(receiver)) == before


ASKS = {"Transcribe": m.Transcribe, "Generate": m.Generate, "Speak": m.Speak, "GetStats": m.GetStats}


def ask(kind: str, number: int) -> Message:
    rest: dict[str, tuple[Any, ...]] = {"Transcribe": (0, 1), "Generate": ((),), "Speak": ("x",), "GetStats": ()}
    return ASKS[kind](number, *rest[kind])


def reply(kind: str, number: int) -> Message:
    values = {field.name: getattr(EXAMPLES[kind], field.name) for field in EXAMPLES[kind].FIELDS}
    return type(EXAMPLES[kind])(**(values | {"request": number}))


ANSWERS = {
    "Transcribe": {"Transcript": True, "RequestFailed": True},
    "Generate": {"EndOfTurn": False, "TextDelta": False, "GenerateDone": True, "RequestFailed": True},
    "Speak": {"SpeakStarted": False, "SpeakDone": True, "RequestFailed": True},
    "GetStats": {"Stats": True, "RequestFailed": True},
}


@pytest.mark.parametrize("asked", ANSWERS)
@pytest.mark.parametrize("answer", REPLIES.split())
def test_which_reply_answers_which_request(asked: str, answer: str) -> None:
    client, server = opened()
    tell(client, server, ask(asked, 7))
    assert client.open_requests() == server.open_requests() == (7,)
    if answer not in ANSWERS[asked]:
        refused_both_ways(server, client, reply(answer, 7), f"{answer} does not answer {asked} 7")
        return
    tell(server, client, reply(answer, 7))
    if ANSWERS[asked][answer]:
        assert client.open_requests() == server.open_requests() == ()
        refused_both_ways(server, client, reply(answer, 7), f"{answer} for request 7, which is not open")
    else:
        assert client.open_requests() == server.open_requests() == (7,)
        tell(server, client, reply(answer, 7))


@pytest.mark.parametrize("answer", REPLIES.split())
def test_a_reply_to_a_number_that_was_never_asked(answer: str) -> None:
    client, server = opened()
    tell(client, server, ask("Generate", 2))
    refused_both_ways(server, client, reply(answer, 3), f"{answer} for request 3, which is not open")


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("number", [1, 4, 5])
def test_numbers_only_rise(kind: str, number: int) -> None:
    client, server = opened()
    tell(client, server, ask("Speak", 5))
    tell(server, client, reply("SpeakDone", 5))
    refused_both_ways(client, server, ask(kind, number), f"{kind} {number}: the last request was 5")
    client, server = opened()
    tell(client, server, ask("Speak", 5))
    # Numbers may be left out, up to the largest there is.
    tell(client, server, ask(kind, (1 << 63) - 1))
    assert client.open_requests() == server.open_requests() == (5, (1 << 63) - 1)


def test_cancel_ends_nothing_by_itself() -> None:
    client, server = opened()
    tell(client, server, ask("Generate", 1))
    tell(client, server, m.Cancel(1))
    assert client.open_requests() == (1,)
    # The result may have been on its way already.
    tell(server, client, reply("TextDelta", 1))
    tell(server, client, m.RequestFailed(1, "cancelled", ""))
    # And a cancel that comes too late is no mistake.
    tell(client, server, m.Cancel(1))
    tell(client, server, m.Cancel(99))


def test_requests_survive_the_opening_of_a_room() -> None:
    client, server = Connection(Role.CLIENT, ROOM), Connection(Role.SERVER, ROOM)
    tell(client, server, EXAMPLES["Hello"])
    tell(server, client, EXAMPLES["Welcome"])
    tell(client, server, m.GetStats(1))
    tell(client, server, m.OpenRoom("r"))
    tell(client, server, m.GetStats(2))
    tell(server, client, reply("Stats", 1))
    tell(server, client, m.RoomRefused("full"))
    tell(client, server, m.OpenRoom("r"))
    tell(server, client, m.RoomOpened(0))
    tell(server, client, reply("Stats", 2))
    assert client.open_requests() == server.open_requests() == ()


# --- two honest ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@given(data=st.data())
@settings(max_examples=60)
def test_honest_ends_never_accuse_each_other_whatever_crosses(protocol: Protocol, data: st.DataObject) -> None:
    """Each end sends only what its own state allows; bytes arrive late, in any interleaving of the two ways."""
    ends = {role: Connection(role, protocol) for role in Role}
    way: dict[Role, list[Message]] = {role: [] for role in Role}
    for _ in range(40):
        role = data.draw(st.sampled_from(list(Role)))
        if data.draw(st.booleans()) and way[role]:
            message = way[role].pop(0)
            ends[role].receive_data(encode(message), descriptors_for(message))
            assert ends[role].next_event() == Received(message, descriptors_for(message))
        else:
            # The last word is left out: after it nothing is read any more.
            legal = [
                kind
                for sender, state, kind, follows in rows(protocol.name)
                if (sender, state) == (role, ends[role].state) and follows is not State.CLOSED
            ]
            if not legal:
                continue
            message = EXAMPLES[data.draw(st.sampled_from(legal))]
            if hasattr(message, "request"):
                message = reply(type(message).__name__, data.draw(st.integers(1, 6)))
            try:
                ends[role].send(message)
            except LocalProtocolError:
                continue
            way[role.peer].append(message)
    for role, waiting in way.items():
        for message in waiting:
            ends[role].receive_data(encode(message), descriptors_for(message))
            assert ends[role].next_event() == Received(message, descriptors_for(message))
    assert ends[Role.CLIENT].open_requests() == ends[Role.SERVER].open_requests()
    assert ends[Role.CLIENT].state is ends[Role.SERVER].state


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_one_byte_at_a_time(kind: type[Message]) -> None:
    message = EXAMPLES[kind.__name__]
    for name, role, state, legal, _ in LEGAL_ROWS:
        if legal != kind.__name__:
            continue
        receiver = primed(name, role.peer, state)
        data = encode(message)
        for at in range(len(data)):
            assert receiver.next_event() is Signal.NEED_DATA
            receiver.receive_data(data[at : at + 1], descriptors_for(message) if at == 0 else ())
        assert receiver.next_event() == Received(message, descriptors_for(message))
        assert receiver.next_event() is Signal.NEED_DATA


@given(cuts=st.lists(st.integers(0, 400), max_size=8), events=st.lists(structs(m.SpeechPaused), max_size=8))
def test_however_the_bytes_are_cut(cuts: list[int], events: list[Message]) -> None:
    receiver = primed("room", Role.CLIENT, State.OPEN)
    stream = b"".join(encode(event) for event in events)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    got = []
    for start, end in itertools.pairwise(edges):
        if start == end:
            continue
        receiver.receive_data(stream[start:end])
        while isinstance(event := receiver.next_event(), Received):
            got.append(event.message)
        assert event is Signal.NEED_DATA
    assert got == events


def test_closed_between_frames() -> None:
    receiver = primed("room", Role.CLIENT, State.OPEN)
    receiver.receive_data(encode(m.SpeechStarted(1)))
    receiver.receive_data(b"")
    # What came before the end is still heard.
    assert receiver.next_event() == Received(m.SpeechStarted(1))
    assert receiver.next_event() is Signal.PEER_CLOSED
    assert receiver.state is State.CLOSED
    assert receiver.next_event() is Signal.PEER_CLOSED


@pytest.mark.parametrize("length", [1, HEADER.size - 1, HEADER.size, HEADER.size + 1, len(encode(m.RoomOpened(0))) - 1])
def test_closed_inside_a_frame(length: int) -> None:
    receiver = primed("room", Role.CLIENT, State.OPEN)
    receiver.receive_data(encode(m.SpeechStarted(1))[:length])
    assert receiver.next_event() is Signal.NEED_DATA
    receiver.receive_data(b"")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=rf"closed inside a frame \({length} bytes"):
            receiver.next_event()


def test_garbage_stays_garbage() -> None:
    receiver = primed("room", Role.CLIENT, State.OPEN)
    receiver.receive_data(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="not a frame"):
            receiver.next_event()


@given(st.lists(st.binary(min_size=1, max_size=60) | any_message().map(encode), max_size=6))
@settings(max_examples=200)
def test_fuzz(chunks: list[bytes]) -> None:
    receiver = primed("room", Role.SERVER, State.OPEN)
    allowed = {kind for role, state, kind, _ in rows("room") if (role, state) == (Role.CLIENT, State.OPEN)}
    for chunk in chunks:
        receiver.receive_data(chunk)
        try:
            while isinstance(event := receiver.next_event(), Received):
                assert type(event.message).__name__ in allowed
                assert receiver.state is State.OPEN
        except RemoteProtocolError:
            return


# --- descriptors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("came", [(), (1000,)])
def test_too_few_descriptors(came: tuple[int, ...]) -> None:
    receiver = primed("room", Role.SERVER, State.IDLE)
    receiver.receive_data(encode(m.OpenRoom("r")), came)
    with pytest.raises(RemoteProtocolError, match=f"OpenRoom came with {len(came)} descriptors; it needs 2"):
        receiver.next_event()
    assert receiver.state is State.IDLE
    assert receiver.stray_descriptors() == came
    assert receiver.stray_descriptors() == ()


def test_descriptors_that_belong_to_no_message() -> None:
    """Else a peer could fill this process's table of open files without ever breaking a rule."""
    receiver = primed("room", Role.SERVER, State.OPEN)
    receiver.receive_data(encode(m.Listen(True)), (1000,))
    assert receiver.next_event() == Received(m.Listen(True))
    with pytest.raises(RemoteProtocolError, match="1 descriptors came that belong to no message"):
        receiver.next_event()
    assert receiver.stray_descriptors() == (1000,)


def test_descriptors_hoarded_behind_a_frame_that_never_ends() -> None:
    receiver = primed("room", Role.SERVER, State.IDLE)
    data = encode(m.OpenRoom("r"))
    receiver.receive_data(data[:1], (1000, 1001))
    assert receiver.next_event() is Signal.NEED_DATA
    receiver.receive_data(data[1:2], (1002,))
    with pytest.raises(RemoteProtocolError, match="3 descriptors came that belong to no message"):
        receiver.next_event()


def test_no_message_carries_more_descriptors_than_are_let_wait() -> None:
    assert max(kind.DESCRIPTORS for kind in MESSAGES) == 2


def test_descriptors_go_to_their_messages_in_order() -> None:
    receiver = Connection(Role.SERVER, FORKSERVER)
    receiver.receive_data(encode(s.Spawn("a")), (1000,))
    assert receiver.next_event() == Received(s.Spawn("a"), (1000,))
    receiver.receive_data(encode(s.Spawn("b"))[:4], (1001,))
    assert receiver.next_event() is Signal.NEED_DATA
    receiver.receive_data(encode(s.Spawn("b"))[4:])
    assert receiver.next_event() == Received(s.Spawn("b"), (1001,))


def test_repr_shows_the_state() -> None:
    connection = primed("room", Role.SERVER, State.OPEN)
    connection.receive_data(b"RF")
    assert repr(connection) == "<Connection room server open open=[1, 2, 3, 4] buffered=2>"
