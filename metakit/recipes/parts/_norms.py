"""The batch-norm policy as an option, and in words."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from ._images import IMAGES
from ._markers import InTest

IN_WORDS = {
    "transductive": "transductive: batch norm uses the statistics of the query batch, so queries may help each other",
    "joint": "joint (transductive): batch norm uses the statistics of support and query together",
    "inductive": "inductive: batch norm uses the support set's statistics, so no query sees another",
    "one_by_one": "inductive: each query joins the support set's batch alone, so no query sees another",
}
NO_NORM = "none in this network"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """Batch norm."""

    OF: ClassVar[tuple[str, ...]] = IMAGES
    norm_policy: Annotated[Literal["transductive", "joint", "inductive", "one_by_one"], InTest("norm_policy")] = (
        "transductive"
    )
    """Whose statistics batch norm uses for the query set; the docs say which algorithm has which."""

    @property
    def in_words(self) -> str:
        """A line of a report."""
        return IN_WORDS[self.norm_policy]
