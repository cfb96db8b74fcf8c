# The pipeline on processors; a container runs the small demo.
#
#   docker build -f docker/cpu.Dockerfile -t dsts:cpu .
#   docker run --rm dsts:cpu
#
# On x86-64, PyPI's torch brings CUDA's libraries along, several GB. For PyTorch's build without them, give the address of
# its index: --build-arg TORCH_INDEX_URL=...
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

ARG TORCH_INDEX_URL=""
# The demo lists the repository's files by git.
RUN git init -q . \
    && python -m venv .venv \
    && if [ -n "$TORCH_INDEX_URL" ]; then \
        .venv/bin/pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX_URL" torch; \
    fi \
    && PIP_NO_CACHE_DIR=1 make setup EXTRAS=pipeline,mmaction2,lite

CMD ["make", "demo", "SIZE=small"]
