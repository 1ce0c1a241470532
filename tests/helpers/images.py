"""Handwritten digits and clothes, where they lie on disk."""

import os

import pytest

needs_images = pytest.mark.skipif("EQUIPOISE_DATA" not in os.environ, reason="EQUIPOISE_DATA names no folder")
