"""
Where the systems come from: environments below `.peers/`, installed from pinned requirements when first asked for.

An environment that cannot be had here, for want of Node or of a newer Python, says so; its systems are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.about import ROOT

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".peers"
INSTALL_S_MAX = 600.0


class UnavailableError(Exception):
    """This machine does not have what the environment needs."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """The harness's own: what is in it is there already."""

    def install(self) -> None:
        """Make it ready."""

    def command(self, program: Path) -> list[str]:
        return [sys.executable, str(program)]

    def version(self, package: str) -> str:
        return importlib.metadata.version(package)

    @property
    def language(self) -> str:
        return f"Python {sys.version.split()[0]}"


@dataclasses.dataclass(frozen=True)
class PythonEnvironment(Environment):
    """A virtual environment of its own: the peers' dependencies are none of outboxd's."""

    name: str
    minimum: tuple[int, int] = (3, 11)

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self) -> None:
        requirements = HERE / f"requirements-{self.name}.txt"
        if _is_fresh(self.folder, requirements):
            return
        python = _python(self.minimum)
        shutil.rmtree(self.folder, ignore_errors=True)
        _run(python, "-m", "venv", str(self.folder))
        pip = (str(self.python), "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        _run(*pip, "-r", str(requirements))
        _mark(self.folder, requirements)

    def command(self, program: Path) -> list[str]:
        return [str(self.python), str(program)]

    def version(self, package: str) -> str:
        code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        return _run(str(self.python), "-c", code, package)

    @property
    def language(self) -> str:
        return _run(str(self.python), "--version")


@dataclasses.dataclass(frozen=True)
class NodeEnvironment(Environment):
    """Packages of npm, Node itself among them: these peers need a newer one than most machines have."""

    @property
    def folder(self) -> Path:
        return FOLDER / "node"

    @property
    def node(self) -> Path:
        return self.folder / "node_modules" / "node" / "bin" / "node"

    def install(self) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise UnavailableError("node and npm are not there")
        manifest = HERE / "package.json"
        if _is_fresh(self.folder, manifest):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest, self.folder)
        _run("npm", "install", "--loglevel=error", "--no-audit", "--no-fund", "--no-package-lock", cwd=self.folder)
        _mark(self.folder, manifest)

    def command(self, program: Path) -> list[str]:
        # An import is resolved from where the program lies, so it has to lie beside node_modules.
        for source in program.parent.glob("*.mjs"):
            shutil.copy(source, self.folder)
        return [str(self.node), str(self.folder / program.name)]

    def version(self, package: str) -> str:
        manifest = json.loads((self.folder / "node_modules" / package / "package.json").read_text())
        return str(manifest["version"])

    @property
    def language(self) -> str:
        return f"Node {_run(str(self.node), '--version')}"


def _is_fresh(folder: Path, source: Path) -> bool:
    stamp = folder / ".installed"
    return stamp.exists() and stamp.read_text() == _digest(source)


def _mark(folder: Path, source: Path) -> None:
    """Written last: an installation that was interrupted is begun anew."""
    (folder / ".installed").write_text(_digest(source))


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _python(minimum: tuple[int, int]) -> str:
    """Return a Python of at least this version, the harness's own where it is one."""
    if sys.version_info >= minimum:
        return sys.executable
    for candidate in _pythons():
        code = f"import sys, ensurepip; sys.exit(sys.version_info < {minimum})"
        if not subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode:
            return candidate
    raise UnavailableError(f"no Python {minimum[0]}.{minimum[1]} or later")


def _pythons() -> Iterator[str]:
    names = [f"python3.{minor}" for minor in (12, 13, 14)]
    yield from (found for name in names if (found := shutil.which(name)))
    # Those of pyenv that are not switched on: its shims on the path refuse to run them.
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from (str(path) for name in names for path in versions.glob(f"*/bin/{name}"))


def _run(*argv: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False)
    if done.returncode:
        raise UnavailableError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout.strip()
