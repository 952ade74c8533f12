"""Everything refusion-edge raises on purpose.

    RefusionError                             exit code
    ├── InputError(ValueError)                4   an image, folder or array that cannot be used
    │   ├── ShapeError                        4   sizes or dtypes that do not fit
    │   └── RigError                          4   a rig file that is damaged or does not fit
    ├── CheckpointError                       4   a weights file that is damaged or not ours
    ├── BundleError                           4   manifest, hash, schema or target does not fit
    ├── OutputError(OSError)                  4   a result that cannot be written
    ├── BackendError                          3   the asked-for back end cannot run here
    ├── MissingDependencyError(ImportError)   3   a package is absent; names the line that installs it
    ├── GateError                             1   a built engine differs too much from the reference
    ├── AlignmentError                        1   two views whose alignment cannot be stated with evidence
    ├── MeasurementError                      1   a machine or a clock that nothing can be measured with
    ├── TrainingError                         1   a training run that cannot go on
    ├── SourceLostError                       5   a camera that is absent, busy, forbidden or lost
    ├── StreamError                           1   a part of a running stream that does not answer
    └── UsageError                            2   options that contradict each other

Every message is one sentence: what was expected, what came, what to do. Anything that is not in this tree is a bug
and keeps its traceback.
"""

from __future__ import annotations


class RefusionError(Exception):
    """Base of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class InputError(RefusionError, ValueError):
    """An image, folder or array that cannot be used."""

    exit_code = 4


class ShapeError(InputError):
    """Sizes or dtypes that do not fit."""


class RigError(InputError):
    """A rig file that is damaged, or that does not fit the frames or the working distance."""


class CheckpointError(RefusionError):
    """A weights file that is damaged or does not hold this network."""

    exit_code = 4


class BundleError(RefusionError):
    """An engine bundle whose manifest, hashes, schema or target do not fit."""

    exit_code = 4


class MisfitError(BundleError):
    """A sound engine for another machine, GPU, driver or compiler; building it again here would help."""


class OutputError(RefusionError, OSError):
    """A result that cannot be written."""

    exit_code = 4


class BackendError(RefusionError):
    """The asked-for back end cannot run here; the message says why and what can."""

    exit_code = 3


class MissingDependencyError(RefusionError, ImportError):
    """A package that this command needs is not installed; the message holds the line that installs it."""

    exit_code = 3


class GateError(RefusionError):
    """A built engine differs from the fp32 reference by more than its precision allows."""

    exit_code = 1


def not_finite(name: str) -> GateError:
    """What a back end of this name gave is no picture."""
    return GateError(
        f"expected finite numbers from the network, got NaN or infinity from {name}; check the weights with 'refusion-edge "
        "inspect', or the bundle with 'refusion-edge verify'."
    )


class AlignmentError(RefusionError):
    """Two views that cannot be aligned, or not well enough; the message holds the reason."""

    exit_code = 1


class MeasurementError(RefusionError):
    """A machine that is too loaded, or a clock that is too unsteady, for a number that can be trusted."""

    exit_code = 1


class TrainingError(RefusionError):
    """A training run that cannot go on: its loss is not a number any more."""

    exit_code = 1


class SourceLostError(RefusionError):
    """A camera that cannot be opened, or that was lost and did not come back."""

    exit_code = 5


class StreamError(RefusionError):
    """A part of a running stream that failed or does not answer any more."""

    exit_code = 1


class UsageError(RefusionError):
    """Options that contradict each other or name something unknown."""

    exit_code = 2
