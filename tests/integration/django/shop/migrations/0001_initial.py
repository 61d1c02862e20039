from django.db import migrations, models

ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    initial = True
    operations = (
        migrations.CreateModel("Account", [("id", ID.clone()), ("slug", models.CharField(max_length=20))]),
        migrations.CreateModel("Organization", [("id", ID.clone())]),
        migrations.CreateModel("Plain", [("id", ID.clone()), ("slug", models.CharField(max_length=20))]),
        migrations.CreateModel(
            "Member",
            [
                ("id", ID.clone()),
                ("slug", models.CharField(max_length=20)),
                ("seen", models.IntegerField(default=0)),
                ("organization", models.ForeignKey("shop.organization", models.CASCADE, related_name="members")),
            ],
        ),
        migrations.CreateModel(
            "Team",
            [
                ("id", ID.clone()),
                ("number", models.IntegerField(default=0)),
                (
                    "organization",
                    models.ForeignKey("shop.organization", models.SET_NULL, null=True, related_name="teams"),
                ),
            ],
        ),
    )
