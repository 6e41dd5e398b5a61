# Everything: training, scoring, serving. PyTorch for the CPU by default, or for NVIDIA GPUs:
#     docker build -f examples/containers/train.Dockerfile -t adctl-train .
#     docker build -f examples/containers/train.Dockerfile -t adctl-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#     docker build -f examples/containers/train.Dockerfile -t adctl-jupyter --target jupyter .
FROM debian:bookworm-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates
RUN python3 -m venv /opt/adctl
RUN /opt/adctl/bin/pip install --no-cache-dir --no-compile --index-url "$TORCH_INDEX" torch torchvision
COPY . /src
RUN /opt/adctl/bin/pip install --no-cache-dir --no-compile "/src[export,line,opcua,openvino,postgresql,serve,tune]"

FROM debian:bookworm-slim AS train
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data adctl && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/adctl /opt/adctl
ENV PATH=/opt/adctl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ADCTL_DATA_DIR=/data MPLCONFIGDIR=/tmp ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD ["adctl", "--version"]
ENTRYPOINT ["adctl"]
CMD ["--help"]

FROM build AS notebooks
RUN /opt/adctl/bin/pip install --no-cache-dir --no-compile jupyterlab

FROM train AS jupyter
COPY --from=notebooks /opt/adctl /opt/adctl
COPY examples/notebooks /opt/notebooks
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8888/api', timeout=4)"]
ENTRYPOINT ["jupyter", "lab", "--ip", "0.0.0.0", "--no-browser"]
CMD []

# Without --target, the last stage is built.
FROM train
