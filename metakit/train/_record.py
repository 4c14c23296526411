"""What a folder of checkpoints says about itself: the format's version and the run's configuration."""

import contextlib
import errno
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ._errors import CheckpointError, CheckpointVersionError, ConfigChangedError, DiskFullError

# Raise it whenever what a checkpoint holds changes: an older metakit then refuses the folder instead of
# misreading it.
_VERSION = 1
_RECORD = "metakit.json"


def open_record(folder: pathlib.Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    path = folder / _RECORD
    config = None if config is None else _as_json(config)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(
                f"{folder} is not a folder of checkpoints: it holds no {_RECORD}. Name a new or empty folder "
                "to start a run, or the folder of a run to resume it."
            )
        if config is None:
            raise CheckpointError(
                f"{folder} holds no checkpoints. Pass config={{...}} to start a run there, or check the path."
            )
        with room_needed(folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            try:
                partial.write_text(json.dumps({"version": _VERSION, "config": config}, indent=2) + "\n")
                partial.replace(path)  # at once, so that no half-written record is ever found
            finally:
                partial.unlink(missing_ok=True)
        return config
    try:
        record = json.loads(path.read_text())
        version, recorded = record["version"], record.get("config")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}), so {folder} cannot be read as checkpoints.") from error
    if version != _VERSION:
        raise CheckpointVersionError(str(folder), version, _VERSION)
    if config is not None:
        changes = _changes(recorded, config)
        if changes:
            raise ConfigChangedError(str(folder), changes)
    return recorded


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"config[{name!r}] is {value!r}, which JSON cannot hold ({error}). Use numbers, strings, "
                "booleans, None, lists and mappings."
            ) from error
    return json.loads(json.dumps(dict(config)))


_ABSENT = "(absent)"


def _changes(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**old, **new}:
            inner = f"{name}.{key}" if name else key
            found |= _changes(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return found
    return {} if old == new else {name: (old, new)}


@contextlib.contextmanager
def room_needed(folder: pathlib.Path) -> Iterator[None]:
    """Turn a full disk, however it is reported, into one error that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the last two
        # TensorStore reports a full disk as its own status, in words; Python as an errno.
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        message = (
            f"No space left to save a checkpoint in {folder}. Those already there are intact; free some "
            "space, or keep fewer (max_to_keep), and run again to resume."
        )
        raise DiskFullError(errno.ENOSPC, message) from error
