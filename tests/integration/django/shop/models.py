from __future__ import annotations

from django.db import models


class Plain(models.Model):
    """A model that writes no messages by itself."""

    slug = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"


EVERY = [Plain]
