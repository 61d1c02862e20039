"""Receivers: marking, importing them from the configuration's folder, and joining them with categories."""

from __future__ import annotations

import functools
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import errors, registry
from outboxd.config import CategoryConfig, Config, ScopeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = Config(
    scopes={"ACCOUNT": ScopeConfig(value=7)},
    categories={
        "UPDATED": CategoryConfig(value=1, scope="ACCOUNT", on_error="skip", max_attempts=3, coalesce=False),
        "DELETED": CategoryConfig(value=2, scope="ACCOUNT"),
    },
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules are forgotten after the test."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_generator_is_no_receiver(kind: str, folder: Path) -> None:
    write(folder, f"mod_gen_{kind[:5].strip()}", f"@receiver('UPDATED')\n{kind} yields(message):\n    yield message")
    functions = registry.load_receivers([f"mod_gen_{kind[:5].strip()}"], folder)

    with pytest.raises(errors.ConfigError, match=r"yields is a generator: its body would never run"):
        registry.build(CONFIG, functions)


def write(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(f"from outboxd.registry import receiver\n{body}\n")


def test_a_module_may_raise_anything_when_it_is_imported(folder: Path) -> None:
    write(folder, "mod_base", "class Odd(BaseException): ...\nraise Odd('on purpose')")

    with pytest.raises(errors.ConfigError, match="mod_base does not import: Odd: on purpose"):
        registry.load_receivers(["mod_base"], folder)


def test_a_receiver_needs_the_name_of_a_category() -> None:
    with pytest.raises(TypeError, match="needs the name of a category"):
        registry.receiver()
    with pytest.raises(TypeError, match="needs the name of a category"):
        registry.receiver(test_a_receiver_needs_the_name_of_a_category)  # type: ignore[arg-type]


def test_marking_leaves_the_function_as_it_is() -> None:
    def function(message: Any) -> None:
        del message

    assert registry.receiver("UPDATED")(function) is function


def test_a_category_runs_its_receivers_in_the_order_of_registration(folder: Path) -> None:
    write(
        folder,
        "mod_b",
        "@receiver('UPDATED')\ndef z(m): ...\n@receiver('UPDATED', 'DELETED')\nasync def a(m): ...",
    )
    write(folder, "mod_a", "@receiver('UPDATED')\ndef third(m): ...")

    built = registry.build(CONFIG, registry.load_receivers(["mod_b", "mod_a"], folder))

    assert [r.name for r in built.categories[1].receivers] == ["mod_b.z", "mod_b.a", "mod_a.third"]
    assert [r.is_async for r in built.categories[1].receivers] == [False, True, False]
    assert [r.name for r in built.categories[2].receivers] == ["mod_b.a"]
    assert built.receiver_count == 4


def test_two_marks_on_one_function_add_up() -> None:
    @registry.receiver("UPDATED")
    @registry.receiver("DELETED")
    def both(message: Any) -> None:
        del message

    assert registry.build(CONFIG, [both]).receiver_count == 2


def test_a_receiver_that_two_modules_import_runs_once(folder: Path) -> None:
    write(folder, "mod_x", "@receiver('UPDATED')\ndef one(m): ...")
    write(folder, "mod_y", "from mod_x import one")

    found = registry.load_receivers(["mod_x", "mod_y", "mod_x"], folder)

    assert [f.__name__ for f in found] == ["one"]


def test_an_object_with_an_async_call_is_async() -> None:
    class Sink:
        def __init__(self) -> None:
            self.__qualname__ = "sink"

        async def __call__(self, message: Any) -> None: ...

    marked = registry.receiver("UPDATED")(Sink())

    assert registry.build(CONFIG, [marked]).categories[1].receivers[0].is_async


def test_a_category_carries_what_the_configuration_says() -> None:
    built = registry.build(CONFIG, [])

    assert built.scopes == {7: "ACCOUNT"}
    assert built.categories[1] == registry.Category(
        name="UPDATED", value=1, scope="ACCOUNT", coalesce=False, blocks=False, attempts_max=3
    )
    assert built.categories[2] == registry.Category(name="DELETED", value=2, scope="ACCOUNT")
    assert built.receiver_count == 0


def test_categories_are_found_by_name_and_an_unknown_one_names_the_nearest() -> None:
    built = registry.build(CONFIG, [])

    assert built.category("DELETED").value == 2
    with pytest.raises(errors.UsageError, match=r"unknown category DELETE, did you mean DELETED\?"):
        built.category("DELETE")


def test_every_receiver_of_an_unknown_category_is_reported_at_once(folder: Path) -> None:
    write(folder, "mod_u", "@receiver('UPDATE')\ndef a(m): ...\n@receiver('DELETE')\ndef b(m): ...")
    functions = registry.load_receivers(["mod_u"], folder)

    with pytest.raises(errors.ConfigError) as caught:
        registry.build(CONFIG, functions)

    assert caught.value.problems == [
        "receiver mod_u.a is for the unknown category UPDATE, did you mean UPDATED?",
        "receiver mod_u.b is for the unknown category DELETE, did you mean DELETED?",
    ]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("import mod_that_is_not_there", "ModuleNotFoundError: No module named 'mod_that_is_not_there'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(", "SyntaxError"),
    ],
)
def test_a_module_that_does_not_import_shows_its_own_error(body: str, shown: str, folder: Path) -> None:
    write(folder, "mod_bad", body)

    with pytest.raises(errors.ConfigError) as caught:
        registry.load_receivers(["mod_bad", "mod_missing"], folder)

    first, second = caught.value.problems
    assert first.startswith(f"receivers.modules: mod_bad does not import: {shown}")
    assert second.startswith("receivers.modules: mod_missing does not import: ModuleNotFoundError")


def test_the_line_of_the_fault_is_named(folder: Path) -> None:
    write(folder, "mod_line", "\n\n1 / 0")

    with pytest.raises(errors.ConfigError, match=r"mod_line\.py:4\)"):
        registry.load_receivers(["mod_line"], folder)


def test_the_configurations_folder_comes_first_and_only_once(folder: Path) -> None:
    registry.load_receivers([], folder)
    registry.load_receivers([], folder)
    registry.load_receivers([], None)

    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_other_callables_of_a_module_are_no_receivers(folder: Path) -> None:
    write(folder, "mod_plain", "def plain(m): ...\nclass Thing: ...\nvalue = 3")

    assert registry.load_receivers(["mod_plain"], folder) == []


def test_a_wrapped_receiver_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def original(message: Any) -> None:
        del message

    @functools.wraps(original)
    def wrapper(message: Any) -> None:
        original(message)

    module = types.ModuleType("mod_wrapped")
    vars(module)["wrapper"] = registry.receiver("UPDATED")(wrapper)
    monkeypatch.setitem(sys.modules, "mod_wrapped", module)

    built = registry.build(CONFIG, registry.load_receivers(["mod_wrapped"], None))

    assert built.categories[1].receivers[0].name.endswith("original")
