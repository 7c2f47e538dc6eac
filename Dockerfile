# One image for every service of docker-compose.yml; the command says which.
#   docker build -t rlhf-orchestrator .                                                      CPU build of torch
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t … .       CUDA build
FROM python:3.12-slim-trixie

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG REVISION=
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    ORCHESTRATOR_HOME=/var/lib/orchestrator \
    ORCHESTRATOR_REVISION=${REVISION}

WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
# The dependencies first: they change seldom, and are most of the image.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], 's3fs', sep='\n')" \
      > /tmp/requirements.txt \
 && pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt -r /tmp/requirements.txt
COPY . .
RUN pip install --no-deps -e . \
 && useradd --create-home --uid 1000 orchestrator \
 && mkdir -p "$ORCHESTRATOR_HOME" && chown orchestrator "$ORCHESTRATOR_HOME"
USER orchestrator
VOLUME /var/lib/orchestrator
ENTRYPOINT ["python", "-m", "orchestrator.cli"]
CMD ["--help"]
