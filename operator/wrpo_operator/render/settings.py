"""Settings of the installation for rendering: images, identity, progress endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wrpo_engine import __version__


@dataclass(frozen=True, slots=True)
class StageCommand:
    """A stand-in for a stage, which runs instead of the engine in tests of an installation."""

    command: tuple[str, ...]
    image: str | None = None
    """None: the stage's image."""


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """Settings of the installation, from the chart's values."""

    sampler_image: str = f"wrpo/sampler:{__version__}"
    """Image of sampling and evaluation if spec.images.sampler is unset."""
    trainer_image: str = f"wrpo/trainer:{__version__}"
    """Image of all other stages if spec.images.trainer is unset."""
    image_pull_policy: str | None = None
    """None: the cluster's default."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets, before those of the spec."""
    service_account: str = "wrpo-stage"
    """ServiceAccount of all stages; it has no rights and its API token is not mounted."""
    progress_url: str | None = None
    """The operator's progress endpoint, e.g. https://wrpo-operator.wrpo-system.svc:8081. None: no progress posts."""
    progress_ca: str | None = None
    """PEM of the authority that signed the endpoint's certificate. None: the authorities that the images trust."""
    progress_audience: str = "wrpo.ai/progress"
    """Audience of the token that progress posts carry."""
    run_as_user: int = 65532
    """User, group and volume group of all stages, the same as in the images."""
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """Environment of all stages; spec.env takes precedence."""
    commands: Mapping[str, StageCommand] = field(default_factory=dict)
    """Stand-in commands by kind of stage."""
