"""
Loading the configuration: defaults, then file, then environment, then flags; all problems at once.

A value is checked where it is used, by walking the Structs of `config`, so every message names its key
(or the variable it came from). What spans several keys is checked in `relations`.
"""

from __future__ import annotations

import functools
import os
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from outboxd import dsn, errors, relations, suggest
from outboxd.config import ENVIRONMENT, SECRETS, Config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PLACES = (Path("outboxd.toml"), Path("/etc/outboxd/config.toml"))
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_GOT_MAX = 60


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    A configuration and where it is from.

    Attributes:
        source: The file used; None when there is none.
        folder: Its folder, absolute; receivers are imported from there.
        secret_files: Keys such as `dsn` whose value stands in a file named by `<NAME>_FILE`.
        strangers: Variables of the environment that look like misspelt ones of ours, with what may be meant.
    """

    config: Config
    source: Path | None = None
    folder: Path | None = None
    secret_files: Mapping[str, Path] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()


@dataclass(slots=True)
class _Layers:
    """What is being put together; `origin` tells which variable or flag a key is from."""

    values: dict[str, Any]
    origin: dict[str, str] = field(default_factory=dict)
    from_text: set[str] = field(default_factory=set)
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] = _NOTHING,
) -> Loaded:
    """
    Load the configuration; cheap enough (about 2 ms) to call again on reload.

    Args:
        path: As given by --config; None means OUTBOX_CONFIG, ./outboxd.toml, /etc/outboxd/config.toml.
        environ: The environment; an empty variable counts as unset unless its key takes a text.
        overrides: Dotted keys and values that win over all, e.g. `{"dsn": …}`; None counts as not given.

    Raises:
        ConfigError: Everything that is wrong, in one error; the file is missing, unreadable or not TOML.
    """
    source = _find(path, environ)
    layers = _Layers(_merge(_defaults(), _read(source) if source else {}))
    _apply_environment(layers, environ)
    for key, value in overrides.items():
        if value is not None:
            _set(layers, key, value, f"--{key.replace('_', '-')}")
    config = _table(Config, layers.values, "", layers)
    problems = layers.problems + [_from_origin(p, layers) for p in relations.problems(config)]
    if problems:
        raise errors.ConfigError(problems, source=str(source or ""))
    return Loaded(config, source, source.resolve().parent if source else None, layers.files, _strangers(environ))


def read_secret(loaded: Loaded, key: str = "dsn") -> str:
    """
    Return `dsn`, `session_dsn` or `redis_url` as it is now: call it before every reconnect.

    A value from `<NAME>_FILE` is read anew, because passwords rotate. While the file is being replaced
    (missing, empty or broken) the value stays as it was loaded.
    """
    value: str = getattr(loaded.config, key)
    if key not in loaded.secret_files:
        return value
    try:
        fresh = _read_value(loaded.secret_files[key])
        if key != "redis_url":
            dsn.parameters(fresh, key=key)
    except (OSError, UnicodeDecodeError, errors.ConfigError):
        return value
    return fresh or value


def session_dsn(loaded: Loaded) -> str:
    """Tell where to connect now: directly, where `dsn` leads to a pooler."""
    return read_secret(loaded, "session_dsn") or read_secret(loaded, "dsn")


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Choose the file; one that was asked for must exist, the usual places may be empty."""
    named, by = (path, "--config") if path else (environ.get("OUTBOX_CONFIG") or None, "OUTBOX_CONFIG")
    if named is None:
        return next((place for place in PLACES if place.is_file()), None)
    if not Path(named).is_file():
        raise errors.ConfigError(
            [f"{by}: there is no file {named}"], hint="Write one to start from with `outboxd init`."
        )
    return Path(named)


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise errors.ConfigError([f"cannot read the file: {why}"], source=str(source)) from exc
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError, a number of 5 000 digits, a thousand brackets
        raise errors.ConfigError([f"not valid TOML: {exc}"], source=str(source)) from exc


@functools.cache
def _defaults() -> dict[str, Any]:
    text = resources.files("outboxd").joinpath("config.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return *under* with *over* laid on it: tables merge, everything else replaces; changes neither."""
    result = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in under.items()}
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _apply_environment(layers: _Layers, environ: Mapping[str, str]) -> None:
    for name, key in ENVIRONMENT.items():
        value, file = environ.get(name), environ.get(f"{name}_FILE")
        if value and file:
            layers.problems.append(f"{name} and {name}_FILE are both set, set only one")
        elif file:
            _apply_file(layers, name, key, Path(file))
        elif value or (value == "" and key in (*SECRETS, "http.listen")):
            _set(layers, key, value, name)
            layers.from_text.add(key)


def _strangers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Find variables that would be ours but for a typing error; others with our prefix may be anybody's."""
    known = {"OUTBOX_CONFIG", *ENVIRONMENT, *(f"{name}_FILE" for name in ENVIRONMENT)}
    others = sorted(name for name in environ if name.startswith("OUTBOX_") and name not in known)
    return tuple(f"{name}{near}" for name in others if (near := suggest.nearest(name, known)).startswith(", did"))


def _apply_file(layers: _Layers, name: str, key: str, file: Path) -> None:
    try:
        value = _read_value(file)
    except OSError as exc:
        layers.problems.append(f"{name}_FILE: cannot read {file}: {exc.strerror}")
    except UnicodeDecodeError:
        layers.problems.append(f"{name}_FILE: {file} is not UTF-8")
    else:
        if not value and key in SECRETS:
            layers.problems.append(f"{name}_FILE: {file} is empty")
        _set(layers, key, value, f"{name}_FILE")
        layers.files[key] = file
        layers.from_text.add(key)


def _read_value(file: Path) -> str:
    return file.read_text(encoding="utf-8").rstrip("\r\n")


def _set(layers: _Layers, key: str, value: Any, origin: str) -> None:
    """Put one dotted key over what is there; a table that the file spoilt stays a problem of its own."""
    *tables, last = key.split(".")
    at = layers.values
    for table in tables:
        below = at.setdefault(table, {})
        if not isinstance(below, dict):
            return
        at = below
    at[last] = value
    layers.origin[key] = origin
    layers.from_text.discard(key)
    layers.files.pop(key, None)


def _from_origin(problem: str, layers: _Layers) -> str:
    """Name the variable or flag that a problem's key came from."""
    for key, origin in layers.origin.items():
        if problem.startswith((f"{key}:", f"{key} ")):
            return f"{origin} ({key}){problem[len(key) :]}"
    return problem


def _table(kind: Any, raw: Any, path: str, layers: _Layers) -> Any:
    """
    Build one Struct, noting every problem.

    A broken value becomes the default, or None where there is none, so that the checks of relations
    can go on; the result is used only when there were no problems.
    """
    if not isinstance(raw, dict):
        layers.problems.append(f"{path} must be a table, got {_got(raw)}")
        raw = {}
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    for key in raw:
        if key not in fields:
            layers.problems.append(_unknown(path, key, fields))
    values = {}
    for name, spec in fields.items():
        at = _at(path, name)
        if name in raw:
            values[name] = _value(spec.type, raw[name], at, layers)
        elif spec.required:
            layers.problems.append(f"{at} is missing")
            values[name] = None
    return kind(**{n: v for n, v in values.items() if v is not None or fields[n].required})


def _value(kind: Any, raw: Any, path: str, layers: _Layers) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _table(kind, raw, path, layers)
    inner = get_args(kind)[-1] if get_origin(kind) in (list, dict) else None
    if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
        return _leaf(kind, raw, path, layers)
    if get_origin(kind) is dict and isinstance(raw, dict):
        return {name: _table(inner, entry, _at(path, name), layers) for name, entry in raw.items()}
    if get_origin(kind) is list and isinstance(raw, list):
        return [_table(inner, entry, _entry(path, i, entry), layers) for i, entry in enumerate(raw)]
    shape = f"[[{path}]] tables" if get_origin(kind) is list else f"tables [{path}.<NAME>]"
    layers.problems.append(f"{path} must be written as {shape}, got {_got(raw)}")
    return None


def _leaf(kind: Any, raw: Any, path: str, layers: _Layers) -> Any:
    try:
        return msgspec.convert(raw, kind, strict=path not in layers.from_text)
    except msgspec.ValidationError:
        label = f"{layers.origin[path]} ({path})" if path in layers.origin else path
        got = type(raw).__name__ if path in SECRETS else _got(raw)
        layers.problems.append(f"{label} must be {_expected(kind)}, got {got}{_near(kind, raw)}")
        return None


def _at(path: str, key: str) -> str:
    if path.endswith(('"', "]")):
        return f"{path}: {key}"
    return f"{path}.{key}" if path else key


def _entry(path: str, index: int, entry: Any) -> str:
    """Name an entry of an array by its own name, or its table, or its place."""
    name = entry.get("name", entry.get("table")) if isinstance(entry, dict) else None
    return f'{path} "{name}"' if isinstance(name, str) and name else f"{path}[{index}]"


@functools.cache
def _all_keys() -> tuple[str, ...]:
    """Name every key of a table, dotted: one that stands in the wrong table is known all the same."""
    fields = msgspec.structs.fields(Config)
    tables = [field for field in fields if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)]
    return tuple(f"{table.name}.{inner}" for table in tables for inner in table.type.__struct_fields__)


def _unknown(path: str, key: str, known: Iterable[str]) -> str:
    elsewhere = [name for name in _all_keys() if name.rpartition(".")[2] == key]
    near = f", did you mean {elsewhere[0]}?" if elsewhere else suggest.nearest(key, known)
    if path.endswith(('"', "]")):
        return f"{path}: unknown key {key}{near}"
    return f"unknown key {_at(path, key)}{near}"


def _got(raw: Any) -> str:
    text = "true" if raw is True else "false" if raw is False else repr(raw)
    return text if len(text) <= _GOT_MAX else text[: _GOT_MAX - 1] + "…"


def _near(kind: Any, raw: Any) -> str:
    info = msgspec.inspect.type_info(kind)
    if not isinstance(info, msgspec.inspect.LiteralType) or not isinstance(raw, str):
        return ""
    near = suggest.nearest(raw, [str(v) for v in info.values])
    return near if near.startswith(",") else ""


def _expected(kind: Any) -> str:
    """Say in words what a type and its bounds ask for."""
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.IntType() as info:
            return f"an integer{_bounds(info)}"
        case msgspec.inspect.FloatType() as info:
            return f"a number{_bounds(info)}"
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return "a text" + (f" of {low or 0} to {high} characters" if high is not None else "")
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case msgspec.inspect.BoolType():
            return "true or false"
        case _:
            return "a list of texts"


def _bounds(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    if info.gt is not None:
        return f" above {info.gt:g} and at most {info.le:g}"
    return "" if info.ge is None else f" from {info.ge} to {info.le}"
