"""What a capture in vLLM loads before it starts, in the environment in which it loads it; that is left as it was."""

import os

from arwkv_producer.teacher.vllm_setup import prepare_environment

before = dict(os.environ)
prepare_environment(tensor_parallel=1, verbose=False)

from vllm import LLM, PoolingParams, SamplingParams  # noqa: E402, F401 -- after the environment

import arwkv_producer.run.generate  # noqa: E402, F401

os.environ.clear()
os.environ.update(before)
