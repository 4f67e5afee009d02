# syntax=docker/dockerfile:1
# docker build -t pact-lightning .                                    CPU
# docker build -t pact-lightning --build-arg DEVICE=cu128 .           CUDA 12.8 (or another index of pytorch.org)
# docker run --rm -v "$PWD/runs:/work/runs" pact-lightning fit -c /opt/pact-lightning/recipes/quickstart.yaml
# docker run --rm --gpus all ...                                      with the host's NVIDIA container toolkit
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG DEVICE=cpu
ARG EXTRAS=teacher,mcp,hub,ftrl,tensorboard,pictures,gguf,vllm-server

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/work/.cache/huggingface

# Triton, which torch compiles with on a GPU, needs a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/pact-lightning
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pact_lightning ./pact_lightning
COPY recipes ./recipes
RUN pip install -c constraints.txt torch --index-url "https://download.pytorch.org/whl/${DEVICE}" \
    && pip install ".[${EXTRAS}]"

RUN useradd --create-home --uid 1000 trainer && mkdir -p /work && chown trainer /work
USER trainer
WORKDIR /work
ENTRYPOINT ["pact-lightning"]
CMD ["--help"]
