"""The image of deploy/Containerfile, built without a container: the same files and commands, below a folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests import deployments
from tests.deployments import ROOT

# What builds a wheel; in a container it comes from the package index.
BUILD_BACKEND = ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers")
PACKAGES = sysconfig.get_path("purelib")
STANDARD_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Image:
    """
    Files below `folder` as they are below / in a container.

    outboxd itself is what the build installed; the packages that it needs are those of the tests.
    """

    folder: Path

    def path(self, text: str) -> str:
        """Return an environment's value with the image's absolute paths made ours."""
        return re.sub(r"(?<![\w.])/(?=(opt|app|src|run)\b)", f"{self.folder}/", text)

    def environment(self, stage: str) -> dict[str, str]:
        """What ENV sets, and what a container has besides."""
        found = {"PATH": STANDARD_PATH, "HOME": "/nonexistent", "PYTHONPATH": PACKAGES}
        for instruction in deployments.stage(stage):
            if instruction.name == "ENV":
                for assignment in instruction.value.split():
                    name, _, value = assignment.partition("=")
                    found[name] = self.path(value).replace("$PATH", found["PATH"])
        return found

    def workdir(self, stage: str) -> Path:
        folders = [i.value for i in deployments.stage(stage) if i.name == "WORKDIR"]
        return Path(self.path(folders[-1])) if folders else self.folder


def build(folder: Path) -> Image:
    """Carry out the Containerfile's COPY and RUN instructions."""
    image = Image(folder)
    backend = folder / "backend"
    backend.mkdir()
    for package in BUILD_BACKEND:
        spec = importlib.util.find_spec(package)
        assert spec is not None, package
        assert spec.origin is not None, package
        (backend / package).symlink_to(Path(spec.origin).parent)
    working = folder
    for instruction in deployments.containerfile():
        if instruction.name == "WORKDIR":
            working = Path(image.path(instruction.value))
            working.mkdir(parents=True, exist_ok=True)
        elif instruction.name == "COPY" and not instruction.value.startswith("--from"):
            _copy(image, working, instruction.value)
        elif instruction.name == "RUN":
            _run(image, working, instruction.value, backend)
    return image


def _copy(image: Image, working: Path, value: str) -> None:
    *sources, target = value.split()
    for source in sources:
        origin = ROOT / source
        if origin.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, working / image.path(target), ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(origin, working / target)


def _run(image: Image, working: Path, command: str, backend: Path) -> None:
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), STANDARD_PATH]),
        "PYTHONPATH": str(backend),
        # Without a network: the build backend is there, and so are the packages.
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the option's value: "do not isolate"
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(
        ["sh", "-ec", image.path(command)],
        cwd=working,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
