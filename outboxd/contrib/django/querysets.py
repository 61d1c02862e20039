"""The manager of producing models: what changes many rows at once writes a message for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models

from outboxd.contrib.django import messages

if TYPE_CHECKING:
    from outboxd.producer.context import OutboxContext


class OutboxProducingQuerySet(models.QuerySet[Any]):
    """
    Writes the messages of all rows by one statement, in the transaction of the change.

    `update` reads the rows before and after: for very many of them, triggers (`capture = true`) cost far less.
    """

    def bulk_create(
        self,
        objs: Iterable[Any],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        *arguments: Any,
        **options: Any,
    ) -> list[Any]:
        """
        Insert rows as Django does.

        Raises:
            OutboxContextError: With `ignore_conflicts` or `update_conflicts`, where nobody tells which rows were
                written.
        """
        if ignore_conflicts or update_conflicts:
            raise messages.refused(self.model, "bulk_create with conflicts", "which rows were written is not known")
        with self._context() as outbox:
            made: list[Any] = super().bulk_create(objs, batch_size, False, False, *arguments, **options)
            outbox.save_many(message for row in made for message in messages.of_write(None, row))
        return made

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None = None) -> int:
        """Update rows as Django does; it comes to `update`, batch by batch."""
        with self._context():
            return super().bulk_update(objs, fields, batch_size)

    def update(self, **kwargs: Any) -> int:
        """
        Update rows as Django does.

        Raises:
            OutboxContextError: The primary key would be changed.
        """
        if self.query.is_sliced or self.query.combinator:
            return super().update(**kwargs)  # which refuses
        messages.refuse_key(self.model, kwargs)
        if not messages.may_matter(self.model, kwargs):
            return super().update(**kwargs)
        self._for_write = True
        with self._context() as outbox:
            rows = self.model._base_manager.using(self.db)
            matching = self.order_by().values("pk")
            before = {row.pk: row for row in rows.select_for_update().filter(pk__in=matching).order_by("pk")}
            if not before:
                return 0
            changed = models.QuerySet.update(self.filter(pk__in=list(before)), **kwargs)
            after = rows.filter(pk__in=list(before)).order_by("pk")
            outbox.save_many(message for row in after for message in messages.of_write(before[row.pk], row))
        self._result_cache = None
        return changed

    update.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete rows, and what hangs on them, as Django does."""
        self._for_write = True
        with self._context() as outbox, messages.gathering(self.db) as gathered:
            deleted = super().delete()
            outbox.save_many(gathered)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def bulk_delete(self, objs: Sequence[Any]) -> int:
        """Delete these objects; returns how many rows there were, with what hung on them."""
        return self.filter(pk__in=[each.pk for each in objs]).delete()[0]

    bulk_delete.alters_data = True  # type: ignore[attr-defined]

    def _raw_delete(self, using: str | None) -> int:
        """Refuse: nobody would be told. Django itself does not come here, because it has to send `pre_delete`."""
        raise messages.refused(self.model, "_raw_delete", "it does not tell what it deletes")

    def _context(self) -> OutboxContext:
        self._for_write = True
        return messages.context_of(self.model, self.db)


_Manager: Any = models.Manager.from_queryset(OutboxProducingQuerySet)


class OutboxProducingManager(_Manager):  # type: ignore[misc]
    """The manager that a producing model must have; see `OutboxProducingQuerySet`."""
