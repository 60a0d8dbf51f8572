"""The typed sections of a run's config. The keys' docstrings are the text of `--help`."""

from latentae.config.schema.base import Section
from latentae.config.schema.run import RunConfig

__all__ = ["RunConfig", "Section"]
