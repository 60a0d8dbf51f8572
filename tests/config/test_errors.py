from latentae.config import ConfigError


def test_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)
    assert str(ConfigError("one\ntwo")) == "one\ntwo"
