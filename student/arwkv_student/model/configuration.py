"""`ArwkvConfig`: what a student's config.json says, as a Hugging Face configuration."""

from typing import Any

from transformers import PreTrainedConfig

from arwkv_student.model.architectures import Architecture, architecture_of
from arwkv_student.model.time_mix_options import TimeMixOptions

TIME_MIX, ATTENTION, WINDOWED_ATTENTION = "linear_attention", "full_attention", "sliding_attention"


class ArwkvConfig(PreTrainedConfig):  # type: ignore[misc] # transformers is untyped
    """The base's configuration, field by field, and `time_mix`: the fields of `TimeMixOptions`.

    Fields that only some families have are further attributes, under the family's names.
    """

    model_type = "arwkv"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 -- transformers' own class attribute

    vocab_size: int = 151936
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None  # type: ignore[type-arg] # transformers checks it at run time, and knows no dict[…]
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    base_model_type: str = "qwen2"
    kept_rope: bool = True
    preset: str = "arwkv"
    time_mix: dict | None = None  # type: ignore[type-arg] # as above

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.layer_types = self.layer_types or [TIME_MIX] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @property
    def time_mix_options(self) -> TimeMixOptions:
        """`time_mix`, typed and checked."""
        assert self.time_mix is not None, "an ArwkvConfig without time_mix; make it with preset_options"
        return TimeMixOptions(**self.time_mix)

    @property
    def architecture(self) -> Architecture:
        """The family of the base. Raises UsageError for one that this release does not know."""
        return architecture_of("student", self.base_model_type)

    @property
    def time_mix_layers(self) -> list[int]:
        """The layers that mix time."""
        return [layer for layer, kind in enumerate(self.layer_types or []) if kind == TIME_MIX]
