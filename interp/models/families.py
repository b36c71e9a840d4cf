"""The model families interp knows: one declarative entry each, no guessing."""

from dataclasses import dataclass


class UnsupportedModelError(ValueError):
    """A model that interp cannot look into, with what would be needed."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps the parts that interp reads and edits; paths start at the Hugging Face model."""

    name: str
    architectures: tuple[str, ...]
    decoder: str
    """The text decoder; called with `inputs_embeds` that already contain the image."""
    layers: str
    """Its list of layers."""
    out_proj: str
    """The output projection of attention, inside a layer; its input is the heads' outputs side by side."""
    image_token: str
    """The attribute of the configuration that holds the id of the image placeholder token."""


FAMILIES: tuple[Family, ...] = (
    Family(
        name="llava",
        architectures=("LlavaForConditionalGeneration",),
        decoder="model.language_model",
        layers="model.language_model.layers",
        out_proj="self_attn.o_proj",
        image_token="image_token_id",
    ),
)


def family_of(architecture: str) -> Family:
    """The entry of an architecture (the class name of the Hugging Face model)."""
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    known = ", ".join(a for family in FAMILIES for a in family.architectures)
    raise UnsupportedModelError(
        f"interp does not know the architecture {architecture}; it knows {known}. "
        "To add it, write one entry in interp/models/families.py (CONTRIBUTING.md shows how)"
    )
