# The teacher (EXTRA=gpu: vLLM with the capture hook) or the student (EXTRA=train), for a machine with a GPU.
# Triton compiles its launchers with gcc. The index service has an image of its own, api/Dockerfile.
FROM python:3.12.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home arwkv \
    && mkdir -p /shards /runs /home/arwkv/.cache/huggingface && chown -R arwkv /shards /runs /home/arwkv
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY api ./api
COPY kernels ./kernels
COPY locks ./locks
COPY producer ./producer
COPY store ./store
COPY student ./student
ARG EXTRA
RUN python -m venv /app && /app/bin/pip install --no-cache-dir -c locks/gpu.txt ".[${EXTRA:?gpu or train}]"
USER 10001
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /home/arwkv
