"""The one error of this package."""


class ConfigError(ValueError):
    """What is wrong with a config or a command line: complete as it stands, one problem per line."""
