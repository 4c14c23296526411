"""Random keys that do not depend on how the work is split."""

from ._keys import require_key as require_key, task_keys as task_keys
