from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from latentae.config import (
    EMAQuantizerConfig,
    Flux2VAEConfig,
    KLVAEConfig,
    TinyAutoencoderConfig,
    VectorQuantizerConfig,
    VQGANConfig,
    VQVAEConfig,
)
from latentae.config.describe import (
    choice_of,
    describe,
    element_of,
    fields,
    is_optional,
    known_keys,
    member_name,
    one_of,
    section_classes,
    sections_at,
    selector,
    walk,
)
from latentae.config.schema import RunConfig, Section
from latentae.config.schema.loss import LossConfig, LPIPSConfig, LPIPSLogitsConfig

_WITH_NORMS = "class: KLVAE or Flux2VAE or VQVAE or VQGAN"


def test_fields_go_by_their_name_in_yaml() -> None:
    assert list(fields(VQGANConfig))[:2] == ["class", "in_channels"]
    assert "class_" not in fields(VQGANConfig)


def test_sections_behind_an_annotation() -> None:
    assert section_classes(RunConfig.model_fields["model"].annotation) == (
        KLVAEConfig,
        Flux2VAEConfig,
        TinyAutoencoderConfig,
        VQVAEConfig,
        VQGANConfig,
    )
    assert section_classes(LossConfig.model_fields["perceptual"].annotation) == (
        LPIPSConfig,
        LPIPSLogitsConfig,
    )
    assert section_classes(RunConfig.model_fields["trackers"].annotation) == ()
    assert is_optional(LossConfig.model_fields["perceptual"].annotation)
    assert not is_optional(LossConfig.model_fields["reconstruction"].annotation)


def test_members_and_what_chooses_them() -> None:
    members = sections_at(["model", "quantizer"])
    assert members[:2] == (VectorQuantizerConfig, EMAQuantizerConfig)
    assert [member_name(member) for member in members][-3:] == ["bsq", "residual", "grouped"]
    assert sections_at(["model", "quantizer", "member"]) == members[:-2]
    assert choice_of(members) == "type"
    assert choice_of(sections_at(["loss"])) is None
    assert selector(VQVAEConfig) == "class"
    assert sections_at(["model", "nothing"]) == ()


def test_walk_describes_keys() -> None:
    (key,) = known_keys()["model.norm_num_groups"]
    assert (key.type, key.default, key.only_with, key.is_section) == (
        "an integer >= 1",
        "32",
        _WITH_NORMS,
        False,
    )
    (key,) = known_keys()["model.quantizer.epsilon"]
    assert (key.default, key.only_with) == ("1.0e-05", "type: ema")
    (key,) = known_keys()["loss.perceptual"]
    assert (key.type, key.default, key.is_section) == ("section or null", "null", True)
    (key,) = known_keys()["model.class"]
    assert (key.type, key.default) == ("one of KLVAE, Flux2VAE, TinyAutoencoder, VQVAE, VQGAN", None)
    assert key.doc.startswith("KLVAE: Variational autoencoder with Gaussian latents")


class Inner(Section):
    depth: int = 1
    """How deep."""


class First(Section):
    type: Literal["first"]
    inner: Inner


class Second(Section):
    type: Literal["second"]
    inner: int


def test_keys_below_a_choice_depend_on_it_too() -> None:
    found = [(key.path, key.type, key.only_with) for key in walk((First, Second), prefix="x.")]
    assert found == [
        ("x.type", "one of first, second", ""),
        ("x.inner", "section", "type: first"),
        ("x.inner.depth", "an integer", "type: first"),
        ("x.inner", "an integer", "type: second"),
    ]


def test_walk_gives_every_key_once_and_narrows_the_classes() -> None:
    paths = [key.path for key in walk()]
    assert len(set(paths)) == len(known_keys())
    assert len({(key.path, key.only_with) for key in walk()}) == len(paths)
    # those whose default is another with another choice
    assert {path.rpartition(".")[2] for path in paths if paths.count(path) > 1} == {
        "codebook_weight",
        "commitment_weight",
        "entropy_weight",
        "init",
        "layers_per_block",
    }
    assert paths[:3] == ["output_dir", "seed", "max_steps"]
    narrowed = {key.path: key for key in walk(classes=["VQVAE"])}
    assert narrowed["model.class"].type == "VQVAE"
    assert set(paths) - set(narrowed) == {
        "model.use_quant_conv",
        "model.decoder_block_out_channels",
        "model.pooled_blocks",
        "model.pixel_shuffle",
    }


Fraction = Annotated[float, Field(gt=0, le=0.5)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (Annotated[int, Field(ge=1)], "an integer >= 1"),
        (Annotated[float, Field(gt=0)] | None, "a number > 0 or null"),
        (Annotated[float, Field(lt=3)], "a number < 3"),
        (Annotated[float, Field(le=3)], "a number <= 3"),
        (Fraction, "a number in (0, 0.5]"),
        (bool, "true or false"),
        (str | None, "text or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "a"),
        (tuple[Fraction, Fraction], "a list of two numbers in (0, 0.5]"),
        (tuple[int, int, int], "a list of 3 integers"),
        (Annotated[tuple[bool, ...], Field(min_length=1)], "a non-empty list of true or false values"),
        (tuple[Literal["a", "b"], ...], "a list of names out of a, b"),
        (int | tuple[int, int] | None, "an integer or a list of two integers or null"),
    ],
)
def test_describe(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_element_of() -> None:
    assert element_of(tuple[int, ...] | None) is int
    assert element_of(Annotated[tuple[str, str], Field()]) is str
    assert element_of(int | tuple[int, int]) is None
    assert element_of(int) is None


def test_one_of() -> None:
    assert one_of(["a", "b", "c"]) == "one of a, b, c"
    assert one_of(["a"]) == "a"
