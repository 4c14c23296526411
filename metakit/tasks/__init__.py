from ._episodes import Episodes as Episodes
from ._pool import ImagePool as ImagePool, fingerprint as fingerprint, rotated as rotated, subset as subset
