"""The manager of producing models: what changes many rows at once writes a message for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models

from outboxd.contrib.django import messages, writing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from outboxd.producer.draft import NewMessage


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
        with self._together():
            made: list[Any] = super().bulk_create(objs, batch_size, False, False, *arguments, **options)
            rows = messages.as_stored(made, self.model, self.db)
            written = (message for row in rows for message in messages.of_write(None, row))
            writing.write(self.model, self.db, written)
        return made

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None = None) -> int:
        """Update rows as Django does; it comes to `update`, batch by batch."""
        with self._together():
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
        told = [each for each in messages.producing(self.model) if messages.may_matter(each, kwargs)]
        if not told:
            return super().update(**kwargs)
        with self._together():
            return self._update_and_tell(told, kwargs)

    def _update_and_tell(self, told: Sequence[Any], values: dict[str, Any]) -> int:
        """Update the rows that match now, and tell of them in each of these models' tables."""
        matching = self.order_by().values("pk")
        matching.query.distinct, matching.query.distinct_fields = False, ()  # an UPDATE of Django's knows none
        rows = list(messages.locked(self.model, self.db).filter(pk__in=matching).order_by("pk"))
        before = {model: self._before(model, rows) for model in told}
        changed = 0
        for keys in messages.batches([row.pk for row in rows]):
            changed += models.QuerySet.update(self.filter(pk__in=keys), **values)
        for model in told if rows else ():
            writing.write(model, self.db, self._changes(model, before[model]))
        self._result_cache = None
        return changed

    def _before(self, model: Any, rows: Sequence[Any]) -> dict[Any, Any]:
        """Return these rows, or those of a parent's table that belong to them, by their keys."""
        if model is not self.model:
            rows = list(messages.of_keys(model, self.db, [row._get_pk_val(model._meta) for row in rows]))
        return {row.pk: row for row in rows}

    def _changes(self, model: Any, before: dict[Any, Any]) -> Iterator[NewMessage]:
        for row in messages.of_keys(model, self.db, list(before)):
            yield from messages.of_write(before[row.pk], row)

    update.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete rows, and what hangs on them, as Django does."""
        self._for_write = True
        with writing.deleting(self.model, self.db):
            self._hold()
            return super().delete()

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def _hold(self) -> None:
        """Lock what matches: a row that somebody moved after it was read would not be told of where it is deleted."""
        if self.query.combinator:
            return  # which Django refuses
        matching = self.order_by().values("pk")
        matching.query.select_for_update = False
        rows = messages.stored(self.model, self.db).select_for_update().filter(pk__in=matching).order_by("pk")
        if not self.model._meta.parents:  # else whole rows, so that the tables of parents are joined and locked
            rows = rows.values_list("pk")
        for _ in rows.iterator():
            pass

    def bulk_delete(self, objs: Sequence[Any]) -> int:
        """Delete these objects; returns how many rows there were, with what hung on them."""
        deleted = 0
        with self._together():
            for keys in messages.batches([each.pk for each in objs]):
                deleted += self.filter(pk__in=keys).delete()[0]
        return deleted

    bulk_delete.alters_data = True  # type: ignore[attr-defined]

    def _raw_delete(self, using: str | None) -> int:
        """Refuse: nobody would be told. Django itself does not come here, because it has to send `pre_delete`."""
        raise messages.refused(self.model, "_raw_delete", "it does not tell what it deletes")

    def _together(self) -> AbstractContextManager[None]:
        self._for_write = True
        return writing.together(self.model, self.db)


_Manager: Any = models.Manager.from_queryset(OutboxProducingQuerySet)


class OutboxProducingManager(_Manager):  # type: ignore[misc]
    """The manager that a producing model must have; see `OutboxProducingQuerySet`."""
