# refusion-edge on a PC with an NVIDIA GPU. Build it in the source folder:
#   docker build -f examples/docker/cuda.Dockerfile -t refusion-edge .
#   docker run --rm --gpus all refusion-edge doctor
# TensorRT and cuda-bindings come from wheels; the driver comes from the host.
ARG BASE=nvidia/cuda:12.6.3-base-ubuntu24.04
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ cmake python3-dev python3-venv python3-gi gir1.2-gst-plugins-base-1.0 \
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-python3-plugin-loader python3-gst-1.0 gstreamer1.0-tools \
    && rm -rf /var/lib/apt/lists/*

COPY . /src
ARG EXTRAS=stream,fused,tensorrt
ARG CUDA_MAJOR=12
RUN python3 -m venv /opt/refusion-edge \
    && /opt/refusion-edge/bin/pip install --no-cache-dir --upgrade 'pip>=25.1' \
    && /opt/refusion-edge/bin/pip install --no-cache-dir "/src[${EXTRAS}]" "cuda-bindings==${CUDA_MAJOR}.*" -Cwheel.cmake=true \
    && /opt/refusion-edge/bin/python -m refusion_edge.gstreamer --folder /usr/lib/x86_64-linux-gnu/gstreamer-1.0 \
    && rm -rf /src

RUN useradd --create-home --uid 10001 --groups video fusion
USER 10001
WORKDIR /home/fusion
ENTRYPOINT ["/opt/refusion-edge/bin/refusion-edge"]
CMD ["doctor"]
