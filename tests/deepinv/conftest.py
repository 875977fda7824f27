"""Where deepinv is not installed nothing here is collected: `make test-deepinv` has an environment for it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("deepinv") else ["test_*.py"]
