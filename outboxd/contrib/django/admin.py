"""
Pages of Django's admin: where messages wait and what keeps them there, the messages, pauses.

They ask what the command line asks, by connections of outboxd's own, as the role of its configuration: what a user may
do is said by the permissions `outboxd.view_outbox` and `outboxd.change_pause`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, router, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from outboxd import errors, switching
from outboxd.contrib.django import answers, configuration
from outboxd.contrib.django.forms import MessagesForm, PauseForm, ResumeForm
from outboxd.contrib.django.models import Outbox

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Outbox]
else:
    _ModelAdmin = admin.ModelAdmin

TROUBLE = (errors.OutboxdError, ImproperlyConfigured)
"""What is said on the page instead of an answer."""


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
            path("<alias>/messages/<int:number>/", self._guarded(self.show_message), name="outboxd_message"),
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
                shown |= answers.ask(alias, "reader", answers.look)
            except TROUBLE as exc:
                shown["trouble"] = exc
            for row in shown.get("off", ()):
                row["resume"] = row["id"] and self._url("resume", alias, row["id"])
            for outbox in shown.get("outboxes", ()):
                outbox["messages"] = self._url("messages", alias, given={"outbox": outbox["name"]})
            for row in (*shown.get("stuck", ()), *shown.get("shards", ())):
                shard = answers.shard_of(row)
                row |= {
                    "messages": self._url("messages", alias, given={"outbox": row["outbox"], **shard}),
                    "pause": self._url("pause", alias, given=shard),
                }
            databases.append(shown)
        return self._page(request, "overview", "Outboxes", databases=databases)

    def list_messages(self, request: HttpRequest, alias: str) -> HttpResponse:
        """List messages, newest first, without their payloads."""
        form = MessagesForm(request.GET)
        shown: dict[str, Any] = {"form": form, "bound": answers.BOUNDS.object_rows}
        try:
            given = form.given()
            found = answers.ask(
                alias, "reader", lambda connection, config: answers.list_messages(connection, config, given)
            )
            for row in found.rows:
                row["url"] = self._url("message", alias, row["id"], given={"outbox": found.outbox})
            shown |= {"found": found, "before": given["before"]}
            if found.further is not None:
                kept = {name: value for name, value in given.items() if value is not None}
                shown["older"] = "?" + urlencode({**kept, "before": found.further})
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "messages", f"Messages of {alias}", **shown)

    def show_message(self, request: HttpRequest, alias: str, number: int) -> HttpResponse:
        """Show one message, with its payload."""
        shown: dict[str, Any] = {}
        name = request.GET.get("outbox")
        try:
            row = answers.ask(
                alias, "reader", lambda connection, config: answers.find_message(connection, config, name, number)
            )
            given = {"outbox": row["outbox"], **answers.shard_of(row)}
            shown = {"message": row, "shard": self._url("messages", alias, given=given)}
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "message", f"Message {number}", **shown)

    def pause(self, request: HttpRequest, alias: str) -> HttpResponse:
        """Ask what is to be paused, and pause it."""
        form = PauseForm(_posted(request)) if request.method == "POST" else PauseForm(initial=request.GET.dict())
        shown: dict[str, Any] = {"form": form, "act": "Pause", "about": f"Database {alias}. Name one thing."}
        try:
            if request.method == "POST":
                given, by = form.given(), form.by(str(request.user.get_username()))
                rows = answers.ask(
                    alias, "operator", lambda connection, config: answers.pause(connection, config, given, by)
                )
                for row in rows:
                    said = f"paused: {switching.subject(row)}, {switching.origin(row)}"
                    self._note(request, row["id"], said, self._url("resume", alias, row["id"]))
                return HttpResponseRedirect(self._url("outbox_changelist"))
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "form", "Pause", **shown)

    def resume(self, request: HttpRequest, alias: str, number: int) -> HttpResponse:
        """Ask why a pause is ended, or for how long, and end it."""
        form = ResumeForm(request.POST if request.method == "POST" else None)
        shown: dict[str, Any] = {"form": form, "act": "Resume"}
        try:
            row = answers.ask(
                alias, "reader", lambda connection, config: answers.find_pause(connection, config, number)
            )
            shown["about"] = about = f"{switching.subject(row)}, {switching.origin(row)}"
            if request.method == "POST":
                by = form.by(str(request.user.get_username()))
                answers.ask(
                    alias, "operator", lambda connection, config: answers.resume(connection, config, number, by)
                )
                lasts = f" for {by.expires}" if by.expires else ""
                because = f"; because: {by.reason}" if by.reason else ""
                self._note(request, number, f"resumed{lasts}: {about}{because}")
                return HttpResponseRedirect(self._url("outbox_changelist"))
        except TROUBLE as exc:
            shown["trouble"] = exc
        return self._page(request, "form", f"Resume: pause {number}", **shown)

    def _note(self, request: HttpRequest, number: int, said: str, undo: str = "") -> None:
        """Tell the user, and the admin's own log: of a pause that has ended there is no other trace."""
        messages.success(request, format_html('{}. <a href="{}">Resume</a>', said, undo) if undo else said)
        try:
            with transaction.atomic(using=router.db_for_write(LogEntry)):
                self.log_change(request, Outbox(pk=number), said)
        except DatabaseError as exc:  # what was asked for is done, in a transaction of its own
            messages.warning(request, f"it is done, but the admin's log has no entry of it: {exc}")

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
            "trouble": _plain(shown.get("trouble")),
        }
        return TemplateResponse(request, f"admin/outboxd/{template}.html", context)


def _may_change(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm("outboxd.change_pause"))


def _posted(request: HttpRequest) -> dict[str, str]:
    """Return what was typed; but what a link has given, and only a browser has changed, is as the link has it."""
    posted = {name: str(value) for name, value in request.POST.items()}
    given = {name: str(value) for name, value in request.GET.items() if name in posted}
    return posted | {name: value for name, value in given.items() if _in_one_line(value) == _in_one_line(posted[name])}


def _in_one_line(text: str) -> str:
    """Take line breaks away, as browsers do from fields that have one line."""
    return re.sub("[\r\n]", "", text)


def _plain(exc: Exception | None) -> Exception | None:
    """Take the dashes of options away: here they are fields."""
    if isinstance(exc, errors.UsageError | errors.InvalidOutboxError):
        return errors.UsageError(re.sub("--(?=[a-z])", "", str(exc)), hint=exc.hint)
    return exc
