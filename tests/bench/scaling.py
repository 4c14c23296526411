"""stub"""

import dataclasses


@dataclasses.dataclass
class Options:
    smoke: bool = False


def run(o, c):
    pass
