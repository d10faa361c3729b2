"""Errors of this library. Each says the value, what is allowed and the fix."""

from __future__ import annotations

from collections.abc import Iterable


class TrlR1Error(Exception):
    """Base of every error that `trl_r1` raises on purpose."""


class ConfigurationError(TrlR1Error, ValueError):
    """A setting that cannot work, found before any weight is loaded."""


class DataError(TrlR1Error, ValueError):
    """Rows that cannot be trained or evaluated on: missing columns, gold answers no verifier can read."""


class MissingExtraError(TrlR1Error, ImportError):
    """An optional dependency that was asked for is not installed."""

    def __init__(self, what: str, *extras: str, otherwise: str = "") -> None:
        commands = " or ".join(f"`pip install 'trl-r1[{extra}]'`" for extra in extras)
        super().__init__(f"{what} is not installed. Install it with {commands}. {otherwise}".strip())
        self.extras = extras


class EngineError(TrlR1Error, RuntimeError):
    """The generation engine cannot do what was asked of it."""


def unknown(what: str, value: object, allowed: Iterable[object], fix: str = "") -> ConfigurationError:
    """Build the error for a name that is not in a list of names.

    Args:
        what (`str`): What the name stands for, such as `"domain"`.
        value (`object`): The name that was given.
        allowed (`Iterable`): The names that exist.
        fix (`str`, *optional*): A further hint.

    Returns:
        [`ConfigurationError`]: To be raised by the caller.
    """
    names = ", ".join(repr(name) for name in allowed)
    return ConfigurationError(f"Unknown {what} {value!r}. Allowed: {names}. {fix}".strip())
