"""Every error this system raises on purpose, so that a caller can tell them from bugs.

The message is for a person: what was wrong, what was found, what to do. ``exit_code`` is what the command line returns:
1 for a failure, 2 for wrong usage.
"""


class ReidError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what was wrong, what was found, what to do.
        further: more lines where one can't hold it, such as a list of differences. A line end within any of these comes
            from outside and is not one of ours, so that whoever shows the error can escape it.
    """

    exit_code = 1

    def __init__(self, message: str = "", *further: str) -> None:
        super().__init__("\n".join((message, *further)))
        self.lines = (message, *further)


class UsageError(ReidError):
    """The request itself makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is wrong."""


class DataError(ReidError):
    """A domain, a crop or a split can't be used."""


class EmptyError(DataError):
    """A folder was read as a domain and holds no crop."""


class CostlyImageError(DataError):
    """Decoding an image would take far more work than its pixels need."""


class UnsupportedImageError(DataError):
    """An image of a known format, but an animation or in a coding that is not taken."""


class ArtefactError(ReidError):
    """A stored file is missing, damaged or of a kind this version can't read."""


class DeviceError(ReidError):
    """The requested device or engine is not available; nothing falls back to another."""


class BackboneError(ReidError):
    """A backbone can't be built or its start weights don't fit."""


class TrainingError(ReidError):
    """Training can't continue, for example because a loss is no longer finite."""


class ExportError(ReidError):
    """An exported graph does not do what the model does."""


class GalleryError(ReidError):
    """The gallery can't store or answer this."""


class ClockError(GalleryError):
    """The clock moved by more than is plausible, so that nothing is erased by age until a person confirms the time."""


class BusyError(ReidError):
    """Too much work at once. Nothing is wrong with the request: it may succeed a moment later."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
