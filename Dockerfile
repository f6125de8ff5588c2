# syntax=docker/dockerfile:1
#
# CPU (the default):   docker build -t roomful:cpu .
# NVIDIA GPU:          docker build -t roomful:cuda --build-arg DEVICE=cuda .
#
# Read NOTICE before you give an image to others: it contains GPL-3.0 software.

ARG DEVICE=cpu

# --- what a build and a running host stand on, for each device ----------------------------------

FROM python:3.11-slim-bookworm AS build-base-cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

FROM python:3.11-slim-bookworm AS run-base-cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# CTranslate2 opens cuBLAS 12 by name, so this is CUDA 12; PyTorch brings the CUDA it wants itself.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build-base-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The driver's library is not there while an image is built; its stub is enough to link against.
RUN ln -s libcuda.so /usr/local/cuda/lib64/stubs/libcuda.so.1
ENV LIBRARY_PATH=/usr/local/cuda/lib64/stubs

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS run-base-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/*

# --- build: one virtual environment --------------------------------------------------------------

FROM build-base-${DEVICE} AS build
ARG DEVICE

# An image runs on other processors than the one that builds it: GGML_NATIVE off means x86-64 with AVX2.
ARG LLAMA_CMAKE_ARGS="-DGGML_NATIVE=OFF"
# For example "86;89;90"; empty builds for all that llama.cpp knows, which takes long.
ARG CUDA_ARCHITECTURES=""
# Where pip finds PyTorch, if not where it finds everything else: an index with CPU-only builds saves
# several gigabytes in a CPU image.
ARG TORCH_INDEX_URL=""

WORKDIR /src
RUN python3 -m venv /opt/roomful
ENV PATH=/opt/roomful/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1

RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "${TORCH_INDEX_URL}" ]; then pip install --index-url "${TORCH_INDEX_URL}" torch; fi

# Compiled apart from the rest, so that a change of Roomful's own code does not compile it again.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "${DEVICE}" = cuda ]; then \
        LLAMA_CMAKE_ARGS="${LLAMA_CMAKE_ARGS} -DGGML_CUDA=on -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"; \
        if [ -n "${CUDA_ARCHITECTURES}" ]; then \
            LLAMA_CMAKE_ARGS="${LLAMA_CMAKE_ARGS} -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}"; \
        fi; \
    fi; \
    requirement="$(grep -o 'llama-cpp-python[^"]*' pyproject.toml)"; \
    CMAKE_ARGS="${LLAMA_CMAKE_ARGS}" pip install --no-binary llama-cpp-python "${requirement}"

COPY README.md LICENSE NOTICE ./
COPY models ./models
COPY inference ./inference
COPY host ./host
RUN --mount=type=cache,target=/root/.cache/pip pip install .

# --- what runs ------------------------------------------------------------------------------------

FROM run-base-${DEVICE} AS run

LABEL org.opencontainers.image.title="Roomful" \
      org.opencontainers.image.description="LiveKit voice agents on hardware you own" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-3.0-or-later"

COPY --from=build /opt/roomful /opt/roomful
COPY LICENSE NOTICE /usr/share/doc/roomful/
COPY examples /agents

# A named volume takes over the owner of the folder that it is mounted on.
RUN useradd --system --create-home --uid 10001 roomful \
    && install --directory --owner=roomful --group=roomful /models

ENV PATH=/opt/roomful/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ROOMFUL_MODELS_DIR=/models

USER roomful
WORKDIR /agents
VOLUME /models
EXPOSE 8081

# 503 while the inference process is not ready, and until the LiveKit server has been reached.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/', timeout=4)"]

ENTRYPOINT ["host"]
CMD ["serve"]
