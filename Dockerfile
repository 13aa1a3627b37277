# Two targets: `gateway`, which has no torch, and `worker`, with CUDA's build of torch from PyPI.
# BASE is any image with Python 3.11 or newer and its venv module.
ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# The environments that are copied later on need no pip, so one installs into them from outside.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/koala
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./

FROM builder AS gateway-packages
ARG GATEWAY_EXTRAS=s3,otel
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/pip/bin/pip --python /opt/koala/bin/python install --constraint constraints.txt \
    ".[${GATEWAY_EXTRAS}]"
# Of Amazon's 400 services a store needs S3 and those that log in: 25 MB less.
RUN find /opt/koala/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name 'sso*' ! -name signin -exec rm -rf {} +

FROM builder AS worker-packages
ARG WORKER_EXTRAS=worker,s3,otel
# Another build of torch: TORCH names it (torch==2.13.0+cpu), TORCH_INDEX is where it is.
ARG TORCH=torch
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/pip/bin/pip --python /opt/koala/bin/python install --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "${TORCH}" ".[${WORKER_EXTRAS}]"

FROM builder AS code
WORKDIR /app
COPY koala koala
COPY service service
COPY worker worker
COPY models models
# The file system is read-only later on: compiled now or never.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="koala-serve" \
      org.opencontainers.image.description="Text-to-image serving for the KOALA models" \
      org.opencontainers.image.licenses="Apache-2.0"
# Volumes get the owner that these folders have.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin koala \
    && install --directory --owner=koala --group=koala /data /models /keys
ENV PATH=/opt/koala/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KOALA_DATA_DIR=/data \
    KOALA_HOST=0.0.0.0 \
    KOALA_METRICS_HOST=0.0.0.0 \
    KOALA_METRICS_PORT=9101
WORKDIR /app
COPY LICENSE NOTICE ./
COPY --from=code /app/koala koala
COPY --from=code /app/worker worker
USER 10001:10001

FROM runtime AS gateway
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=gateway-packages /opt/koala /opt/koala
COPY --from=code /app/service service
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-m", "koala.health", "http://127.0.0.1:8000/healthz"]
CMD ["koala", "serve"]

FROM runtime AS worker
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# TQDM_*: bars of downloads go to the log, a line now and then.
ENV HF_HOME=/models/huggingface \
    TQDM_POSITION=-1 \
    TQDM_MININTERVAL=5 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-packages /opt/koala /opt/koala
# What koala/data/demo links to.
COPY --from=code /app/models models
EXPOSE 9101
# The first start downloads the model, so health comes late.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60m \
    CMD ["python", "-m", "koala.health", "http://127.0.0.1:9101/healthz"]
CMD ["koala", "work"]
