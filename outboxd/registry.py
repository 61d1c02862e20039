"""
Scopes, categories and receivers: what a number in a row means and who wants it.

`@receiver` only marks a function; nothing is registered at import. `build` collects the marked
functions of the configured modules and returns one immutable registry, which `main` passes down.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from outboxd import errors, suggest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from outboxd.config import Config, ModelConfig
    from outboxd.model import Message

    Function = TypeVar("Function", bound=Callable[[Message], Any])
else:
    Function = TypeVar("Function")

_MARK = "__outboxd_categories__"
_TABLES = "__outboxd_tables__"


def receiver(*categories: str) -> Callable[[Function], Function]:
    """
    Mark a function as a receiver of one or more categories.

    `async def` receivers run in the event loop, plain `def` ones in worker threads. A receiver
    that returns accepts the message; one that raises has it tried again later. `RetryLater`
    chooses the delay, `Discard` buries the message.
    """
    if not categories or not all(isinstance(name, str) for name in categories):
        raise TypeError('@receiver needs the name of a category: @receiver("ORGANIZATION_MEMBER_UPDATE")')

    def mark(function: Function) -> Function:
        setattr(function, _MARK, (*getattr(function, _MARK, ()), *categories))
        return function

    return mark


rows_now: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("outboxd_rows")
"""Rows of source tables, by table, that the delivery under way is about; None where there is none."""


def replicates(*tables: str) -> Callable[[type], type]:
    """
    Mark a class as the receiver of the messages about the rows of one or more source tables, those of a `[[model]]`.

    It is made without arguments, once, and has two methods: `async handle_async_replication(self, row, message)` is
    called with the row as it is now, a mapping of its columns, when the object is there; and
    `async handle_async_deletion(self, identifier, message)` when it is not, or not among the model's rows any more.
    What they raise means what it means for a receiver.
    """
    if not tables or not all(isinstance(table, str) for table in tables):
        raise TypeError('@replicates needs the name of a source table: @replicates("organizationmember")')

    def mark(class_: type) -> type:
        for method in ("handle_async_replication", "handle_async_deletion"):
            if not inspect.iscoroutinefunction(getattr(class_, method, None)):
                raise TypeError(f"@replicates: {class_.__qualname__} has no `async def {method}`")
        setattr(class_, _TABLES, (*vars(class_).get(_TABLES, ()), *tables))
        return class_

    return mark


@dataclass(frozen=True, slots=True)
class Receiver:
    """One registered function; `is_async` decides where it runs."""

    name: str
    call: Callable[[Message], Awaitable[None] | None]
    is_async: bool


@dataclass(frozen=True, slots=True)
class Category:
    """A category with everything that decides how its messages are treated."""

    name: str
    value: int
    scope: str
    coalesce: bool = True
    blocks: bool = True
    attempts_max: int = 0
    receivers: tuple[Receiver, ...] = ()
    sources: tuple[ModelConfig, ...] = ()
    """Models whose rows its receivers want; of one table, at most one for each outbox."""


@dataclass(frozen=True, slots=True)
class Registry:
    """
    Categories and scopes by number. Receivers hang on their category, in order of registration.

    `apart` holds the categories that do not coalesce.
    """

    categories: dict[int, Category] = field(default_factory=dict)
    scopes: dict[int, str] = field(default_factory=dict)

    apart: frozenset[int] = frozenset()

    @property
    def receiver_count(self) -> int:
        """How many (category, receiver) pairs there are; 0 means nothing can be delivered."""
        return sum(len(c.receivers) for c in self.categories.values())

    def category(self, name: str) -> Category:
        """
        Find a category by its name.

        Raises:
            UsageError: No such category; names the nearest.
        """
        for category in self.categories.values():
            if category.name == name:
                return category
        known = [c.name for c in self.categories.values()]
        raise errors.UsageError(f"unknown category {name}{suggest.nearest(name, known)}")


def build(config: Config, functions: list[Callable[..., Any]]) -> Registry:
    """
    Join the configuration's categories with marked receiver functions.

    Raises:
        ConfigError: A receiver is for a category that the configuration does not have, or is a generator.
    """
    wanted: dict[str, list[Receiver]] = {name: [] for name in config.categories}
    problems = []
    sources: dict[str, list[ModelConfig]] = {name: [] for name in config.categories}
    for function in functions:
        problems += _replicas(config, function, wanted, sources)
        for name in getattr(function, _MARK, ()):
            label = f"{function.__module__}.{_name(function)}"
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                problems.append(f"receiver {label} is a generator: its body would never run, take the yield out of it")
            elif name in wanted:
                wanted[name].append(Receiver(label, function, _is_async(function)))
            else:
                problems.append(
                    f"receiver {label} is for the unknown category {name}"
                    f"{suggest.nearest(name, list(config.categories))}"
                )
    if problems:
        raise errors.ConfigError(problems)
    categories = {
        c.value: Category(
            name=name,
            value=c.value,
            scope=c.scope,
            coalesce=c.coalesce,
            blocks=c.on_error == "block",
            attempts_max=c.max_attempts,
            receivers=tuple(wanted[name]),
            sources=tuple(sources[name]),
        )
        for name, c in config.categories.items()
    }
    apart = frozenset(c.value for c in categories.values() if not c.coalesce)
    return Registry(categories, {s.value: name for name, s in config.scopes.items()}, apart)


def _replicas(
    config: Config,
    marked: Any,
    wanted: dict[str, list[Receiver]],
    sources: dict[str, list[ModelConfig]],
) -> list[str]:
    """Add the receivers that a class marked with `@replicates` stands for; returns what is wrong with them."""
    tables = _replicated(marked)
    if not tables:
        return []
    label = f"{marked.__module__}.{_name(marked)}"
    try:
        instance = marked()
    except Exception as exc:  # whatever a user's class raises is the user's to see
        return [f"{label} cannot be made without arguments: {_own_error(exc)}"]
    problems = []
    for table in dict.fromkeys(tables):
        models = [model for model in config.model if model.table == table]
        if not models:
            near = suggest.nearest(table, [model.table for model in config.model])
            problems.append(f"{label} replicates {table}, which is no [[model]]{near}")
        if len({(model.category, model.outbox) for model in models}) < len(models):
            problems.append(
                f"{label} replicates {table}, of which two [[model]] write one category into one outbox:"
                " nobody could tell which of them a message is about"
            )
        for category in dict.fromkeys(model.category for model in models):
            wanted[category].append(Receiver(label, _replication(instance, table), is_async=True))
            own = [model for model in models if model.category == category]
            sources[category] += [model for model in own if model not in sources[category]]
    return problems


def _replicated(marked: Any) -> tuple[str, ...]:
    """Return the tables that a class itself is marked with: a class derived from it is another receiver."""
    tables: tuple[str, ...] = getattr(marked, "__dict__", {}).get(_TABLES, ())
    return tables


def _replication(instance: Any, table: str) -> Callable[[Message], Awaitable[None]]:
    def call(message: Message) -> Awaitable[None]:
        row = rows_now.get()[table]
        called: Awaitable[None] = (
            instance.handle_async_deletion(message.object_identifier, message)
            if row is None
            else instance.handle_async_replication(row, message)
        )
        return called

    return call


def assemble(config: Config, folder: Path | None) -> Registry:
    """
    Import the receivers as the daemon would, and build; for commands that only look.

    Whatever a user's module prints when it is imported goes to stderr: it must not end up in a document of ours.

    Args:
        config: The configuration.
        folder: As for `load_receivers`.

    Raises:
        ConfigError: As `load_receivers` and `build`.
    """
    with contextlib.redirect_stdout(sys.stderr):
        functions = load_receivers(config.receivers.modules, folder)
    return build(config, functions)


def _name(function: Callable[..., Any]) -> str:
    """Name a function, or an object that is called like one."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  an object with `async def __call__`
    )


def load_receivers(modules: list[str], folder: Path | None) -> list[Callable[..., Any]]:
    """
    Import the receiver modules and collect their marked functions, in order of definition.

    Args:
        modules: Dotted names, as in `[receivers] modules`.
        folder: The configuration file's folder; put on `sys.path` first.

    Raises:
        ConfigError: A module does not import; shows the module's own error.
    """
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    found: list[Callable[..., Any]] = []
    problems = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # whatever a user's module raises is the user's to see
            problems.append(f"receivers.modules: {name} does not import: {_own_error(exc)}")
            continue
        found += [f for f in _marked(module) if f not in found]
    if problems:
        raise errors.ConfigError(problems)
    return found


def _marked(module: ModuleType) -> list[Callable[..., Any]]:
    return [v for v in vars(module).values() if callable(v) and (hasattr(v, _MARK) or _replicated(v))]


def _own_error(exc: BaseException) -> str:
    """Show the error of the user's module with its place, without the frames of the import system."""
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if "importlib" not in f.filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(exc).__name__}: {exc}{place}"
