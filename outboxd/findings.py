"""What a check has found, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "info", "warning", "error"]
_ORDER: tuple[Level, ...] = ("ok", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One result of a check.

    Attributes:
        subject: What it is about: `configuration`, `outbox region` …
        remedy: What to do; SQL where SQL does it. Several lines are several statements.
        exit_code: Of an error: 78, or 69 when the database cannot be reached.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""
    exit_code: int = 78

    def as_json(self) -> dict[str, Any]:
        """Return it without the exit code, which is the whole check's."""
        return {key: value for key, value in asdict(self).items() if key != "exit_code"}


def exit_code(findings: list[Finding]) -> int:
    """Return 0 without errors; 69 when a database out of reach is among them; else 78."""
    return min((f.exit_code for f in findings if f.level == "error"), default=0)


def lines(findings: list[Finding]) -> list[str]:
    """Write findings as text, errors last, where the eye ends up; then a line that counts."""
    by_level = sorted(findings, key=lambda finding: _ORDER.index(finding.level))
    return [*(line for finding in by_level for line in lines_of(finding)), count(findings) or "everything is in order"]


def lines_of(finding: Finding) -> list[str]:
    """Write one finding as text: what it says, then what to do after `->`."""
    first, *rest = finding.text.splitlines() or [""]
    shown = [f"{finding.level:<8} {finding.subject}: {first}", *(f"{'':8} {line}" for line in rest)]
    return shown + [f"{'':8} -> {line}" for line in finding.remedy.splitlines()]


def count(findings: list[Finding]) -> str:
    """Say how many errors and warnings there are; empty when there is neither."""
    counts = [sum(f.level == level for f in findings) for level in ("error", "warning")]
    named = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in zip(counts, ("error", "warning"), strict=True)]
    return ", ".join(named) if any(counts) else ""
