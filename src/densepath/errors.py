"""The one exception tree: each error also inherits the stdlib error that a caller would catch."""

from __future__ import annotations

from collections.abc import Mapping


class DensepathError(Exception):
    """Base of every error that densepath raises on purpose: a user's mistake, said in one line.

    The message says what is wrong, where (file, row, key) and what to do. The command line prints it without
    a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(DensepathError, ValueError):
    """A command, key or value that cannot be used as given."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe key or value that does not exist, does not fit, or contradicts another."""


class NoEffectError(ConfigError):
    """Arguments that were given and can take no effect beside the others.

    Attributes:
        given: name -> value of these arguments; at least one.
        where: why, such as "without judge".
    """

    def __init__(self, given: Mapping[str, object], where: str) -> None:
        self.given, self.where = dict(given), where
        super().__init__(f"{self.fact}: leave {'it' if len(self.given) == 1 else 'them'} out")

    @property
    def fact(self) -> str:
        """What has no effect, and why, without a remedy."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{shown} {'has' if len(self.given) == 1 else 'have'} no effect {self.where}"


class MissingFileError(UsageError, FileNotFoundError):
    """A file or folder that was named and is not there."""


class DataError(UsageError):
    """A data set that cannot be used: empty, or a row without what its format requires."""


class ModelError(UsageError):
    """A model or tokenizer that cannot be loaded, or models that do not fit each other."""


class ResumeError(UsageError):
    """A run folder that belongs to another configuration."""


class DamagedFileError(DensepathError, ValueError):
    """A file that densepath wrote, and that no longer holds what it wrote."""


class DamageWarning(UserWarning):
    """A file that densepath wrote no longer holds what it wrote, and what is done about it."""


class NumericalError(DensepathError, ArithmeticError):
    """NaN or infinity where a finite number is needed, with its location.

    Attributes:
        sequences: indices of the sequences that were hit, where the caller gave several.
    """

    def __init__(self, message: str, sequences: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.sequences = sequences


class StorageError(DensepathError, OSError):
    """Writing failed (disk full, no permission); what was already written is intact."""


class JudgeError(DensepathError):
    """A judge that keeps failing, or that may not be asked any more; what it has said is kept."""


class ExperimentError(DensepathError):
    """Cells of an experiment failed; the others are whole and reported."""
