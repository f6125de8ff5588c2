"""For every test: hypothesis without wall-clock limits, because the cores are shared with real processes."""

from hypothesis import HealthCheck, settings

settings.register_profile("roomful", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("roomful")
