"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Timing never decides a test: a busy machine draws examples slowly.
settings.register_profile("wrpo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wrpo")
