"""The errors that a user may see, and the exit code each one ends the command with.

    LlmReplicasError                  something to tell the user in one message
     |-- UsageError            (2)    the command, a value or a file was given wrongly
     |-- EnvironmentProblem    (2)    the machine or the cluster lacks something
     |-- InvalidRun            (4)    the generator or the machine fell short, so nothing was proved

A message says what was given or found, what is accepted, and the next step.
"""


class LlmReplicasError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 2


class UsageError(LlmReplicasError):
    """The command line, a value or a file was given wrongly."""


class EnvironmentProblem(LlmReplicasError):  # noqa: N818  (a problem of the machine, no bug)
    """The machine or the cluster lacks something that the work needs."""


class InvalidRun(LlmReplicasError):  # noqa: N818  (a verdict bears this name)
    """The load generator or the machine fell short, so the run says nothing about the system."""

    exit_code = 4
