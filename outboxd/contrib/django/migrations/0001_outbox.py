"""Permissions to look at outboxes, and to pause and resume; no table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """As `makemigrations` writes it."""

    initial = True
    operations = (
        migrations.CreateModel(
            "Outbox",
            [("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))],
            options={
                "managed": False,
                "base_manager_name": "objects",
                "default_permissions": ("view",),
                "permissions": (("change_pause", "Can pause and resume"),),
                "verbose_name_plural": "outboxes",
            },
        ),
    )
