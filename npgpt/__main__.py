"""`python -m npgpt` is `npgpt`."""

import sys

from npgpt.cli.main import main

sys.exit(main())
