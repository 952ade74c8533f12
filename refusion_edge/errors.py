"""The exceptions that refusion-edge raises on purpose.

    RefusionError                             exit code
    ├── InputError(ValueError)                4   an image, folder or array that cannot be used
    │   ├── ShapeError                        4   sizes or dtypes that do not fit
    │   └── RigError                          4   a rig file that is damaged or does not fit
    ├── CheckpointError                       4   a weights file that is damaged or not ours
    ├── BundleError                           4   manifest, hash, schema or target does not fit
    ├── OutputError(OSError)                  4   a result that cannot be written
    │   └── DiskFullError                     4   for lack of room
    ├── BackendError                          3   the requested back end cannot run here
    ├── MissingDependencyError(ImportError)   3   a package is absent; names the line that installs it
    ├── GateError                             1   a built engine differs too much from the reference
    ├── AlignmentError                        1   two views that cannot be aligned, or not accurately enough
    ├── MeasurementError                      1   a machine or clock too unsteady to measure with
    ├── TrainingError                         1   a training run that cannot continue
    ├── SourceLostError                       5   a camera that is missing, busy, off limits or lost
    ├── StreamError                           1   a part of a running stream that failed or stopped responding
    └── UsageError                            2   options that are unknown, out of range or contradictory

An error consists of fields, and its message is made from them in one place: one line in plain English, without a final
full stop. An exception outside this tree is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing_extensions import Self

from refusion_edge.text import escaped


class RefusionError(Exception):
    """Base class of all of them.

    Args:
        problem: What is wrong, with both values where two disagree.
        remedy: What to do about it, in the imperative; empty where the problem says it all.
        expected: The value that would have been right, where two values disagree; or all such values, or the least and
            the greatest. A size is (height, width).
        got: The value that was found instead.

    Attributes:
        exit_code: The exit status of the command line.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "", *, expected: object = None, got: object = None) -> None:
        # They may quote names from files of strangers, which could move a terminal's cursor or forge a line of a log.
        self.problem, self.remedy = escaped(problem), escaped(remedy)
        super().__init__(f"{self.problem}; {self.remedy}" if remedy else self.problem)
        self.expected = expected
        self.got = got

    def within(self, context: str) -> Self:
        """Make the same error with what it concerns, such as a file or a pair, in front of the problem."""
        return type(self)(f"{context}: {self.problem}", self.remedy, expected=self.expected, got=self.got)


class InputError(RefusionError, ValueError):
    """An image, folder or array that cannot be used."""

    exit_code = 4


class ShapeError(InputError):
    """Sizes or dtypes that do not fit."""


class RigError(InputError):
    """A rig file that is damaged, or that does not match the frames or the working distance."""


class CheckpointError(RefusionError):
    """A weights file that is damaged or does not hold this network."""

    exit_code = 4


class BundleError(RefusionError):
    """An engine bundle that is damaged, of an unknown schema, or built for another target."""

    exit_code = 4


class MisfitError(BundleError):
    """An intact engine for another machine, GPU, driver or compiler; rebuilding it here helps."""


class OutputError(RefusionError, OSError):
    """A result that cannot be written."""

    exit_code = 4


class DiskFullError(OutputError):
    """A result that cannot be written because the disk, or a quota on it, is full."""


class BackendError(RefusionError):
    """The requested back end cannot run here; the message says why, and what can."""

    exit_code = 3


class MissingDependencyError(RefusionError, ImportError):
    """A required package is missing; the message gives the command that installs it."""

    exit_code = 3


class GateError(RefusionError):
    """A built engine differs from the fp32 reference by more than its precision allows."""

    exit_code = 1


def not_finite(name: str) -> GateError:
    """Make the error for a back end of this name whose output contains NaN or infinity."""
    return GateError(
        f"the network's output contains NaN or infinity on the back end {name}",
        "check the weights with 'refusion-edge inspect' or the bundle with 'refusion-edge verify'",
    )


class AlignmentError(RefusionError):
    """Two views that cannot be aligned, or not accurately enough; the message says why."""

    exit_code = 1


class MeasurementError(RefusionError):
    """A machine too busy, or a clock too unsteady, for measurements that can be trusted."""

    exit_code = 1


class TrainingError(RefusionError):
    """A training run that cannot continue, for example because its loss became NaN."""

    exit_code = 1


class SourceLostError(RefusionError):
    """A camera that cannot be opened, or that disconnected and did not come back."""

    exit_code = 5


class StreamError(RefusionError):
    """A part of a running stream that failed or stopped responding."""

    exit_code = 1


class UsageError(RefusionError):
    """Options that are unknown, out of range, or contradict each other."""

    exit_code = 2
