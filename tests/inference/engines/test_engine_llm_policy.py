"""The parts of the language-model engine that need no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.engines.base import EngineError, EngineOptions, Message, Sampling
from inference.engines.llm import LlamaLanguageModel
from inference.engines.prompt import CHATML, ChatTemplate, TextStream


def fed(stream: TextStream, pieces: list[bytes]) -> list[str]:
    return [stream.feed(piece) for piece in pieces]


def test_text_never_ends_inside_a_character() -> None:
    stream = TextStream(())
    smile = "😀".encode()
    assert fed(stream, [b"a", smile[:1], smile[1:3], smile[3:], b"b"]) == ["a", "", "", "😀", "b"]
    assert stream.finish() == ""


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream(())
    assert fed(stream, [b"ok", "é".encode()[:1]]) == ["ok", ""]
    assert stream.finish() == ""


def test_a_stop_string_is_never_shown() -> None:
    stream = TextStream(("User:", "\n\n"))
    assert fed(stream, [b"Hi", b" Us", b"er", b": you", b"more"]) == ["Hi", " ", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    stream = TextStream(("User:",))
    assert fed(stream, [b"Us", b"ual"]) == ["", "Usual"]
    assert fed(stream, [b" Use"]) == [" "]
    assert stream.finish() == "Use"
    assert not stream.stopped


def test_the_first_of_two_stop_strings_counts() -> None:
    stream = TextStream(("b", "a"))
    assert stream.feed(b"xab") == "x"


def test_a_tools_result_is_the_users_where_the_template_knows_no_tools() -> None:
    chat = [Message("user", "Hi."), Message("assistant", "[call]"), Message("tool", "[result]")]
    plain = ChatTemplate(CHATML, "", "", [])
    assert plain.render(chat) == plain.render([*chat[:2], Message("user", "[result]")])
    source = "{% for m in messages %}{% if m.role == 'tool' %}<result>{% endif %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(source, "", "", []).render(chat) == "Hi.[call]<result>[result]"


def test_a_tools_result_is_the_users_where_the_template_refuses_it() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' and m.tool_call_id is not defined %}"
        "{{ raise_exception('no id') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    chat = [Message("system", "Be kind."), Message("user", "Hi."), Message("tool", "[result]")]
    assert ChatTemplate(source, "", "", []).render(chat) == "system: Be kind.\nuser: Hi.\nuser: [result]\n"


def test_before_load_it_says_so() -> None:
    with pytest.raises(EngineError, match="not loaded"):
        LlamaLanguageModel().start(1, 0, [Message("user", "hi")], Sampling())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        LlamaLanguageModel().load(tmp_path / "none.gguf", EngineOptions(device="cpu", threads=1, max_rooms=1))
