# syntax=docker/dockerfile:1
# docker build -t pact-lightning .                                    CPU
# docker build -t pact-lightning --build-arg DEVICE=cu128 .           CUDA 12.8 (or another index of pytorch.org)
# docker run --rm --user "$(id -u)" -v "$PWD:/data" -v pact-cache:/cache pact-lightning fit -c my.yaml
#   The present folder is /data, so recipes, tasks and tools are found, and runs/ is written, where you are. The volume
#   pact-cache keeps models. The recipes of the package are in /opt/pact-lightning/recipes.
# docker run --rm --gpus all ...                                      with the host's NVIDIA container toolkit
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG DEVICE=cpu
ARG EXTRAS=teacher,mcp,hub,ftrl,tensorboard,pictures,gguf,vllm-server

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# Triton, which torch compiles with on a GPU, needs a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/pact-lightning
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pact_lightning ./pact_lightning
COPY recipes ./recipes
RUN pip install -c constraints.txt torch --index-url "https://download.pytorch.org/whl/${DEVICE}" \
    && pip install -c constraints.txt ".[${EXTRAS}]"

# Whichever user runs the container can write to both folders, and has a name and a home, for which libraries ask.
RUN useradd --no-create-home --home-dir /cache --uid 1000 trainer && mkdir /data /cache && chmod 1777 /data /cache
ENV HOME=/cache \
    USER=trainer \
    HF_HOME=/cache/huggingface
USER trainer
WORKDIR /data
ENTRYPOINT ["pact-lightning"]
CMD ["--help"]
