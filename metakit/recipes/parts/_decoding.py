"""Progress while images are decoded, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress


@contextlib.contextmanager
def decoding() -> Iterator[Callable[[int, int], None]]:
    """A function to be told how many images have been decoded, of how many."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding images")

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
