"""What the documents, the examples and the container files say is compared with the code."""

from __future__ import annotations

import ast
import dataclasses
import enum
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml  # type: ignore[import-untyped]

from host import cli, errors
from host.agent_file import AgentFunctions, read_agent_file
from host.config import Config, WorkerConfig
from host.job.functions import load_function
from host.job.turn import TABLE
from host.lifecycle import TRANSITIONS
from host.metrics import Metrics
from host.options import DEFAULT_PORT, WorkerOptions
from inference.segments import DOWN_SAMPLES, SEGMENT_BYTES, UP_SAMPLES
from inference.wire.connection import FORKSERVER, ROOM, SUPERVISION, Role
from inference.wire.supervision import InferenceReport, StageReport
from inference.wire.tlv import Message
from models.catalog import load_catalog
from tests.host.seeing.describe import description

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
NOT_IN_GIT = {"models/weights"}


def read(name: str) -> str:
    return (ROOT / name).read_text()


def tables(name: str) -> dict[str, list[list[str]]]:
    """The tables of a document by their first column's title: rows of cells, without the title row."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", read(name), re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found[" | ".join(rows[0]).strip()] = rows[2:]
    return found


def table(name: str, *titles: str) -> list[list[str]]:
    return tables(name)[" | ".join(titles)]


def fences(name: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks of a document."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)


def inline_code(name: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", read(name), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


# --- links and files --------------------------------------------------------------------------------


def anchors(name: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", read(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", read(name)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            assert anchor in anchors(path or name), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_exist(name: str) -> None:
    pattern = r"(?<![\w/.-])((?:host|inference|models|tests|scripts|examples|deploy)/[\w./-]*\w/?)"
    named = {found for text in inline_code(name) for found in re.findall(pattern, text)}
    named |= {found for _, text in fences(name) for found in re.findall(pattern, text)}
    assert named or name == "CHANGELOG.md"
    for path in named - NOT_IN_GIT:
        assert (ROOT / path).exists(), path


def test_the_licence_is_whole() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30", "not the text of Apache-2.0"


# --- the command line ---------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command by what is typed after ``host``."""
    found: dict[str, Any] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        if path:
            found[" ".join(path)] = command
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(cli.app), ())
    return found


def options(command: Any) -> set[str]:
    return {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)} | {"--help", "-h"}


def invocations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each ``host COMMAND ...`` in ``text``: what is typed after ``host``, and the options with it."""
    known = commands()
    for line in text.splitlines():
        for match in re.finditer(r"(?<![\w./-])(?:\.venv/bin/)?host(?:-cpu)? ([a-z-]+)((?: [^\s#`]+)*)", line):
            first, rest = match[1], match[2].split()
            name = f"{first} {rest[0]}" if rest and f"{first} {rest[0]}" in known else first
            yield name, [word.split("=")[0] for word in rest if word.startswith("-")]


def said_to_be_typed() -> Iterator[tuple[str, list[str]]]:
    for name in DOCUMENTS:
        typed = [content for language, content in fences(name) if language != "python"]
        for text in typed + inline_code(name):
            yield from invocations(text)
    for path in [*ROOT.glob("examples/*.py"), ROOT / "docker-compose.yml", ROOT / "deploy/.env.example"]:
        yield from invocations(
            "\n".join(re.findall(r"host(?:-cpu)? (?:serve|talk|simulate|status|models)[^\n`]*", path.read_text()))
        )


def test_commands_and_options_that_are_mentioned_exist() -> None:
    known = commands()
    mentioned = list(said_to_be_typed())
    assert {"serve", "talk", "simulate", "status", "models list", "models download", "models verify"} <= {
        name for name, _ in mentioned
    }
    for name, flags in mentioned:
        assert name in known, f"host {name}"
        assert set(flags) <= options(known[name]), f"host {name} {flags}"


def test_options_that_are_mentioned_alone_exist() -> None:
    known = set().union(*(options(command) for command in commands().values()))
    alone = {text.split()[0] for text in inline_code("README.md") if text.startswith("--")}
    assert "--agent-name" in alone
    assert alone <= known


def test_exit_codes() -> None:
    # The tree in the module's docstring is what its author reads; the classes are what scripts see.
    tree = dict(re.findall(r"(\w*Error) +(\d) +.+", errors.__doc__ or ""))
    classes: list[type[errors.HostError]] = [errors.HostError, *errors.HostError.__subclasses__()]
    kinds = {kind.__name__: kind.exit_code for kind in classes}
    assert {name: int(code) for name, code in tree.items()} == kinds
    meanings = dict(re.findall(r"\w*Error +(\d) +(.+)", errors.__doc__ or ""))
    readme = dict(table("README.md", "code", "meaning"))
    assert {code: text for code, text in readme.items() if code in meanings} == meanings
    assert set(readme) - set(meanings) == {"0", "130", "143"}


def test_keys_of_the_json_output() -> None:
    tree = ast.parse(read("host/talk.py"))
    (keys,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_JSON_KEYS"
    )
    (example,) = (json.loads(content) for language, content in fences("README.md") if language == "json")
    assert tuple(example) == keys
    assert sorted(row[0].strip("`") for row in table("README.md", "key", "unit", "meaning")) == sorted(keys)


# --- configuration ------------------------------------------------------------------------------------


def as_toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        value = value.value
    return "`inf`" if value == math.inf else f"`{json.dumps(value)}`"


def configuration_keys() -> dict[str, str]:
    """Every key and its default as TOML writes it; of those that depend on the mode, both."""
    found: dict[str, str] = {}
    options = WorkerOptions(entrypoint_fnc="")
    production, development = options.resolved(cores=64), dataclasses.replace(options, dev=True).resolved(cores=64)

    def add(path: str, default: Any) -> None:
        if dataclasses.is_dataclass(default) or isinstance(default, msgspec.Struct):
            names = (
                default.__struct_fields__
                if isinstance(default, msgspec.Struct)
                else [field.name for field in dataclasses.fields(default)]
            )
            for name in names:
                add(f"{path}.{name}", getattr(default, name))
            return
        # Top level, or of [worker]: where the options know the default of the mode.
        *section, name = path.split(".")
        if default is None and section in ([], ["worker"]) and getattr(production, name) is not None:
            both = as_toml(getattr(production, name)), as_toml(getattr(development, name))
            found[f"`{path}`"] = f"{both[0]}; dev: {both[1]}"
        else:
            found[f"`{path}`"] = as_toml(default)

    for section in msgspec.structs.fields(Config):
        add(section.name, getattr(Config(), section.name))
    return found


def test_configuration_table() -> None:
    assert {key: default for key, default, _ in table("README.md", "key", "default", "meaning")} == configuration_keys()


def test_every_key_of_the_worker_is_a_flag_as_the_readme_says() -> None:
    flags = options(commands()["serve"])
    keys = set(WorkerConfig.__struct_fields__) - {"permissions", "ws_url"}
    assert {f"--{key.replace('_', '-')}" for key in keys} | {"--url"} <= flags
    assert "is also a flag of `host serve`" in " ".join(read("README.md").split())


def test_configuration_example_is_accepted() -> None:
    (example,) = (content for language, content in fences("README.md") if language == "toml")
    msgspec.toml.decode(example, type=Config)


def test_environment_variables() -> None:
    in_code = set(re.findall(r'"((?:LIVEKIT|ROOMFUL)_\w+|NUM_CPUS)"', read("host/config.py")))
    assert in_code <= set(inline_code("README.md"))
    assert {row[0].strip("`") for row in table("README.md", "environment variable", "what it sets")} == in_code
    named = re.findall(r"\b(?:(?:LIVEKIT|ROOMFUL)_[A-Z_]+|NUM_CPUS)\b", read("README.md"))
    assert set(named) <= in_code


def test_metrics() -> None:
    metrics = Metrics(description)
    stage = StageReport(stage="stt", waiting=0, requests=1, late=0, quanta=1, busy_s=0.1)
    metrics.inference_report(InferenceReport("cpu", 1, 8, 0.5, 0.1, (stage,)))
    metrics.process_ready("job", 0.1)
    metrics.process_failed("job")
    metrics.process_killed("job", "ping")
    metrics.ping("job", 0.1)
    text = metrics.render()[0].decode()
    kinds = dict(re.findall(r"^# TYPE ((?:roomful|lk_agents)_\w+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for sample, shown in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        name = sample if sample in kinds else re.sub(r"_(bucket|sum|count)$", "", sample)
        labels.get(name, set()).update(set(re.findall(r'(\w+)="', shown)) - {"le"})
    rows = table("README.md", "metric", "kind", "labels", "meaning")
    assert {row[0].strip("`"): row[1] for row in rows} == kinds
    assert {row[0].strip("`"): set(filter(None, row[2].split(", "))) for row in rows} == labels


# --- models -------------------------------------------------------------------------------------------


def test_profiles() -> None:
    catalog = load_catalog()
    rows = {row[0].split()[0].strip("`"): row for row in tables("README.md")[PROFILE_TITLES]}
    assert {name: tuple(row[1:4]) for name, row in rows.items()} == {
        name: (profile.stt, profile.llm, profile.tts) for name, profile in catalog.profiles.items()
    }
    assert [name for name, row in rows.items() if "(default)" in row[0]] == [catalog.default_profile]


PROFILE_TITLES = "profile | speech to text | language model | voice | for"


def test_licences_of_models_in_the_notice() -> None:
    lines = dict(re.findall(r"^  ([\w.-]+) {2,}(.+?)(?: {2,}.*)?$", read("NOTICE"), re.MULTILINE))
    for model in load_catalog().models:
        assert lines.get(model.name) == model.licence, model.name


# --- examples -----------------------------------------------------------------------------------------


def test_the_examples_in_the_readme_are_the_files_and_fit_on_a_screen() -> None:
    shown = [content for language, content in fences("README.md") if language == "python"]
    assert shown == [read("examples/receptionist.py"), read("examples/front_desk.py")]
    assert all(len(example.splitlines()) <= 30 for example in shown)


def test_functions_of_an_agent_file() -> None:
    named = {re.search(r"def (\w+)", row[0])[1] for row in table("README.md", "function", "what it does")}  # type: ignore[index]
    assert named == {field.name for field in dataclasses.fields(AgentFunctions)}


def test_what_an_entrypoint_is_given() -> None:
    """Every public name of the context is told, and nothing else."""
    source = ast.parse(read("host/job/context.py"))
    (context,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "JobContext")
    names = {node.name for node in context.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    names |= {
        target.attr
        for node in ast.walk(context)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
    }
    told = {
        name.strip("` ").partition("(")[0]
        for row in table("README.md", "of `JobContext`", "what it is")
        for name in row[0].split(",")
    }
    assert told == {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_load_as_a_job_process_loads_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    assert load_function(f"{path}:entrypoint").__name__ == "entrypoint"
    assert read_agent_file(path).entrypoint == f"{path}:entrypoint"


# --- ARCHITECTURE.md ------------------------------------------------------------------------------------


def messages() -> dict[int, type[Message]]:
    modules = ("inference.wire.messages", "inference.wire.supervision")
    return {kind.TYPE: kind for kind in Message.__subclasses__() if kind.TYPE > 0 and kind.__module__ in modules}


def test_message_table() -> None:
    rows = table("ARCHITECTURE.md", "type", "message", "from → to", "what")
    assert {int(row[0]): row[1].strip("`") for row in rows} == {
        number: kind.__name__ for number, kind in messages().items()
    }
    for number, _, direction, note in rows:
        kind = messages()[int(number)]
        carried = re.search(r"carries (\d) descriptor", note)
        assert (int(carried[1]) if carried else 0) == kind.DESCRIPTORS, kind
        protocol, client = next(
            (protocol, client)
            for protocol, client in ((ROOM, "job"), (SUPERVISION, "supervisor"), (FORKSERVER, "supervisor"))
            if any(kind in row for row in protocol.table.values())
        )
        senders = {role for (role, _), row in protocol.table.items() if kind in row}
        assert {Role.CLIENT if direction.startswith(client) else Role.SERVER} == senders, kind


def test_table_of_a_childs_life() -> None:
    rows = table("ARCHITECTURE.md", "state", "event", "next")
    assert rows == [
        [state.value, event.value, follows.value]
        for state, row in TRANSITIONS.items()
        for event, follows in row.items()
    ]


def test_table_of_turn_taking() -> None:
    told = {
        (state, event): tuple(follows.split(", "))
        for state, events, follows in table("ARCHITECTURE.md", "state", "input", "may follow")
        for event in re.findall(r"`(\w+)`", events)
    }
    # Rows that keep the state are left out of the document.
    assert told == {
        (state.value, event.__name__): tuple(next_state.value for next_state in row.follows)
        for (state, event), row in TABLE.items()
        if row.follows != (state,)
    }


def test_sizes_of_the_rings() -> None:
    text = read("ARCHITECTURE.md")
    assert UP_SAMPLES == 2**20
    assert DOWN_SAMPLES == 2**18
    assert "2^20 samples     | 2^18 samples" in text
    assert SEGMENT_BYTES == 2.5 * 2**20 + 4096
    assert "2.5 MiB + 4 KiB" in text


# --- containers -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile: its name, what it is built on, its instructions."""

    name: str
    base: str
    instructions: list[tuple[str, str]]


def dockerfile() -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", read("Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(name, base, []))
        elif stages:
            stages[-1].instructions.append((instruction, rest))
    return stages


def of(stage: Stage, instruction: str) -> list[str]:
    return [rest for name, rest in stage.instructions if name == instruction]


def test_what_the_dockerfile_copies_is_there_and_is_sent() -> None:
    stages = dockerfile()
    names = {stage.name for stage in stages}
    sent = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = 0
    for stage in stages:
        for rest in of(stage, "COPY"):
            words = shlex.split(rest)
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in names
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert Path(source).parts[0] in sent, f"{source} is kept out by .dockerignore"
                copied += 1
    assert copied >= 8
    packages = read("pyproject.toml").split("[tool.setuptools.packages.find]")[1].split("]")[0]
    assert {name.rstrip("*") for name in re.findall(r'"(\w+\*?)"', packages)} <= sent


def test_every_device_has_its_stages() -> None:
    stages = dockerfile()
    names = {stage.name for stage in stages}
    bases = [stage.base for stage in stages if "${DEVICE}" in stage.base]
    assert len(bases) == 2
    for device in ("cpu", "cuda"):
        assert {base.replace("${DEVICE}", device) for base in bases} <= names
    images = {stage.name: stage.base for stage in stages}
    assert images["run-base-cpu"] == "python:3.11-slim-bookworm"
    assert re.fullmatch(r"nvidia/cuda:12\.[\d.]+-devel-\w+[\d.]+", images["build-base-cuda"])


def test_what_the_image_runs() -> None:
    run = dockerfile()[-1]
    port = DEFAULT_PORT
    assert json.loads(of(run, "ENTRYPOINT")[-1]) == ["host"]
    assert json.loads(of(run, "CMD")[-1]) == ["serve"]
    assert of(run, "USER")[-1] not in ("root", "0")
    assert of(run, "EXPOSE") == [str(port)]
    assert f"http://127.0.0.1:{port}/" in of(run, "HEALTHCHECK")[0]
    assert of(run, "VOLUME") == ["/models"]
    assert "ROOMFUL_MODELS_DIR=/models" in " ".join(of(run, "ENV"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(read("docker-compose.yml"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def livekit() -> dict[str, Any]:
    loaded = yaml.safe_load(read("deploy/livekit.yaml"))
    assert isinstance(loaded, dict)
    return loaded


def seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def test_compose_has_a_server_and_the_host_with_and_without_a_gpu(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"livekit", "host", "host-cpu", "prometheus", "grafana"}
    (device,) = services["host"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services["host"]["build"]["args"]["DEVICE"] == "cuda"
    assert "profiles" not in services["host"]
    assert services["host-cpu"]["build"]["args"]["DEVICE"] == "cpu"
    assert services["host-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in services["host-cpu"]
    version = re.search(r"^VERSION=(.+)$", read("scripts/install_livekit_server.sh"), re.MULTILINE)
    assert version is not None
    assert services["livekit"]["image"] == f"livekit/livekit-server:{version[1]}"


def test_compose_starts_the_host_with_options_that_exist(compose: dict[str, Any]) -> None:
    for name in ("host", "host-cpu"):
        subcommand, *arguments = compose["services"][name]["command"]
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert set(flags) <= options(commands()[subcommand])
        default = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", flags["--profile"])
        assert default in load_catalog().profiles


def test_compose_lets_rooms_finish(compose: dict[str, Any]) -> None:
    worker = WorkerConfig()
    for name in ("host", "host-cpu"):
        grace = seconds(compose["services"][name]["stop_grace_period"])
        assert grace > worker.drain_timeout + worker.shutdown_process_timeout


def test_compose_has_no_secret_of_its_own(compose: dict[str, Any]) -> None:
    text = read("docker-compose.yml")
    used = set(re.findall(r"\$\{(\w+)", text))
    for variable in ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "LIVEKIT_NODE_IP"):
        assert variable in used
        assert not re.search(rf"\$\{{{variable}(?!:\?)", text), f"{variable} has a default"
    example = read("deploy/.env.example")
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) == used
    assert re.findall(r"^LIVEKIT_API_\w+=(.*)$", example, re.MULTILINE) == ["", ""]
    for name in ("host", "host-cpu"):
        assert compose["services"][name]["environment"]["LIVEKIT_API_SECRET"].startswith("${LIVEKIT_API_SECRET:?")


@pytest.mark.parametrize("secret", ["a" * 32, "0" * 32, "1e" + "9" * 30])
def test_the_server_reads_any_secret_as_text(compose: dict[str, Any], secret: str) -> None:
    keys = compose["services"]["livekit"]["environment"]["LIVEKIT_KEYS"]
    filled = re.sub(r"\$\{LIVEKIT_API_SECRET[^}]*\}", secret, re.sub(r"\$\{LIVEKIT_API_KEY[^}]*\}", "APIkey", keys))
    assert yaml.safe_load(filled) == {"APIkey": secret}


def test_files_and_ports_of_compose(compose: dict[str, Any], livekit: dict[str, Any]) -> None:
    server = compose["services"]["livekit"]
    (mount,) = server["volumes"]
    source, target, mode = mount.split(":")
    assert (ROOT / source).is_file()
    assert mode == "ro"
    assert target == server["command"][server["command"].index("--config") + 1]
    assert f"http://127.0.0.1:{livekit['port']}/" in server["healthcheck"]["test"]
    comment = read("docker-compose.yml").split("x-host:")[0]
    ports = (livekit["port"], livekit["rtc"]["tcp_port"], livekit["rtc"]["udp_port"], livekit["turn"]["udp_port"])
    for port in (*ports, DEFAULT_PORT):
        assert str(port) in comment, port
    for name in ("host", "host-cpu"):
        host = compose["services"][name]
        assert host["environment"]["LIVEKIT_URL"] == f"ws://127.0.0.1:{livekit['port']}"
        assert host["network_mode"] == server["network_mode"] == "host"
        assert host["volumes"] == [f"models:{host['environment']['ROOMFUL_MODELS_DIR']}"]
    assert "models" in compose["volumes"]


def test_prometheus_asks_the_host(compose: dict[str, Any]) -> None:
    prometheus = compose["services"]["prometheus"]
    assert prometheus["profiles"] == ["metrics"]
    source, target, mode = prometheus["volumes"][0].split(":")
    assert mode == "ro"
    assert f"--config.file={target}" in prometheus["command"]
    (job,) = yaml.safe_load(read(source))["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{DEFAULT_PORT}"]}]


def test_the_servers_configuration_sends_nobody_to_the_internet(livekit: dict[str, Any]) -> None:
    assert livekit["turn"]["enabled"] is True
    assert livekit["turn"]["udp_port"] > 0
    assert livekit["rtc"]["use_external_ip"] is False
    assert "keys" not in livekit
