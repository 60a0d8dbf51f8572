"""When a run that produces no finite numbers is given up, and when one is warned of its codebook."""

from latentae.config.schema.base import Count, Section, Share


class GuardConfig(Section):
    """Updates from losses or gradients that are not finite are never made; too many in a row end the run."""

    max_consecutive: Count = 10
    """Updates in a row that may be skipped, on any batches, before the run stops with its state saved."""
    min_codebook_usage: Share | None = 0.5
    """Say so, once, when less than this share of the codes is in use over an epoch, and name what helps:
    below a half, a codebook of half the size would do. Of tables too large for an epoch to reach all of, it
    is a share of what even use would reach. null: never."""
