"""The job: archive → plan → units → reconstructions → commits. The only rooms that import ray.data."""
