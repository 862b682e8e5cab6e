"""What the first cell of every notebook runs, once it has found the kit or fetched it:
`at` is where it was found. Says in one sentence what is wrong.
"""

import sys
from pathlib import Path

root = Path((at or ["course-kit"])[0]).resolve()  # noqa: F821 - of the cell
sys.path.insert(0, str(root))
from tools.colab.packages import install

install()  # never torch, numpy, pandas or setuptools
