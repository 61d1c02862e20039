"""docs/producers.md, what it says of Django: it is run, block by block."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.apps import apps

from tests.integration.django.shop.models import Plain

if TYPE_CHECKING:
    from tests.integration.django.conftest import Database

PAGE = (Path(__file__).parents[3] / "docs" / "producers.md").read_text("utf-8")
BLOCKS = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "django" in block]


def test_what_stands_there_runs(db: Database) -> None:
    module: Any = types.ModuleType("tests.integration.django.shop.documented")
    module.Member = Plain
    sys.modules[module.__name__] = module
    for block in BLOCKS:
        exec(
            compile(block.replace("MEMBER_UPDATE", "TEAM"), "docs/producers.md", "exec", dont_inherit=True),
            vars(module),
        )
    del sys.modules[module.__name__]
    for name in ("employee", "contractor"):
        del apps.all_models["shop"][name]
    apps.clear_cache()

    member = Plain.objects.create(slug="ada")
    member.organization_id = 7  # type: ignore[attr-defined]
    module.rename_in_django(member, "grace")
    assert Plain.objects.get().slug == "grace"
    assert module.HiringTest.test_others_hear_of_it
    assert module.Employee(slug="ada").outbox_payload() == {"slug": "ada"}
    assert db.objects == []
