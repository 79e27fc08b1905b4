"""Lets these tests import the helpers beside them; `tokenizers.…` would be Hugging Face's package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
