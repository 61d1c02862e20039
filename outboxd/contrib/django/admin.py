"""
Pages of Django's admin: where messages wait and what keeps them there, the messages, pauses.

They ask what the command line asks, by connections of outboxd's own, as the role of its configuration: what a user may
do is said by the permissions `outboxd.view_outbox` and `outboxd.change_pause`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.dateparse import parse_datetime

from outboxd import access, choose, diagnosis, errors, switching
from outboxd.contrib.django import configuration
from outboxd.contrib.django.forms import MessagesForm, PauseForm, ResumeForm
from outboxd.contrib.django.models import Outbox
from outboxd.diagnosis_display import name_of
from outboxd.producer.portal import PORTAL
from outboxd.query import fetch

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.privileges import RoleKind

    _ModelAdmin = admin.ModelAdmin[Outbox]
else:
    _ModelAdmin = admin.ModelAdmin

SHARDS = 25
MESSAGES = 50
BOUNDS = diagnosis.Bounds(object_rows=100_000)
"""Of an outbox, so many messages are searched for those of a category, a region or an object."""

TROUBLE = (errors.OutboxdError, ImproperlyConfigured)
"""What is said on the page instead of an answer."""

Row = dict[str, Any]
Result = TypeVar("Result")

_TIMES = ("oldest", "newest", "until", "next_attempt", "since", "expires_at", "date_added", "scheduled_for")


@admin.register(Outbox)
class OutboxAdmin(_ModelAdmin):
    """Stands in the admin's index as `Outboxes`; nothing there is a row of a model."""

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        """Nobody may: there is nothing to add, change or delete."""
        return False

    def has_change_permission(self, request: HttpRequest, *_: Any) -> bool:
        """Nobody may."""
        return False

    def has_delete_permission(self, request: HttpRequest, *_: Any) -> bool:
        """Nobody may."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Return the pages."""
        return [
            path("", self._guarded(self.overview), name="outboxd_outbox_changelist"),
            path("<alias>/messages/", self._guarded(self.list_messages), name="outboxd_messages"),
            path("<alias>/messages/<outbox>/<int:number>/", self._guarded(self.show_message), name="outboxd_message"),
            path("<alias>/pause/", self._guarded(self.pause, changes=True), name="outboxd_pause"),
            path("<alias>/resume/<int:number>/", self._guarded(self.resume, changes=True), name="outboxd_resume"),
        ]

    def _guarded(self, view: Callable[..., HttpResponse], *, changes: bool = False) -> Callable[..., HttpResponseBase]:
        """Let those in who may; the admin itself asks for a login, and for the token of a POST."""

        def guarded(request: HttpRequest, alias: str = "", **more: Any) -> HttpResponse:
            if not self.has_view_permission(request) or (changes and not _may_change(request)):
                raise PermissionDenied
            if not alias:
                return view(request)
            if alias not in configuration.aliases():
                raise Http404(f"no outbox is configured for a database {alias}")
            return view(request, alias, **more)

        return self.admin_site.admin_view(guarded)

    def overview(self, request: HttpRequest) -> HttpResponse:
        """Show what is switched off, what is stuck, and where most messages wait, in each database."""
        databases = []
        for alias in configuration.aliases():
            shown: dict[str, Any] = {"alias": alias, "pause": self._url("pause", alias)}
            try:
                shown |= _ask(alias, "reader", _look)
            except TROUBLE as exc:
                shown["trouble"] = exc
            for row in shown.get("off", ()):
                row["resume"] = row["id"] and self._url("resume", alias, row["id"])
            for outbox in shown.get("outboxes", ()):
                outbox["messages"] = self._url("messages", alias, given={"outbox": outbox["name"]})
            for row in (*shown.get("stuck", ()), *shown.get("shards", ())):
                shard = _shard_of(row)
                row |= {
                    "messages": self._url("messages", alias, given={"outbox": row["outbox"], **shard}),
                    "pause": self._url("pause", alias, given=shard),
                }
            databases.append(shown)
        return self._page(request, "overview", "Outboxes", databases=databases)

    def list_messages(self, request: HttpRequest, alias: str) -> HttpResponse:
        """List messages, newest first, without their payloads."""
        form = MessagesForm(request.GET)
        shown: dict[str, Any] = {"form": form, "searched": BOUNDS.object_rows}
        try:
            given = form.given()
            outbox, rows = _ask(alias, "reader", lambda connection, config: _list(connection, config, given))
            for row in rows:
                row["url"] = self._url("message", alias, outbox.name, row["id"])
            shown |= {"outbox": outbox.name, "rows": rows[:MESSAGES], "is_searched": _is_searched(given)}
            if len(rows) > MESSAGES:
                kept = {name: value for name, value in given.items() if value}
                shown["older"] = "?" + urlencode({**kept, "before": rows[MESSAGES - 1]["id"]})
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "messages", f"Messages of {alias}", **shown)

    def show_message(self, request: HttpRequest, alias: str, outbox: str, number: int) -> HttpResponse:
        """Show one message, with its payload."""
        shown: dict[str, Any] = {}
        try:
            row = _ask(alias, "reader", lambda connection, config: _find(connection, config, outbox, number))
            given = {"outbox": outbox, **_shard_of(row)}
            shown = {"message": row, "shard": self._url("messages", alias, given=given)}
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "message", f"Message {number}", **shown)

    def pause(self, request: HttpRequest, alias: str) -> HttpResponse:
        """Ask what is to be paused, and pause it."""
        form = PauseForm(request.POST) if request.method == "POST" else PauseForm(initial=request.GET.dict())
        shown: dict[str, Any] = {"form": form, "act": "Pause", "about": f"Database {alias}. Name one thing."}
        try:
            if request.method == "POST":
                given, by = form.given(), form.by(request.user.get_username())
                rows = _ask(alias, "operator", lambda connection, config: _pause(connection, config, given, by))
                for row in rows:
                    said = f"paused: {switching.subject(row)}, {switching.origin(row)}"
                    self._note(request, row["id"], said)
                return HttpResponseRedirect(self._url("outbox_changelist"))
        except TROUBLE as exc:
            shown["trouble"] = _plain(exc)
        return self._page(request, "form", "Pause", **shown)

    def resume(self, request: HttpRequest, alias: str, number: int) -> HttpResponse:
        """Ask why a pause is ended, or for how long, and end it."""
        form = ResumeForm(request.POST if request.method == "POST" else None)
        shown: dict[str, Any] = {"form": form, "act": "Resume"}
        try:
            row = _ask(alias, "reader", lambda connection, config: _find_pause(connection, config, number))
            shown["about"] = about = f"{switching.subject(row)}, {switching.origin(row)}"
            if request.method == "POST":
                by = form.by(request.user.get_username())
                _ask(alias, "operator", lambda connection, config: _resume(connection, config, number, by))
                lasts = f" for {by.expires}" if by.expires else ""
                because = f"; because: {by.reason}" if by.reason else ""
                self._note(request, number, f"resumed{lasts}: {about}{because}")
                return HttpResponseRedirect(self._url("outbox_changelist"))
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "form", f"Resume: pause {number}", **shown)

    def _note(self, request: HttpRequest, number: int, said: str) -> None:
        """Tell the user, and the admin's own log: of a pause that has ended there is no other trace."""
        messages.success(request, said)
        self.log_change(request, Outbox(pk=number), said)

    def _url(self, name: str, *arguments: Any, given: Mapping[str, Any] | None = None) -> str:
        url = reverse(f"admin:outboxd_{name}", args=arguments, current_app=self.admin_site.name)
        return f"{url}?{urlencode(given)}" if given else url

    def _page(self, request: HttpRequest, template: str, title: str, **shown: Any) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "may_change": _may_change(request),
            **shown,
        }
        return TemplateResponse(request, f"admin/outboxd/{template}.html", context)


def _may_change(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm("outboxd.change_pause"))


def _ask(alias: str, kind: RoleKind, question: Callable[[asyncpg.Connection, Config], Awaitable[Result]]) -> Result:
    """Ask the database of an alias."""
    loaded = configuration.load_of(alias)

    async def ask() -> Result:
        async with access.opened(loaded, kind, name="admin") as connection:
            return await question(connection, loaded.config)

    return PORTAL.run(ask())


async def _look(connection: asyncpg.Connection, config: Config) -> dict[str, list[Row]]:
    outboxes = config.require_outboxes()
    off = await fetch(connection, switching.switched_off_query(config), "reading pauses")
    stuck = await fetch(connection, diagnosis.stuck(config, outboxes, limit=SHARDS), "looking at stuck shards")
    shards = await fetch(connection, diagnosis.shards(config, outboxes, limit=SHARDS), "looking at shards")
    for row in off:
        row["subject"] = switching.subject(row)
    named: list[Row] = [{"name": outbox.name} for outbox in outboxes]
    return {"outboxes": named, "off": _timed(off), "stuck": _timed(stuck), "shards": _timed(shards)}


async def _list(
    connection: asyncpg.Connection, config: Config, given: Mapping[str, Any]
) -> tuple[OutboxConfig, list[Row]]:
    """Return the outbox, and one message more than a page has, if there is one."""
    if (given["scope"] is None) != (given["shard"] is None):
        raise errors.UsageError("a shard is named by its scope and its identifier")
    name = given["outbox"] or config.require_outboxes()[0].name
    outbox = choose.choose_outbox(config, name, given["region"], needs_region=given["shard"] is not None)

    async def identifier(column: str, what: str) -> Any:
        return choose.parse_identifier(given[what], await diagnosis.type_of(connection, outbox, column), what)

    shard = obj = category = None
    if given["shard"] is not None:
        shard = (choose.choose_scope(config, given["scope"]), await identifier("shard_identifier", "shard"))
    if given["object"] is not None:
        obj = await identifier("object_identifier", "object")
    if given["category"] is not None:
        category = choose.choose_category(config, given["category"])
    question = diagnosis.messages(
        config,
        outbox,
        below=given["before"],
        shard=shard,
        region=given["region"],
        category=category,
        object_identifier=obj,
        limit=MESSAGES + 1,
        payload_bytes_max=0,
        bounds=BOUNDS,
    )
    return outbox, _timed(await fetch(connection, question, "looking at messages"))


def _is_searched(given: Mapping[str, Any]) -> bool:
    """Whether something is looked for that no index knows."""
    return any(given[name] for name in ("category", "object")) or bool(given["region"] and not given["shard"])


async def _find(connection: asyncpg.Connection, config: Config, name: str, number: int) -> Row:
    outbox = choose.choose_outbox(config, name, None, needs_region=False)
    question = diagnosis.messages(config, outbox, message_id=number, limit=1)
    for row in _timed(await fetch(connection, question, "looking at a message")):
        for key in ("payload", "headers"):
            row[key] = None if row[key] is None else json.dumps(row[key], indent=2, ensure_ascii=False)
        return row
    raise errors.UsageError(f"message {number} is not in outbox {name}, or not any more")


async def _pause(connection: asyncpg.Connection, config: Config, given: dict[str, Any], by: switching.By) -> list[Row]:
    names = {name: given[name] for name in ("scope", "shard", "region", "category", "outbox")}
    target = switching.choose_target(config, **names)
    if target is None:
        raise errors.UsageError("what is to be paused?")
    targets = await switching.checked(connection, config, target)
    numbers = await switching.add_pauses(connection, config, targets, by)
    return [row for row in await switching.switched_off(connection, config) if row["id"] in numbers]


async def _find_pause(connection: asyncpg.Connection, config: Config, number: int) -> Row:
    for row in await switching.switched_off(connection, config):
        if row["id"] == number:
            return row
    raise errors.UsageError(f"there is no pause {number}, or not any more")


async def _resume(connection: asyncpg.Connection, config: Config, number: int, by: switching.By) -> None:
    if not await switching.end_pauses(connection, config, [number], by):
        raise errors.UsageError(f"pause {number} has been ended by somebody else")


def _shard_of(row: Row) -> dict[str, Any]:
    """Name a shard as the forms do."""
    shard = {"scope": row["scope_name"], "shard": row["shard_identifier"], "region": row["region_name"]}
    return {name: value for name, value in shard.items() if value is not None}


def _timed(rows: Sequence[Row]) -> list[Row]:
    """Make times of texts, so that templates show them in the user's zone, and give each shard its name."""
    for row in rows:
        row |= {name: parse_datetime(row[name]) for name in _TIMES if row.get(name)}
        if "scope_name" in row:
            row["name"] = name_of(row)
    return list(rows)


def _plain(exc: Exception) -> Exception:
    """Take the dashes of options away: here they are fields."""
    if isinstance(exc, errors.UsageError | errors.InvalidOutboxError):
        return errors.UsageError(str(exc).replace("--", ""))
    return exc
