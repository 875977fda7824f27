"""What the tests of a cluster share."""

from tests.pipeline.test_kill import photos  # noqa: F401
