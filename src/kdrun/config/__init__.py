"""The experiment's config: its schema, published mixes written out, checks, and reading it with every error at once."""

import kdrun.data
import kdrun.losses
import kdrun.models  # noqa: F401 (importing the families registers their components)
from kdrun.config.mixes import Method, published_methods
from kdrun.config.parts import ControlConfig, Experiment, MethodConfig, StudentConfig, TeacherConfig
from kdrun.config.reading import Config, json_schema, read, validate

__all__ = [
    "Config",
    "ControlConfig",
    "Experiment",
    "Method",
    "MethodConfig",
    "StudentConfig",
    "TeacherConfig",
    "json_schema",
    "published_methods",
    "read",
    "validate",
]
