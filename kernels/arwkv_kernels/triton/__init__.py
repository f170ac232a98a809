"""The kernels in Triton. Nothing here is imported until a CUDA tensor (or Triton's interpreter) asks for it."""
