"""python -m russet: the same as the command russet."""

import sys

from russet.cli import main

sys.exit(main())
