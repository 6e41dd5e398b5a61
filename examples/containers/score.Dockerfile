# Scoring and serving of exported models, without PyTorch.
#     docker build -f examples/containers/score.Dockerfile -t adctl-score .
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates binutils
RUN python3 -m venv /opt/adctl
COPY examples/containers/score-requirements.txt /tmp/score-requirements.txt
RUN /opt/adctl/bin/pip install --no-cache-dir --no-compile -r /tmp/score-requirements.txt
COPY . /src
RUN /opt/adctl/bin/pip install --no-cache-dir --no-compile --no-deps /src
# Debug symbols, tests of libraries and pip are of no use in the image.
RUN find /opt/adctl -name "*.so" -not -path "*.libs/*" -exec strip --strip-unneeded {} +
RUN find /opt/adctl -depth -type d -name tests -exec rm -rf {} + && rm -rf /opt/adctl/lib/python3*/site-packages/pip

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data adctl && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/adctl /opt/adctl
ENV PATH=/opt/adctl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ADCTL_DATA_DIR=/data ADCTL_EXPORT=none ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["adctl"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0", "--runs", "/data/runs"]
