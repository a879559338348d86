"""What a test needs in order to run."""

from __future__ import annotations

import sys

import pytest

from fastvfx import _ext

# That it was built and does load where it should is a test of its own, in test_package.py: these only skip.
native = pytest.mark.skipif(_ext._C is None, reason="the native module was not built")
sigint = pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
