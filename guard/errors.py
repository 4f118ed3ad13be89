"""Every error toolguard raises.

ToolguardError                  exit code 1
├── ConfigError                 exit code 2: an option, policy or menu the user wrote cannot be used
│   └── DatasetError            a data file or record cannot be used
├── CalibrationError            calibration cannot reach a usable result
├── ArtifactMismatch            a profile does not belong to this model, tokenizer or menu
├── UnsupportedModel            a model or template lacks what the guard must read
├── ShapeError                  two tensors that must agree do not
├── ReadoutError                a reading could not be computed (the guard then fails closed)
├── AuditError                  the audit store cannot be read or written (the call then waits)
└── ParseError                  generated text is not a well-formed tool call
"""

from __future__ import annotations

from typing import Any, ClassVar


class ToolguardError(Exception):
    """Base of all errors: what went wrong, the facts as fields, and what to do about it.

    Args:
        message: what happened, to which object, expected against found.
        hint: what the user can do; empty if nothing better than the message.
        fields: machine-readable facts, kept in `self.fields`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(ToolguardError):
    """An option, policy, or menu given by the user cannot be used."""

    exit_code = 2


class DatasetError(ConfigError):
    """A data file is missing, empty, or holds no usable record."""


class CalibrationError(ToolguardError):
    """Calibration cannot reach a usable result from this model and data."""


class ArtifactMismatch(ToolguardError):
    """A stored profile does not belong to what it is used with; fields: field, expected, found."""


class UnsupportedModel(ToolguardError):
    """A model, tokenizer, or chat template lacks something the guard must read."""


class ShapeError(ToolguardError):
    """Two tensors that must agree in shape or dtype do not."""


class ReadoutError(ToolguardError):
    """A reading could not be computed; the guard then fails closed."""


class ParseError(ToolguardError):
    """Generated text opens a tool call that is not well formed; fields: offset, kind."""


class AuditError(ToolguardError):
    """The audit store cannot be opened, read or written; what it should have recorded must wait."""
