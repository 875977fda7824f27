"""The laboratory: experiments, baselines and speed measurements. It imports flashray, never the reverse."""
