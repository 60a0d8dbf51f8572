"""When a run that produces no finite numbers is given up."""

from latentae.config.schema.base import Count, Section


class GuardConfig(Section):
    """Updates from losses or gradients that are not finite are never made; too many in a row end the run."""

    max_consecutive: Count = 10
    """Updates in a row that may be skipped, on any batches, before the run stops with its state saved."""
