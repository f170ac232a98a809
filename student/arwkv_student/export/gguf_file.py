"""`student export --out FILE.gguf`: a student as one file that llama.cpp runs as its `arwkv7` architecture."""

import json
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.export.gguf_tensors import gate_rank, gguf_tensors
from arwkv_student.export.gguf_tokenizer import GgufTokenizer, end_tokens
from arwkv_student.export.runtimes import CONCURRENT_SEQUENCES, llama_cpp_obstacles
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.loading import require_student
from arwkv_student.run.durable import put_in_place, replace_text
from arwkv_student.run.provenance import runs_behind
from arwkv_student.settings import ExportSettings

ARCHITECTURE = "arwkv7"
CONTEXT = 1 << 20
"""llama.cpp asks for a limit, but a state of constant size has none."""
KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
KIND_OF_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ALWAYS_F32 = tuple(f"time_mix_{name}.weight" for name in ["w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2", "lerp_fused"])
"""Matrices that llama.cpp's own quantizer leaves alone: they decide decays and gates. Vectors stay fp32 too."""


def export_gguf(settings: ExportSettings) -> dict[str, Any]:
    """Write the file, and a Modelfile for Ollama beside it; returns paths, tensors, bytes and notes.

    Raises UsageError with every reason why llama.cpp could not compute the same, before anything is written.
    """
    folder, out = Path(settings.model), settings.out
    require_student(folder)
    if settings.self_contained:
        raise UsageError(f"--self-contained with --out {out}: a GGUF file holds no code; leave it out")
    if found := llama_cpp_obstacles(folder):
        raise UsageError(
            f"model {folder}: llama.cpp cannot compute this student: {'; '.join(found)}. Run it with transformers or "
            "vLLM, or train a student with one of the presets arwkv*, in all layers (docs/runtimes.md)"
        )
    checkpoint = open_base(str(folder), any_family=True)
    config, tokenizer = ArwkvConfig.from_pretrained(folder), GgufTokenizer.open(folder)
    kind = settings.dtype or KIND_OF_DTYPE[str(config.dtype or torch.float32).removeprefix("torch.")]
    kind = {"fp32": "f32", "fp16": "f16"}.get(kind, kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".new")
    writer = gguf.GGUFWriter(fresh, ARCHITECTURE)
    _add_shape(writer, config, kind)
    _add_provenance(writer, config, folder, checkpoint)
    tokenizer.add_to(writer, config)
    tensors = _write_tensors(writer, config, checkpoint, KINDS[kind][0])
    put_in_place(fresh, out)
    modelfile = out.with_suffix(".Modelfile")
    replace_text(modelfile, _modelfile(out, tokenizer, config))
    size_bytes = out.stat().st_size
    return {
        "out": str(out), "files": [out.name, modelfile.name], "dtype": kind, "tensors": tensors,
        "size_bytes": size_bytes, "notes": [CONCURRENT_SEQUENCES, *tokenizer.notes],
    }  # fmt: skip


def _add_shape(writer: gguf.GGUFWriter, config: ArwkvConfig, kind: str) -> None:
    options = config.time_mix_options
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_wkv_head_size(options.head_dim)
    writer.add_token_shift_count(1)  # llama.cpp aborts without it
    writer.add_decay_lora_rank(options.decay_rank)
    writer.add_iclr_lora_rank(options.rate_rank)
    writer.add_value_residual_mix_lora_rank(options.value_rank)
    writer.add_gate_lora_rank(gate_rank(options))


def _add_provenance(writer: gguf.GGUFWriter, config: ArwkvConfig, folder: Path, checkpoint: BaseCheckpoint) -> None:
    runs = runs_behind(folder)
    writer.add_name(folder.resolve().name)
    writer.add_string("arwkv.version", metadata.version("arwkv"))
    writer.add_string("arwkv.preset", config.preset)
    writer.add_string("arwkv.checkpoint", checkpoint.weights_hash)
    writer.add_string("arwkv.runs", json.dumps([{"run": run, "stages": stages} for run, stages in runs]))


def _write_tensors(
    writer: gguf.GGUFWriter, config: ArwkvConfig, checkpoint: BaseCheckpoint, wanted: GGMLQuantizationType
) -> int:
    """One tensor at a time is in memory, after a first pass over shapes alone; returns how many there are."""
    count, shapes = 0, checkpoint.shapes()
    for name, tensor in gguf_tensors(config, lambda name: torch.empty(shapes[name], device="meta")):
        kind = _kind(name, tensor, wanted)
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size_bytes = tensor.numel() // block_values * block_bytes
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size_bytes, raw_dtype=kind)
        count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in gguf_tensors(config, partial(_read, checkpoint)):
        writer.write_tensor_data(gguf.quants.quantize(tensor.contiguous().numpy(), _kind(name, tensor, wanted)))
    writer.flush()
    writer.close()
    return count


def _read(checkpoint: BaseCheckpoint, name: str) -> Tensor:
    ((_, tensor),) = checkpoint.tensors([name])
    return tensor.float()  # type: ignore[no-any-return]


def _kind(name: str, tensor: Tensor, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if tensor.dim() < 2 or name.endswith(ALWAYS_F32):
        return GGMLQuantizationType.F32
    fits = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else GGMLQuantizationType.F16


def _modelfile(out: Path, tokenizer: GgufTokenizer, config: ArwkvConfig) -> str:
    """For `ollama create`; Ollama reads the chat template from the file itself."""
    ends = (tokenizer.tokenizer.convert_ids_to_tokens(token) for token in end_tokens(config))
    return "".join([f"FROM ./{out.name}\n", *(f"PARAMETER stop {json.dumps(end)}\n" for end in ends)])
