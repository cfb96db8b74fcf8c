# The pipeline on NVIDIA GPUs; a container runs the small demo. x86-64: PyPI's torch brings CUDA's libraries along, so that the host needs
# the driver and the NVIDIA container toolkit alone.
#
#   docker build -f docker/cuda.Dockerfile -t dsts:cuda .
#   docker run --rm --gpus all --shm-size 8g dsts:cuda
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 dsts \
    && install -d -o dsts /dsts
USER 1000
WORKDIR /dsts
COPY --chown=1000 . .

# What the container toolkit gives the container: the driver's libraries for computing and for decoding videos.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

# The demo lists the repository's files by git.
RUN git init -q . \
    && PIP_NO_CACHE_DIR=1 make setup EXTRAS=pipeline,mmaction2,lite

CMD ["make", "demo", "SIZE=small"]
