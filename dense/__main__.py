"""`python -m dense` is `dense`."""

import sys

from dense.cli import main

sys.exit(main())
