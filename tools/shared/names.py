"""What a system, and no person, left in a hand-in. Hidden files are looked at, too: a
`.env` may hold a key.
"""

import re

LITTER = re.compile(
    r"\._.*|~\$.*|\.~lock\..*#|\.ds_store|(eh)?thumbs\.db|desktop\.ini|icon\r?"
    r"|__macosx|\.spotlight-v100|\.trashes|\.fseventsd|\.temporaryitems|\.directory"
    r"|\$recycle\.bin|system volume information|@eadir",
    re.IGNORECASE,
)


def is_litter(name: str) -> bool:
    """Whether a system, and no person, made a file or folder of this name."""
    return LITTER.fullmatch(name) is not None
