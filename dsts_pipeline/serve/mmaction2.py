"""The former address of `dsts_pipeline.mmaction2`, for configs and command lines that name it.

`custom_imports = dict(imports=["dsts_pipeline.serve.mmaction2"])` and
`python -m dsts_pipeline.serve.mmaction2 train CONFIG` go on working.
"""

import sys

from dsts_pipeline.mmaction2 import *  # noqa: F403
from dsts_pipeline.mmaction2.__main__ import main

if __name__ == "__main__":
    main(sys.argv[1:])
