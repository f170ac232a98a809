"""What a capture in vLLM loads before it starts, in the order in which a capture loads it."""

from arwkv_producer.teacher.vllm_setup import prepare_environment

prepare_environment(tensor_parallel=1, verbose=False)

from vllm import LLM, PoolingParams, SamplingParams  # noqa: E402, F401 -- after the environment

import arwkv_producer.run.generate  # noqa: E402, F401
