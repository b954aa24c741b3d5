# The image that trains, built from the repository:
#   docker build -f docker/train.Dockerfile -t lossy-mlflow-train:0.1.0 .
# for the CPU; for CUDA 13.0:
#   docker build -f docker/train.Dockerfile -t lossy-mlflow-train:0.1.0 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS base
ENV PATH=/opt/lossy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
# Torch alone comes from that index, in the pinned release; what it needs comes, pinned as well, with the rest.
RUN python3 -m venv /opt/lossy && \
    /opt/lossy/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"
COPY lossy_mlflow lossy_mlflow
RUN /opt/lossy/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[train]'

FROM base
COPY --from=build /opt/lossy /opt/lossy
RUN groupadd --gid 10001 lossy && useradd --uid 10001 --gid lossy --no-create-home --shell /usr/sbin/nologin lossy
# Data sets and the outbox are kept in volumes at these places. Whoever owns a credentials file trains as that user
# (docker run --user): so that any may write here.
RUN install -d -m 1777 /home/lossy /home/lossy/.cache /home/lossy/.local /home/lossy/.local/state /home/lossy/work
# There is no git here, which MLflow would warn of.
ENV HOME=/home/lossy GIT_PYTHON_REFRESH=quiet
USER 10001:10001
WORKDIR /home/lossy/work
CMD ["lossy", "--help"]
