"""What can go wrong, by whose hand.

A message is one line: field, value, rule, way out. The CLI prints it and exits with ``exit_code``.
"""


class AutodiscError(Exception):
    """Base of every error that autodisc raises on purpose."""

    exit_code = 1


class UserError(AutodiscError):
    """The request cannot be met as stated; the message names the field and the way out."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(UserError):
    """A data set is missing, unreachable, empty, or not what the task needs."""


class ModelError(UserError):
    """A model is missing, unreachable, or of a family without a layout."""


class CheckpointError(UserError):
    """A checkpoint is corrupt or does not fit what it claims to be."""


class StudyError(UserError):
    """A study does not exist, exists with another configuration, or has nothing to choose from."""


class TrainingError(AutodiscError):
    """Training went wrong: a loss that is not finite, for instance."""


class DivergedError(TrainingError):
    """Numbers that are not finite, whatever was tried: the same again would end the same."""


def one_line(error: BaseException, length: int = 160) -> str:
    """Another's message as a part of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"
