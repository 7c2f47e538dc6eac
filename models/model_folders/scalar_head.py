"""A language model's trunk with one score, for every family: transformers' own class, or one made after its pattern."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification


class NoScalarHeadError(ValueError):
    """A family whose trunk cannot be given a score."""


def scorer_class(config: Any) -> type[PreTrainedModel]:
    """The class of a model with a linear layer `score` on the last state.

    Where transformers has none for the family (Cohere, Granite, LFM2, ...) it is the generic one over the family's
    trunk, as transformers writes those that it has.

    Raises:
        NoScalarHeadError: transformers has no trunk of the family by itself.
    """
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        return known  # type: ignore[no-any-return]
    if type(config) not in MODEL_MAPPING:
        raise NoScalarHeadError(f"transformers has no trunk of the type '{config.model_type}' to read a score from.")
    trunk: Any = MODEL_MAPPING[type(config)]
    family = next(each for each in trunk.__mro__ if each.__name__.endswith("PreTrainedModel"))
    if family is PreTrainedModel:
        raise NoScalarHeadError(f"{trunk.__name__} is no model of a family that transformers can build upon.")
    made = {"__module__": __name__, "base_model_prefix": family.base_model_prefix}
    name = f"{trunk.__name__.removesuffix('Model')}ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, family), made)


def load_scorer(folder: str, **options: Any) -> Any:
    """What `AutoModelForSequenceClassification.from_pretrained` would give, for every family.

    Raises:
        NoScalarHeadError: see `scorer_class`.
    """
    loaded: Any = scorer_class(AutoConfig.from_pretrained(folder))
    return loaded.from_pretrained(folder, **options)
