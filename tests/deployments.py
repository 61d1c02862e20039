"""The files of deploy/, read as their programs read them, and every command line in them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy"
README = FOLDER / "README.md"


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Containerfile, its lines joined; `stage` is that of the last FROM."""

    stage: str
    name: str
    value: str

    def exec_form(self) -> list[str]:
        """The words of `CMD ["a", "b"]`, also behind the options of a HEALTHCHECK; fails on the shell form."""
        words: list[str] = json.loads(self.value[self.value.index("[") :])
        return words


def containerfile() -> list[Instruction]:
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (FOLDER / "Containerfile").read_text("utf-8"), flags=re.M))
    found, stage = [], ""
    for line in filter(None, text.splitlines()):
        name, _, value = line.partition(" ")
        if name == "FROM":
            stage = value.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, value))
    return found


def stage(name: str) -> list[Instruction]:
    """A stage's instructions behind those of the stages that it is built on."""
    own = [i for i in containerfile() if i.stage == name]
    base = own[0].value.partition(" AS ")[0]
    return [*(stage(base) if base in {i.stage for i in containerfile()} else []), *own]


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    return document


def kubernetes(kind: str) -> dict[str, Any]:
    """The only object of its kind."""
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
    (found,) = [document for document in documents if document["kind"] == kind]
    return dict(found)


def pod(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = kubernetes(kind)["spec"]["template"]["spec"]
    return spec


def sidecar() -> dict[str, Any]:
    (found,) = [c for c in pod("Deployment")["initContainers"] if c.get("restartPolicy") == "Always"]
    return dict(found)


@dataclass(frozen=True)
class CronJob:
    schedule: str
    account: str
    command: str
    environment: dict[str, str]


def cron() -> CronJob:
    environment, jobs = {}, []
    for line in (FOLDER / "cron").read_text("utf-8").splitlines():
        variable = re.fullmatch(r"(\w+)=(.*)", line)
        if variable:
            environment[variable[1]] = variable[2]
        elif line and not line.startswith("#"):
            *times, account, command = line.split(maxsplit=6)
            jobs.append((" ".join(times), account, command))
    ((schedule, account, command),) = jobs
    assert "%" not in command, "cron would take it for a newline"
    return CronJob(schedule, account, command, environment)


@dataclass(frozen=True)
class Command:
    """One command line: where it stands, its words, and the environment that its file gives to it."""

    place: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict, hash=False)


def commands() -> list[Command]:
    """Every command line of the Containerfile, the YAML files and the cron file, but not the RUN instructions."""
    found = []
    for instruction in containerfile():
        if instruction.name in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            place = f"Containerfile {instruction.stage} {instruction.name}"
            found.append(Command(place, instruction.exec_form()))
    for name, service in compose()["services"].items():
        environment = service.get("environment", {})
        if "command" in service:
            found.append(Command(f"compose {name}", service["command"], environment))
        if "healthcheck" in service:
            how, *words = service["healthcheck"]["test"]
            assert how == "CMD"
            found.append(Command(f"compose {name} healthcheck", words, environment))
    for kind in ("Job", "Deployment"):
        for container in [*pod(kind).get("initContainers", []), *pod(kind)["containers"]]:
            environment = {v["name"]: v["value"] for v in container.get("env", [])}
            for words in _commands_within(container):
                found.append(Command(f"kubernetes {kind} {container['name']}", words, environment))
    job = cron()
    return [*found, Command("cron", shlex.split(job.command), job.environment)]


def _commands_within(value: Any) -> Iterator[list[str]]:
    """Wherever they stand: `command` of a container, of a probe, of preStop. `args` would be put behind it."""
    if isinstance(value, list):
        for item in value:
            yield from _commands_within(item)
    elif isinstance(value, dict):
        if "command" in value:
            yield [*value["command"], *value.get("args", [])]
        assert "command" in value or "args" not in value, "arguments of a command that is not in this file"
        for item in value.values():
            yield from _commands_within(item)


def shell_blocks(document: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
