"""The error of options that do not fit."""


class OptionError(ValueError):
    """Options of a recipe that do not fit together, or a value out of range.

    **Arguments:** a message that names options as they are written on the command line.

    Refused before any work is done; the command line ends with status 2.
    """


def option(name: str) -> str:
    """An option as it is written on the command line.

    **Arguments:** `name`, as in Python.

    >>> option("meta_batch")
    '--meta-batch'
    """
    return "--" + name.replace("_", "-")


def require_least(least: dict[str, int], values: dict[str, int | None]) -> None:
    """Refuse a count below its least value; `None` is left out."""
    for name, smallest in least.items():
        value = values[name]
        if value is not None and value < smallest:
            raise OptionError(f"{option(name)} must be at least {smallest}, got {value}.")


def require_positive(**values: float | None) -> None:
    """Refuse a number that is not above 0; `None` is left out."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise OptionError(f"{option(name)} must be above 0, got {value}.")
