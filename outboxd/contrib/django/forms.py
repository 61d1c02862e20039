"""What the pages of the admin ask for: names and numbers as the command line takes them, which are checked there."""

from __future__ import annotations

from typing import Any

from django import forms

from outboxd import choose, errors
from outboxd.switching import By


class Given(forms.Form):
    """Texts, none of which must be given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for field in self.fields.values():
            field.required = False

    def given(self) -> dict[str, str | None]:
        """
        Return what was typed; None where nothing was.

        Raises:
            UsageError: A text that cannot be one.
        """
        if not self.is_valid():
            wrong = [f"{name}: {' '.join(map(str, said))}" for name, said in self.errors.items()]
            raise errors.UsageError("; ".join(wrong))
        return {name: value or None for name, value in self.cleaned_data.items()}


class _Exact(forms.CharField):
    """A text whose blanks count: an identifier may begin or end with some."""

    def __init__(self, **options: Any) -> None:
        super().__init__(strip=False, **options)


class _Place(Given):
    outbox = _Exact()
    scope = _Exact(help_text="Of a shard: name or number.")
    shard = _Exact(help_text="Its identifier.")
    region = _Exact(help_text="Where the outbox shards by region.")
    category = _Exact(help_text="Name or number.")

    def given(self) -> dict[str, str | None]:
        """Return what was typed; beside a scope, an empty identifier is one, which a shard of texts may have."""
        given = super().given()
        if given["scope"] is not None and self.data.get("shard") == "":
            given["shard"] = ""
        return given


class MessagesForm(_Place):
    """Which messages are listed."""

    object = _Exact(help_text="Its identifier.")
    before = forms.IntegerField(min_value=1, max_value=2**63 - 1, help_text="Only messages with a lower id.")


class _Why(Given):
    reason = forms.CharField()
    lasts = forms.CharField(label="For", help_text="90s, 15m, 2h, 3d. Nothing: until somebody ends it.")

    def by(self, author: str) -> By:
        """
        Tell who does it, why, and for how long.

        Raises:
            UsageError: The duration is none.
        """
        given = self.given()
        lasts = given["lasts"]
        expires = None if lasts is None else choose.parse_duration(lasts, "the duration")
        return By(author=author, reason=given["reason"], expires=expires)


class PauseForm(_Place, _Why):
    """What is paused: a shard, a category or an outbox."""

    field_order = ("scope", "shard", "region", "category", "outbox", "reason", "lasts")


class ResumeForm(_Why):
    """How a pause is ended."""
