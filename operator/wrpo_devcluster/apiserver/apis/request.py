"""Identity and options that a request carries through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

MASTERS = "system:masters"
AUTHENTICATED = "system:authenticated"


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated identity."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def privileged(self) -> bool:
        """True for members of system:masters, to whom no rule applies."""
        return MASTERS in self.groups


ADMIN = User("admin", (MASTERS, AUTHENTICATED))


@dataclass(slots=True)
class Context:
    """Options of one write, and the warnings for the headers of its reply."""

    user: User
    manager: str
    dry_run: bool = False
    field_validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Add a warning to the reply, unless it has the same one already."""
        if text not in self.warnings:
            self.warnings.append(text)
