"""Many traces, one dataset: on the cores of one machine, or on the workers of a Dask cluster."""
