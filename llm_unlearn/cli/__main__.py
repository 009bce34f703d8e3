"""`python -m llm_unlearn.cli`, the same as the console script."""

import sys

from llm_unlearn.cli import main

sys.exit(main())
