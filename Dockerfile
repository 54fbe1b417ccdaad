# docker build -t onnxprune . && docker run --rm -v "$PWD:/models" onnxprune prune model.onnx small.onnx --target macs=0.5
FROM python:3.12-slim
COPY . /src
RUN python -m pip install --no-cache-dir /src && rm -r /src
WORKDIR /models
ENV ONNXPRUNE_CACHE=/tmp/onnxprune
ENTRYPOINT ["onnxprune"]
CMD ["--help"]
