from latentae.config import FAMILIES, shipped_configs
from latentae.config.reflect import member_name, sections_at


def test_every_model_class_belongs_to_one_family() -> None:
    classes = sorted(name for family in FAMILIES.values() for name in family.classes)
    assert classes == sorted(member_name(section) for section in sections_at(["model"]))


def test_defaults_are_shipped() -> None:
    assert FAMILIES["vqgan"].default_config == "quickstart"
    defaults = {family.default_config for family in FAMILIES.values()} - {None}
    assert defaults <= set(shipped_configs())
